"""Kurtosis: how heavy the tails of many numbers are.

    Pearson's   E[(x - mean)^4] / E[(x - mean)^2]^2: 3 for a normal distribution, larger where few values are very large
    excess      Pearson's - 3

The numbers of a matrix over pairs of facts are not independent, as each fact is part of many. So intervals come from
resampling facts, not pairs (the bootstrap of dyadic data).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

AT_ONCE = 100
"""Resamples that are worked out together."""


class Interval(NamedTuple):
    """The middle 95 % of what resampling gives."""

    low: float
    high: float


def kurtosis(values: Tensor) -> float:
    """Pearson's kurtosis of numbers of any shape; 0 where all are equal."""
    x = values.double().flatten()
    square = (x - x.mean()).square()
    variance = square.mean()
    return float(square.square().mean() / variance.square()) if float(variance) > 0 else 0.0


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries (m (m - 1),) of a matrix (m, m) beside its diagonal."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)]


def interval(matrix: Tensor, resamples: int, generator: torch.Generator) -> Interval:
    """The interval of the Pearson kurtosis of a matrix (m, m) over pairs of different facts."""
    m = len(matrix)
    mean = off_diagonal(matrix).mean()
    centred = (matrix.double() - mean).fill_diagonal_(0.0)
    powers = [centred**n for n in (1, 2, 3, 4)]
    found = []
    for start in range(0, resamples, AT_ONCE):
        count = min(AT_ONCE, resamples - start)
        drawn = torch.randint(m, (count, m), generator=generator).to(matrix.device)
        w = torch.zeros(count, m, dtype=torch.float64, device=matrix.device)
        w.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        pairs = w.sum(1).square() - w.square().sum(1)  # a fact that was drawn twice makes no pair with itself
        m1, m2, m3, m4 = (((w @ power) * w).sum(1) / pairs for power in powers)
        variance = m2 - m1**2
        found.append((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)
    low, high = torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high)


def described(matrix: Tensor, resamples: int, generator: torch.Generator) -> dict[str, Any]:
    """Mean, spread and tails of the entries beside the diagonal; `interval` is that of `pearson`."""
    values = off_diagonal(matrix).double()
    pearson, bounds = kurtosis(values), interval(matrix, resamples, generator)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(correction=0)),
        "largest": float(values.abs().max()),
        "pearson": pearson,
        "excess": pearson - 3.0,
        "interval": list(bounds),
    }
