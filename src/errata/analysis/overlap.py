"""Overlap: what random subspaces share, measured, beside what theory says.

WISE, theorem 2.1 and its proof C.1 (arXiv 2405.14768): k independent masks over n entries, each entry with probability
rho, share rho^k n entries; the number is binomial. Memory is "anchored" where shards overlap, and merged without conflict
elsewhere.

MEMOIR (arXiv 2506.07899): two random sets of N of D features share N^2 / D of them; the number is hypergeometric. An
overlap means something only above that, and above the largest one that chance finds among all stored edits.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from errata.errors import BadOption
from errata.masks import overlaps, pack, top_hash
from errata.sharding import expected_overlap, mask


class Chance(NamedTuple):
    """The overlap |A n B| / N of two random sets of N of D features."""

    mean: float
    sd: float
    largest: float
    """The median of the largest of so many."""


def subspaces(rows: int, columns: int, rho: float, k: int, seed: int = 0, *, disjoint: bool = False) -> dict[str, Any]:
    """k masks of a matrix: their sizes, what each pair and what all of them share; `z` in standard deviations.

    Raises `BadOption` where they cannot be drawn.
    """
    size = rows * columns
    if not 0 < rho <= 1 or k < 1 or size < 1:
        raise BadOption(f"rho={rho} must be in (0, 1], k={k}, rows={rows} and columns={columns} at least 1")
    if disjoint and k * rho > 1:
        raise BadOption(f"k={k}, rho={rho}: disjoint subspaces need k * rho <= 1")
    masks = [mask((rows, columns), rho, seed, i, disjoint=disjoint) for i in range(k)]
    shared = masks[0].clone()
    covered = masks[0].clone()
    for each in masks[1:]:
        shared &= each
        covered |= each
    pairs = [int((a & b).sum()) for a, b in combinations(masks, 2)]
    return {
        "rho": rho, "k": k, "seed": seed, "disjoint": disjoint, "size": size,
        "sizes": [int(each.sum()) for each in masks],
        "pairs": [_against(count, size, rho, 2, disjoint=disjoint) for count in pairs],
        "all": _against(int(shared.sum()), size, rho, k, disjoint=disjoint),
        "covered": int(covered.sum()),
        "expected_covered": size * (min(1.0, k * rho) if disjoint else 1 - (1 - rho) ** k),
    }  # fmt: skip


def _against(count: int, size: int, rho: float, k: int, *, disjoint: bool) -> dict[str, float | None]:
    """A measured count and the theorem's."""
    expected, sd = (0.0, 0.0) if disjoint and k > 1 else expected_overlap(size, rho, k)
    return {"measured": count, "expected": expected, "sd": sd, "z": (count - expected) / sd if sd else None}


def scatter(drawn: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """How far the counts of independent draws lie from the theorem's, in standard deviations: mean 0, rms 1 if it holds."""
    z = [one["all"]["z"] for one in drawn if one["all"]["z"] is not None]
    if not z:
        return {"counts": 0, "mean": None, "rms": None, "largest": None}
    return {
        "counts": len(z),
        "mean": sum(z) / len(z),
        "rms": math.sqrt(sum(value**2 for value in z) / len(z)),
        "largest": max(abs(value) for value in z),
    }


def chance(width: int, active: int, trials: int = 1) -> Chance:
    """Mean and standard deviation of the hypergeometric overlap, and the median of the largest of `trials`."""
    p = active / width
    variance = active * p * (1 - p) * (width - active) / max(width - 1, 1)
    counts = np.arange(max(0, 2 * active - width), active + 1)
    logs = np.array([_log_choose(active, int(c)) + _log_choose(width - active, active - int(c)) for c in counts])
    below = np.cumsum(np.exp(logs - _log_choose(width, active)))
    largest = counts[min(int(np.searchsorted(below, 0.5 ** (1 / trials))), len(counts) - 1)]
    return Chance(p, math.sqrt(variance) / active, float(largest) / active)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def top_hash_masks(width: int, active: int, edits: int, queries: int, seed: int = 0) -> dict[str, Any]:
    """TopHash masks of unrelated random features, `edits` stored and `queries` asked: their overlaps against chance."""
    if not 0 < active <= width or edits < 1 or queries < 1:
        raise BadOption(f"active={active} must be in 1 .. {width}, edits={edits} and queries={queries} at least 1")
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.randperm(width, generator=generator)
    stored, asked = (
        pack(top_hash(torch.randn(count, width, generator=generator), permutation, active))
        for count in (edits, queries)
    )
    shared = overlaps(asked, stored).double() / active
    theory = chance(width, active, edits)
    return {
        "width": width, "active": active, "edits": edits, "queries": queries, "seed": seed,
        "measured": {
            "mean": float(shared.mean()),
            "sd": float(shared.std(correction=0)),
            "largest": float(shared.amax(1).median()),
        },
        "chance": theory._asdict(),
        "released_tau_corrected": (0.4 - theory.mean) / (1 - theory.mean) if theory.mean < 1 else None,
    }  # fmt: skip
