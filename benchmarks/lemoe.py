"""LEMoE's diagnoses: forgetting, routing in training and in use, the order of edits, and batch beside lifelong editing.

    python benchmarks/lemoe.py benchmarks/results/lemoe/atlas-60.json --edits 60 --prefixes 3

On the atlas. The file is written after every run, and the same command goes on from what is there. `--set` changes an
option of the method, as in `errata bench`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, __version__, load
from errata.atlas.edits import edits, irrelevant
from errata.bench.diagnoses import diagnose
from errata.cli.settings import parse
from errata.methods.lemoe import Lemoe


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--prefixes", type=int, default=10, help="context prefixes to learn behind, of ten")
    parser.add_argument("--shuffles", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    told = parser.parse_args()
    torch.set_num_threads(1)
    base, tokenizer = load("atlas")
    editor = Lemoe.with_options(parse(told.set, "lemoe"))
    prefixes = EditedModel(base, tokenizer).prefixes()[: told.prefixes]
    asked = {
        "method": "lemoe", "model": "atlas", "prefixes": told.prefixes, "options": editor.options(),
        "errata": __version__, "torch": torch.__version__,
    }  # fmt: skip

    def make(editor: Lemoe) -> EditedModel:
        return EditedModel(base, tokenizer, editor, irrelevant=irrelevant(), prefixes=prefixes)

    def keep(found: dict[str, Any]) -> None:
        told.output.parent.mkdir(parents=True, exist_ok=True)
        told.output.write_text(json.dumps(asked | found, indent=2) + "\n")

    known = json.loads(told.output.read_text()) if told.output.exists() else {}
    same = {name: known.get(name) for name in asked} == asked and known.get("edits") == told.edits
    runs = known["runs"] if same else {}
    keep(diagnose(make, editor, edits("validation")[: told.edits], told.shuffles, runs, keep))


if __name__ == "__main__":
    main()
