"""WilKE's protocol: edit, look, edit back. What ROME does to facts that nobody touched, at each layer, beside WilKE.

    python benchmarks/toxicity.py benchmarks/results/diagnoses --edits 16

On the atlas; `toxicity.json` is written. A flash is the largest rise of the untouched facts' -log P under one edit, the
build-up their rise over all edits, each of which was edited back.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, load
from errata.analysis.findings import Findings, made_on
from errata.atlas.edits import edits, irrelevant
from errata.bench.rollback import edit_and_roll_back
from errata.edit import Probe
from errata.editor import Editor
from errata.methods.rome import Rome
from errata.methods.wilke import Wilke
from errata.sites import find_sites


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--edits", type=int, default=16)
    parser.add_argument("--untouched", type=int, default=60, help="Facts that are only asked for.")
    told = parser.parse_args()
    torch.set_num_threads(1)
    base, tokenizer = load("atlas")
    some = edits("validation")[: told.edits]
    untouched = [probe for edit in edits("validation")[-told.untouched :] for probe in edit.locality[:1]]

    def looked(editor: Editor) -> dict[str, Any]:
        model = EditedModel(base, tokenizer, editor, irrelevant=irrelevant())
        try:
            found = edit_and_roll_back(model, some, [Probe(p.prompt, p.answer) for p in untouched])
        finally:
            model.detach()
        known = {
            "success": found.success, "flash": found.flash, "build_up": found.build_up, "flashes": found.flashes,
            "checkpoints": [point._asdict() for point in found.checkpoints],
        }  # fmt: skip
        sys.stderr.write(f"{editor}: flash {found.flash:.4f}, build-up {found.build_up:.4f}\n")
        return known

    layers = [{"layer": site.layer, **looked(Rome(layer=site.layer))} for site in find_sites(base)]
    asked = {"model": "atlas", "data": "atlas:validation", "edits": told.edits, "untouched": told.untouched}
    Findings("toxicity", asked, {"layers": layers, "wilke": looked(Wilke())}, made_on(base, some)).write(told.output)


if __name__ == "__main__":
    main()
