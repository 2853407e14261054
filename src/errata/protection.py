"""Protection: learn an edit by steps that leave alone what earlier edits read.

A shift D of a weight moves the output of an earlier edit at its key k, which is what it reads there, by D k. Of all shifts
that serve the new edit alike, the one that moves earlier outputs least is found from

    min over D of   <G, D> + 1/2 |D|^2 + 1/2 p sum_j |D k_j|^2      ->      D = -G (I + p K K^T)^-1

with G the gradient and K the keys of all earlier edits: a ridge, which with p to infinity becomes AlphaEdit's projection
on their null space (arXiv 2410.02355), and is what keeps earlier keys in MEMIT's solve (arXiv 2210.07229, eq. 14). Here it
serves an optimiser: W = W_0 + V R^T with R R^T = (I + p K K^T)^-1 moves so when V moves down its own gradient.
"""

import torch
from torch import Tensor

from errata.errors import EditFailed


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
