"""Merging: one shift of a weight out of several. Pure functions of tensors (methods.md section 3).

Every `taus` is a sequence of k shifts of one shape, each a weight less the pretrained one; `weights` default to 1/k. None
of the operators reads the pretrained weight. The definitions are those of MergeKit's task arithmetic, which WISE used;
TIES is Yadav et al. 2023 (arXiv 2306.01708), DARE is Yu et al. 2024 (arXiv 2311.03099).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OPERATORS = ("linear", "slerp", "ties", "sign", "dare", "dare_ties")
DENSITY = 0.53
"""Share of the entries that Ties keeps, and Dare on average [WISE, released]."""
PARALLEL = 0.9995
"""|cos| between two shifts above which slerp is the straight line between them."""


class Merging(NamedTuple):
    """How the shards of a stream are merged."""

    operator: str
    density: float
    drops: Callable[[int], torch.Generator]
    """The random numbers (CPU) by which Dare drops entries in a round."""

    def merge(self, taus: Sequence[Tensor], weights: Sequence[float], round_: int) -> Tensor:
        """The shift of a round, -1 of none, out of several."""
        return merge(self.operator, taus, weights, density=self.density, generator=self.drops(round_))

    def at(self, taus: Sequence[Tensor], weights: Sequence[float], where: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The merged entries at the places `where`, as a function of those of the last shift: (entries,) -> (entries,).

        The last shift is 0 elsewhere; the others are looked at once. None where an entry depends on more than the same
        entries of all shifts, which Dare's and Slerp's do.
        """
        *others, last = taus
        if not others:
            return lambda values: values
        if self.operator not in ("linear", "ties", "sign"):
            return None
        trimmed = self.operator == "ties"
        keep, whole = int(self.density * last.numel()), linear if self.operator == "linear" else sign
        fixed = [(trim(tau, self.density) if trimmed else tau).flatten()[where] for tau in others]
        return lambda values: whole([*fixed, _largest(values, keep) if trimmed else values], weights)


def merge(
    operator: str,
    taus: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    density: float = DENSITY,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The shift that the operator of this name makes; one shift alone is left as it is."""
    if len(taus) == 1:
        return taus[0]
    match operator:
        case "linear":
            return linear(taus, weights)
        case "slerp":
            return slerp(taus, weights)
        case "sign":
            return sign(taus, weights)
        case "ties":
            return ties(taus, weights, density)
        case "dare":
            return dare(taus, weights, density, generator)
        case "dare_ties":
            return dare_ties(taus, weights, density, generator)
    raise ValueError(f"merge operator {operator!r}: one of {', '.join(OPERATORS)}")


def linear(taus: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean: sum w_i tau_i / sum w_i."""
    stacked, w = _stack(taus, weights)
    return (w * stacked).sum(0) / w.sum()


def slerp(taus: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Along the great circle from one shift to the next: [sin((1-t) Omega) u_1 + sin(t Omega) u_2] / sin Omega.

    t = w_2 / (w_1 + w_2); more than two are folded from the left. MergeKit takes the angle between whole weights, whose
    cosine is 1 but for rounding, so that it falls back to the straight line; between shifts the circle is one.
    """
    shares = list(weights) if weights is not None else [1 / len(taus)] * len(taus)
    merged, total = taus[0], shares[0]
    for tau, w in zip(taus[1:], shares[1:], strict=True):
        total += w
        merged = _arc(merged, tau, w / total)
    return merged


def trim(tau: Tensor, density: float) -> Tensor:
    """Keep the int(density * numel) entries of largest magnitude, zero the rest."""
    return _largest(tau, int(density * tau.numel()))


def _largest(tau: Tensor, keep: int) -> Tensor:
    """Keep so many entries of largest magnitude, zero the rest."""
    if keep >= tau.numel() or int(tau.count_nonzero()) <= keep:
        return tau
    kept = torch.zeros(tau.numel(), dtype=torch.bool, device=tau.device)
    kept[tau.detach().abs().flatten().topk(keep).indices] = True
    return torch.where(kept.view_as(tau), tau, 0)


def sign(taus: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Elect a sign an entry, then the weighted mean of the shifts that agree with it (0 where none does)."""
    stacked, w = _stack(taus, weights)
    weighted = w * stacked
    agree = _elected(stacked, weighted)
    return (agree * weighted).sum(0) / (agree * w).sum(0).clamp(min=torch.finfo(stacked.dtype).tiny)


def ties(taus: Sequence[Tensor], weights: Sequence[float] | None = None, density: float = DENSITY) -> Tensor:
    """Trim, elect signs, merge what agrees. Disjoint shifts are kept whole."""
    return sign([trim(tau, density) for tau in taus], weights)


def drop(tau: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """Keep each entry with probability `density`, scaled by 1 / density so that the expectation is the shift itself.

    `generator` (CPU) is one of seed 0 by default.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    kept = torch.rand(tau.shape, generator=generator) < density
    return tau * kept.to(tau) / density


def dare(
    taus: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    density: float = DENSITY,
    generator: torch.Generator | None = None,
) -> Tensor:
    """DARE: drop entries of each shift at random, then sum w_i tau_i, not normalised."""
    stacked, w = _stack(_dropped(taus, density, generator), weights)
    return (w * stacked).sum(0)


def dare_ties(
    taus: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    density: float = DENSITY,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop at random, elect signs, then sum w_i tau_i over the shifts that agree, not normalised."""
    stacked, w = _stack(_dropped(taus, density, generator), weights)
    weighted = w * stacked
    return (_elected(stacked, weighted) * weighted).sum(0)


def _dropped(taus: Sequence[Tensor], density: float, generator: torch.Generator | None) -> list[Tensor]:
    """Every shift with entries of its own dropped: one stream of random numbers serves them all."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return [drop(tau, density, generator) for tau in taus]


def _elected(stacked: Tensor, weighted: Tensor) -> Tensor:
    """1 where a shift's entry has the sign of the weighted sum (+ where that is 0), 0 elsewhere: (k, ...) each."""
    elected = (weighted.sum(0).sign() + 0.5).sign()
    return (stacked * elected > 0).to(stacked.dtype)


def _arc(one: Tensor, two: Tensor, t: float) -> Tensor:
    with torch.no_grad():
        norms = float(one.norm() * two.norm())
        cos = float((one * two).sum()) / norms if norms > 0 else 1.0
    if abs(cos) > PARALLEL:
        return (1 - t) * one + t * two
    omega = torch.acos(torch.tensor(cos, dtype=torch.float64))
    from_one, from_two = (torch.sin(part * omega) / torch.sin(omega) for part in (1 - t, t))
    return float(from_one) * one + float(from_two) * two


def _stack(taus: Sequence[Tensor], weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(list(taus))
    w = torch.tensor(weights if weights is not None else [1 / len(taus)] * len(taus), dtype=stacked.dtype)
    return stacked, w.to(stacked.device).view(-1, *[1] * (stacked.dim() - 1))
