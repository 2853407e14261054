"""LEMoE's diagnoses: forgetting, routing in training and in use, the order of edits, and batch beside lifelong editing.

    python benchmarks/lemoe.py benchmarks/results/diagnoses --edits 60 --prefixes 3

On the atlas. `lemoe.json` is written after every run, and the same command goes on from what is there. `--set` changes an
option of the method, as in `errata bench`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, load
from errata.analysis.findings import Findings, made_on
from errata.atlas.edits import edits, irrelevant
from errata.bench.diagnoses import diagnose
from errata.cli.settings import parse
from errata.methods.lemoe import Lemoe


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--prefixes", type=int, default=10, help="context prefixes to learn behind, of ten")
    parser.add_argument("--shuffles", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    told = parser.parse_args()
    torch.set_num_threads(1)
    base, tokenizer = load("atlas")
    editor = Lemoe.with_options(parse(told.set, "lemoe"))
    prefixes = EditedModel(base, tokenizer).prefixes()[: told.prefixes]
    some = edits("validation")[: told.edits]
    asked = {
        "method": "lemoe", "model": "atlas", "data": "atlas:validation", "prefixes": told.prefixes,
        "options": editor.options(), "edits": told.edits,
    }  # fmt: skip
    made = made_on(base, some)

    def make(editor: Lemoe) -> EditedModel:
        return EditedModel(base, tokenizer, editor, irrelevant=irrelevant(), prefixes=prefixes)

    def keep(found: dict[str, Any]) -> None:
        Findings("lemoe", asked, found, made).write(told.output)

    path = told.output / "lemoe.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    runs = known["found"]["runs"] if known.get("settings") == asked else {}
    keep(diagnose(make, editor, some, told.shuffles, runs, keep))


if __name__ == "__main__":
    main()
