"""What editing several facts at once saves, and what it costs in quality: batches of one, ten and thirty edits.

    python benchmarks/throughput.py > benchmarks/results/speed/throughput.json

One thread; seconds are those of the processor while editing, without scoring. Scores are those of `errata bench`, whose
rows carry the batch size as part of the protocol.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from errata import EditedModel, load, methods
from errata.atlas.edits import edits, irrelevant
from errata.bench.plan import Plan
from errata.bench.provenance import surroundings
from errata.bench.stream import run
from errata.edit import Edit
from errata.editor import Receipt

SCORER = "generated_exact"


def row(method: str, count: int, size: int) -> dict[str, Any]:
    """One stream in batches of `size`."""
    base, tokenizer = load("atlas")
    spent, real = [0.0], EditedModel.edit_batch

    def timed(model: EditedModel, some: Sequence[Edit]) -> list[Receipt]:
        start = time.process_time()
        try:
            return real(model, some)
        finally:
            spent[0] += time.process_time() - start

    EditedModel.edit_batch = timed  # type: ignore[method-assign]
    try:
        stream = edits("validation")[:count]
        (found,) = run(
            Plan(base, tokenizer, methods.make(method), "atlas", "atlas", stream, irrelevant(), batch_size=size)
        )
    finally:
        EditedModel.edit_batch = real  # type: ignore[method-assign]
    scores = found.to_record()["scores"][SCORER]
    return {
        "method": method, "edits": count, "batch_size": found.batch_size,
        "cpu_seconds_per_edit": round(spent[0] / count, 4), **scores, "failed": found.failed,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", default="memoir,grace")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--sizes", default="1,10,30")
    told = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for method in told.methods.split(","):
        for size in map(int, told.sizes.split(",")):
            rows.append(row(method, told.edits, size))
            sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    base, _ = load("atlas")
    sys.stdout.write(json.dumps({"scorer": SCORER, "provenance": surroundings(base), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
