"""Ordering: which edits go together in a batch, and which batch comes first (LEMoE, section 3.3).

Like edits in one batch disturb one another less than like edits in different batches. Planning needs all edits before
the first is made, so it is for a known list of them, not for a stream.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 50
"""Most rounds of k-means; a few do."""


class Order(NamedTuple):
    """Batches of indices, in the order in which to make them."""

    batches: tuple[tuple[int, ...], ...]
    within: float
    """Mean cosine between two points of one batch ..."""
    between: float
    """... and of different batches."""


def plan(points: Tensor, size: int, generator: torch.Generator) -> Order:
    """Batches of at most `size` like points (n, width): balanced spherical k-means, the most alike batch first.

    There are ceil(n / size) batches; a point that finds its nearest cluster full goes to the next nearest.
    """
    unit = F.normalize(points.float(), dim=-1)
    count = -(-len(unit) // size)
    centres = _spread(unit, count, generator)
    batches: list[list[int]] = []
    for _ in range(ROUNDS):
        found = _fill(unit @ centres.T, size)
        if found == batches:
            break
        batches = found
        centres = torch.stack([F.normalize(unit[batch].mean(0), dim=0) for batch in batches])
    alike = [float((unit[batch] @ centre).mean()) for batch, centre in zip(batches, centres, strict=True)]
    order = sorted(range(len(batches)), key=lambda i: -alike[i])
    return measured(points, [batches[i] for i in order])


def measured(points: Tensor, batches: Sequence[Sequence[int]]) -> Order:
    """These batches, with their mean cosine within and between; either is 0 where there is no such pair."""
    unit = F.normalize(points.float(), dim=-1)
    label = torch.zeros(len(unit), dtype=torch.long)
    for i, batch in enumerate(batches):
        label[list(batch)] = i
    cosine = (unit @ unit.T).cpu()
    same = label[:, None] == label[None]
    other = ~torch.eye(len(unit), dtype=torch.bool)
    means = [float(cosine[pairs].mean()) if pairs.any() else 0.0 for pairs in (same & other, ~same)]
    return Order(tuple(tuple(batch) for batch in batches), *means)


def dealt(points: Tensor, order: Order) -> Order:
    """The opposite of a plan: its edits dealt out one by one, so that a batch holds edits of all clusters."""
    line, count = [i for batch in order.batches for i in batch], len(order.batches)
    return measured(points, [sorted(line[start::count]) for start in range(count)])


def _spread(unit: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """First centres: each drawn with odds that grow with its squared distance from those before (k-means++)."""
    chosen = [int(torch.randint(len(unit), (1,), generator=generator))]
    for _ in range(count - 1):
        far = (1 - (unit @ unit[chosen].T).amax(1)).clamp(min=0).cpu().double()
        far[chosen] = 0
        odds = far**2 if float(far.sum()) > 0 else torch.ones_like(far).index_fill(0, torch.tensor(chosen), 0)
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
    return unit[chosen]


def _fill(similarity: Tensor, size: int) -> list[list[int]]:
    """Give every point a cluster with room, the best matches first: (n, clusters) -> clusters of indices, sorted.

    No cluster stays empty: the last points go where nobody is.
    """
    n, count = similarity.shape
    batches: list[list[int]] = [[] for _ in range(count)]
    placed: set[int] = set()
    for flat in similarity.flatten().argsort(descending=True, stable=True).tolist():
        point, cluster = divmod(flat, count)
        empty = sum(not batch for batch in batches)
        reserved = n - len(placed) <= empty and bool(batches[cluster])
        if point not in placed and len(batches[cluster]) < size and not reserved:
            batches[cluster].append(point)
            placed.add(point)
    return [sorted(batch) for batch in batches]
