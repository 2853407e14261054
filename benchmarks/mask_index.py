"""How long the nearest of very many masks takes to find, against comparing all of them.

    python benchmarks/mask_index.py --masks 10000,100000,1000000 > benchmarks/results/speed/mask_index.json
    python benchmarks/mask_index.py --masks 10000,100000,1000000 --numpy > benchmarks/results/speed/mask_index_numpy.json

Random masks of the size that MEMOIR has on LLaMA-2-7B, 4,096 of about 14,336 features, on one thread. A query is a stored
mask of which a share of the features was exchanged, or a mask that is near to none; the floor is what a routed query must
share.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errata import bitmaps
from errata.bench.provenance import surroundings
from errata.mask_index import Bits, MaskIndex
from errata.masks import overlaps

WIDTH = 14336
QUERIES = 11
KINDS: tuple[tuple[str, float | None, float], ...] = (
    ("the same", 1.0, 0.6), ("shares .9", 0.9, 0.6), ("shares .7", 0.7, 0.6), ("shares .6", 0.6, 0.5),
    ("near to none, floor .9", None, 0.9), ("near to none, floor .7", None, 0.7), ("near to none, floor .6", None, 0.6),
    ("near to none, floor .5", None, 0.5), ("near to none, floor .4", None, 0.4),
)  # fmt: skip


def masks(count: int, rng: np.random.Generator) -> Bits:
    """Packed random masks in which a feature is active with probability 9/32 = .281 (4,096 of 14,336 are .286)."""
    rows = np.empty((count, WIDTH // 8), dtype=np.uint8)
    for at in range(0, count, 16384):
        a, b, c, d, e = (rng.integers(0, 256, rows[at : at + 16384].shape, dtype=np.uint8) for _ in range(5))
        rows[at : at + 16384] = a & (b | (c & d & e))
    return rows


def near(row: Bits, share: float, rng: np.random.Generator) -> Bits:
    """A mask of as many features that shares this share of them."""
    bits = np.unpackbits(row, bitorder="little").astype(bool)
    active = bits.nonzero()[0]
    gone = rng.choice(active, round((1 - share) * len(active)), replace=False)
    bits[rng.choice((~bits).nonzero()[0], len(gone), replace=False)] = True
    bits[gone] = False
    return np.packbits(bits, bitorder="little")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that a call took, and its result."""
    start = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - start), result


def measured(count: int) -> dict[str, Any]:
    """The figures of an index of so many masks."""
    rng = np.random.default_rng(count)
    rows = masks(count, rng)
    build_ms, index = timed(lambda: MaskIndex.of(rows, WIDTH))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "masks.index"
        index.save(path)
        load_ms, index = timed(lambda: MaskIndex.load(path, rows))
        queries = {}
        for kind, share, floor in KINDS:
            took, right = [], 0
            for _ in range(QUERIES):
                target = int(rng.integers(count))
                query = masks(1, rng)[0] if share is None else near(rows[target], share, rng)
                least = round(floor * int(np.bitwise_count(query).sum()))
                ms, found = timed(lambda query=query, least=least: index.nearest(query, least))
                took.append(ms)
                right += found is None if share is None else found is not None and found.which == target
            queries[kind] = {
                "median_ms": round(statistics.median(took), 3), "max_ms": round(max(took), 3),
                "right": right, "of": QUERIES,
            }  # fmt: skip
        scans = [timed(lambda: overlaps(torch.from_numpy(rows[:1]), torch.from_numpy(rows)))[0] for _ in range(3)]
        more = np.concatenate([rows[-1000:], rows[-1000:]]) if count < 1000 else rows
        add = MaskIndex.of(more[:-100], WIDTH)
        add_ms = timed(lambda: add.grow(more))[0] / 100
    return {
        "masks": count, "build_s": round(build_ms / 1e3, 2), "load_s": round(load_ms / 1e3, 3), "add_ms": round(add_ms, 4),
        "bytes_beside_the_masks": index.nbytes, "compare_all_ms": round(statistics.median(scans), 2), "queries": queries,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--masks", default="10000,100000")
    parser.add_argument("--numpy", action="store_true", help="count with NumPy also where Numba is installed")
    given = parser.parse_args()
    counts = [int(count) for count in given.masks.split(",")]
    if given.numpy:
        bitmaps.compiled = lambda: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    told = {
        "width": WIDTH,
        "counted_by": "NumPy" if bitmaps.compiled() is None else "Numba",
        "provenance": surroundings(torch.nn.Linear(1, 1)),
        "indexes": [measured(count) for count in counts],
    }
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
