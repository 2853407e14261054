"""Merging: one shift of a weight out of several. Pure functions of tensors (methods.md section 3; TIES, DARE).

Every `taus` is a sequence of k shifts of one shape; weights default to 1/k.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def linear(taus: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean: sum w_i tau_i / sum w_i."""
    stacked, w = _stack(taus, weights)
    return (w * stacked).sum(0) / w.sum()


def trim(tau: Tensor, density: float) -> Tensor:
    """Keep the int(density * numel) entries of largest magnitude, zero the rest."""
    keep = int(density * tau.numel())
    if keep >= tau.numel():
        return tau
    kept = torch.zeros(tau.numel(), dtype=torch.bool, device=tau.device)
    kept[tau.abs().flatten().topk(keep).indices] = True
    return torch.where(kept.view_as(tau), tau, 0)


def sign(taus: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Elect a sign an entry, then the weighted mean of the shifts that agree with it (0 where none does)."""
    stacked, w = _stack(taus, weights)
    elected = torch.where((w * stacked).sum(0) >= 0, 1.0, -1.0)
    agree = (stacked * elected > 0).to(stacked.dtype)
    return (agree * w * stacked).sum(0) / (agree * w).sum(0).clamp(min=torch.finfo(stacked.dtype).tiny)


def ties(taus: Sequence[Tensor], weights: Sequence[float] | None = None, density: float = 0.53) -> Tensor:
    """TIES (Yadav et al. 2023): trim, elect signs, merge what agrees. Disjoint shifts are kept whole."""
    return sign([trim(tau, density) for tau in taus], weights)


def _stack(taus: Sequence[Tensor], weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(list(taus))
    w = torch.tensor(weights if weights is not None else [1 / len(taus)] * len(taus), dtype=stacked.dtype)
    return stacked, w.to(stacked.device).view(-1, *[1] * (stacked.dim() - 1))


OPERATORS = {"linear": linear, "sign": sign, "ties": ties}
