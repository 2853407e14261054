"""Sharding: the random subspaces that edits are written into, one a shard (WISE, section 2.3.2 and theorem 2.1).

A subspace is a mask M_i over the entries of a matrix. It follows from a seed, so only the seed is stored; what a shard has
written is stored as the values at the entries of its mask, rho of the matrix.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

UNKNOWN = 500
"""Edits in a shard of a stream of unknown length [released]."""
ROUNDS = 3
"""Rounds, at least, that a stream makes whose rounds are kept apart [paper: 3,000 edits in memories of 1,000]."""
HELD = 170e-6
"""Edits for each weight that a matrix takes which is kept apart: past that it begins to lose them (docs/field.md)."""


def edits_in(k: int, expected: int | None, weights: int | None = None) -> int:
    """Edits in a shard, so that a stream of `expected` edits makes one round of k shards [replication script].

    With the `weights` of a matrix each round has its own: then the stream makes at least `ROUNDS` of them, and none has
    more edits than its matrix holds.
    """
    edits, rounds = (UNKNOWN * k, 1) if expected is None else (expected, ROUNDS)
    if weights is not None:
        edits = min(-(-edits // rounds), held(weights))
    return max(1, -(-edits // k))


def held(weights: int) -> int:
    """Edits that one matrix of so many weights takes before it begins to lose them, at least one."""
    return max(1, int(HELD * weights))


def beyond(weights: int, edits: int) -> str:
    """What to know before one matrix of so many weights takes so many edits, in a line; empty where it holds them."""
    most = held(weights)
    if edits <= most:
        return ""
    return f"one side memory of this size loses edits past some {most:,}; mode=retrieve adds one whenever one is full"


def mask(shape: Sequence[int], rho: float, seed: int, shard: int, *, disjoint: bool = False) -> Tensor:
    """M_i of one shard: each entry with probability rho; bool of `shape`, on the CPU.

    The shards of one seed are independent, so that any two share rho^2 of the entries (the knowledge anchors of the
    paper's B.7), or disjoint, which needs (shard + 1) * rho <= 1.
    """
    generator = torch.Generator().manual_seed(seed if disjoint else seed + shard)
    drawn = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    low, high = (shard * rho, (shard + 1) * rho) if disjoint else (0.0, rho)
    return (drawn >= low) & (drawn < high)


def expected_overlap(size: int, rho: float, k: int) -> tuple[float, float]:
    """Theorem 2.1: how many of `size` entries k independent masks share, rho^k size, and the standard deviation."""
    share = rho**k
    return size * share, math.sqrt(size * share * (1 - share))


def entries(mask: Tensor) -> Tensor:
    """Where a mask is, as places (entries,) in the flattened matrix: read and written much faster than by the mask."""
    return mask.flatten().nonzero()[:, 0]


def placed(values: Tensor, where: Tensor, shape: Sequence[int]) -> Tensor:
    """The matrix of this shape with these values (entries,) at these places, and 0 elsewhere; it has gradients."""
    return values.new_zeros(math.prod(shape)).index_copy_(0, where, values).view(tuple(shape))


def gather(dense: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The values (entries,) that shards (k, ...) hold at the entries of their masks, shard after shard."""
    return torch.cat([shift.flatten()[entries(mask)] for shift, mask in zip(dense, masks, strict=True)])


def spread(values: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """The dense shards that `gather` was given; 0 outside the masks."""
    places = [entries(mask) for mask in masks]
    parts = values.split([len(where) for where in places])
    return [placed(part, where, mask.shape) for part, where, mask in zip(parts, places, masks, strict=True)]
