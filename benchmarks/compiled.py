"""Whether compiling pays in the inner loop: edits of one stream as they are made, and with the blocks' modules compiled.

    python benchmarks/compiled.py --edits 12 > benchmarks/results/speed/compiled.json

`torch.compile` with dynamic shapes, of each block's attention, feed-forward network and norms, since edits differ in
length. The first half of the stream compiles and is left out of the ratio. Needs a C++ compiler. One thread.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
import torch._dynamo.config as dynamo
from cases import add_cases, cases_of
from shapes import Shape, add_shape, shape_of, shaped

from errata import EditedModel, methods
from errata.atlas.edits import edits, irrelevant
from errata.bench.provenance import surroundings
from errata.sites import find_blocks

CASES: dict[str, tuple[str, dict[str, Any]]] = {"memoir": ("memoir", {}), "wise": ("wise", {}), "ft_l": ("ft_l", {})}


def made(name: str, options: dict[str, Any], count: int, shape: Shape, *, compiled: bool) -> list[float]:
    """Seconds of each edit of a stream."""
    base, tokenizer = shaped(*shape)
    if compiled:
        for module in find_blocks(base)[1]:
            for part in module.children():
                object.__setattr__(part, "forward", torch.compile(part.forward, dynamic=True))
    model = EditedModel(base, tokenizer, methods.make(name, **options), irrelevant=irrelevant(), expected=count)
    seconds = []
    for one in edits("validation")[:count]:
        start = time.perf_counter()
        model.edit(one)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=12)
    add_shape(parser)
    add_cases(parser, CASES)
    told = parser.parse_args()
    shape, cases = shape_of(parser, told), cases_of(parser, told, CASES)
    torch.set_num_threads(1)
    dynamo.skip_nnmodule_hook_guards = False  # suffix runs hook a memory, which a compiled module may hold
    dynamo.recompile_limit = 64  # a program for each memory and set of hooks
    rows = []
    for case in cases:
        name, options = CASES[case]
        eager = made(name, options, told.edits, shape, compiled=False)
        compiled = made(name, options, told.edits, shape, compiled=True)
        later = slice(told.edits // 2, None)
        rows.append({
            "case": case, "method": name, "options": options, "edits": told.edits,
            "seconds": [round(s, 3) for s in eager],
            "compiled_seconds": [round(s, 3) for s in compiled],
            "compiled_over_eager": round(
                statistics.median(c / e for e, c in zip(eager[later], compiled[later], strict=True)), 2
            ),
        })  # fmt: skip
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    found = {"provenance": surroundings(shaped(*shape)[0]), "cases": rows}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
