"""Protection: learn an edit by steps that leave alone what earlier edits read.

A shift D of a weight moves the output of an earlier edit at its key k, which is what it reads there, by D k. Of all shifts
that serve the new edit alike, the one that moves earlier outputs least is found from

    min over D of   <G, D> + 1/2 |D|^2 + 1/2 p sum_j |D k_j|^2      ->      D = -G (I + p K K^T)^-1

with G the gradient and K the keys of all earlier edits: a ridge, which with p to infinity becomes AlphaEdit's projection
on their null space (arXiv 2410.02355), and is what keeps earlier keys in MEMIT's solve (arXiv 2210.07229, eq. 14). Here it
serves an optimiser: W = W_0 + V R^T with R R^T = (I + p K K^T)^-1 moves so when V moves down its own gradient.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from errata.errors import EditFailed

if TYPE_CHECKING:
    from errata.batch import Batch
    from errata.residual_memory import ResidualMemory


def second_moment(keys: Tensor, rows: int) -> Tensor:
    """K K^T of the tokens of `rows` wordings of one edit, as of one wording: (tokens, n) -> (n, n)."""
    return keys.T @ keys / rows


def root(moment: Tensor, keys: Tensor, p: float) -> Tensor:
    """R (n, n), upper triangular, with R R^T = (I + p `moment` / e)^-1.

    `moment` (n, n) is K K^T of earlier edits; e, the mean |k|^2 of the new edit's own `keys` (tokens, n), makes p a number
    without units. Raises `EditFailed` for a moment that is none: not positive, or not finite.
    """
    energy = keys.square().sum(1).mean().clamp(min=torch.finfo(keys.dtype).tiny)
    ridge = moment * (p / energy)
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    rounding = len(moment) * torch.finfo(moment.dtype).eps * ridge.diagonal().amax()
    factor, failed = torch.linalg.cholesky_ex(ridge + eye * (1 + rounding))
    if failed:
        raise EditFailed("what earlier edits read cannot be protected: its moment is not positive; try protect=0")
    return torch.linalg.solve_triangular(factor, eye, upper=False).T


def roots(
    memory: "ResidualMemory", batch: "Batch", columns: Sequence[Tensor], met: Sequence[bool], p: float
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The moment with these edits in it; and of each edit R (n, n), which protects all others, those beside it too.

    What a prompt that was `met` before had been taught is not protected from it.
    """
    if memory.moment is None:
        return None, [None] * len(columns)
    moment, rows = memory.moment.clone(), batch.whole.rows
    where = (batch.whole.each(of) for of in (batch.whole.suffix.a, rows.attention.bool(), rows.prompt))
    seen = []
    for a, there, prompt, own, known in zip(*where, columns, met, strict=True):
        a, square = memory.read(a)[..., own].float(), (own[:, None], own)
        if known:
            moment[square] -= second_moment(a[prompt], len(a))
        keys = a[there]
        seen.append((square, keys, second_moment(keys, len(a))))
        moment[square] += seen[-1][-1]
    return moment, [root(moment[square] - mine, keys, p) for square, keys, mine in seen]
