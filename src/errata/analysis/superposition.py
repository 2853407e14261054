"""Superposition: whether the keys of unrelated facts interfere where they are stored.

Hu, Cao, Chen, Liu, Zhao, "Knowledge in Superposition: Unveiling the Failures of Lifelong Knowledge Editing for Large
Language Models", AAAI 2025, arXiv 2408.07413.

Sequential ROME writes delta_i (C^-1 k_i)^T / (k_i^T C^-1 k_i) for each fact. On the key of another fact this leaves

    p(k_i, k_j) delta_i,      p(k_i, k_j) = (k_i^T C^-1 k_j) / (k_i^T C^-1 k_i)

so that editing is lossless just where all p vanish: where keys are orthogonal once the covariance C has been whitened.
Few large p among many small ones (a high kurtosis) are the mark of superposition.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from errata.analysis.keys import place, read
from errata.analysis.kurtosis import described, kurtosis, off_diagonal
from errata.associative import ridge
from errata.disk import replace_all
from errata.edit import Edit
from errata.sites import Site
from errata.statistics import statistics

if TYPE_CHECKING:
    from errata.model import EditedModel

LEAST = 8
"""Facts below which a kurtosis says nothing [paper: 128]."""
NEAR_RIGHT = 5.0
"""Degrees from 90 within which an angle counts as right."""
CLOSEST = 5
"""Pairs of facts with the largest p that are named."""
BINS = 121
"""Of the histogram of p."""


def p_matrix(K: Tensor, S: Tensor | None = None) -> Tensor:
    """p(k_i, k_j) in row i, column j, (m, m) float64, of keys K (m, ff) and S = C^-1 (ff, ff); None for S is I."""
    G = gram(K, S)
    return G / G.diagonal()[:, None]


def gram(K: Tensor, S: Tensor | None = None) -> Tensor:
    """k_i^T S k_j, (m, m) float64."""
    K = K.double()
    G = (K if S is None else K @ S.double()) @ K.mT
    return (G + G.mT) / 2


def angles(G: Tensor) -> Tensor:
    """Angles in degrees, (m, m), between keys whose inner products are G (m, m)."""
    norm = G.diagonal().clamp(min=0).sqrt()
    return torch.rad2deg(torch.arccos((G / (norm[:, None] * norm)).clamp(-1, 1)))


class Superposition:
    """The keys of facts at some sites of one unedited model, and the inverse covariances there."""

    def __init__(
        self, model: "EditedModel", facts: Sequence[Edit], sites: Sequence[Site], *, contexts: int = 0,
        tokens: float = 8.0, texts: Sequence[str] | None = None, directory: str | Path | None = None,
    ) -> None:  # fmt: skip
        """Read the keys, and the covariances as `statistics` finds them.

        Raises `BadOption` where the texts have too few tokens for a covariance that can be inverted.
        """
        self.facts, self.sites = list(facts), list(sites)
        known = statistics(model, sites, texts=texts, tokens=tokens, directory=directory)
        self.moments = {site.path: known.moments[site.path] for site in sites}
        for path, moment in self.moments.items():
            moment.check(path)
        self.S = {path: ridge(moment, 1.0) for path, moment in self.moments.items()}
        self.K = {path: seen.keys for path, seen in read(model, sites, place(model, facts, contexts)).items()}

    def p(self, site: Site) -> Tensor:
        """One site's matrix of all p, (m, m)."""
        return p_matrix(self.K[site.path], self.S[site.path])

    def write(self, path: Path) -> None:
        """Write the matrices p of all sites, by their paths, as safetensors (m, m) float32."""
        import safetensors.torch

        content = safetensors.torch.save({site.path: self.p(site).float().cpu().contiguous() for site in self.sites})
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_all(path.parent, {path.name: content})

    def layer(self, site: Site, resamples: int, generator: torch.Generator) -> dict[str, Any]:
        """What one site shows, as numbers for a file."""
        K, S = self.K[site.path], self.S[site.path]
        P, Q = p_matrix(K, S), gram(K)
        white, raw = angles(gram(K, S)), angles(Q)
        return {
            "layer": site.layer,
            "site": site.path,
            "tokens": self.moments[site.path].tokens,
            "p": described(P, resamples, generator),
            "p_without_covariance": described(p_matrix(K), resamples, generator),
            "dot_product": described(Q, resamples, generator),
            "kurtosis_by_facts": {str(m): kurtosis(off_diagonal(P[:m, :m])) for m in _halves(len(P))},
            "angle_whitened": _angles(white),
            "angle_raw": _angles(raw),
            "closest": self._closest(P),
            "histogram": _histogram(P),
        }

    def _closest(self, P: Tensor) -> list[dict[str, Any]]:
        """The pairs with the largest p."""
        beside = P.abs().fill_diagonal_(-1.0)
        best = beside.flatten().topk(min(CLOSEST, len(P))).indices.tolist()
        pairs = [divmod(i, len(P)) for i in best]
        return [
            {"p": float(P[i, j]), "edited": self.facts[i].subject, "disturbed": self.facts[j].subject} for i, j in pairs
        ]


def _halves(m: int) -> list[int]:
    """m, m / 2, ... down to `LEAST`, ascending: whether a kurtosis has converged."""
    found = [m]
    while found[-1] // 2 >= LEAST:
        found.append(found[-1] // 2)
    return found[::-1]


def _angles(angle: Tensor) -> dict[str, float]:
    values = off_diagonal(angle)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(correction=0)),
        "share_near_right": float(((values - 90).abs() <= NEAR_RIGHT).double().mean()),
    }


def _histogram(P: Tensor) -> dict[str, list[float]]:
    values = off_diagonal(P).cpu()
    end = float(values.abs().max()) or 1.0
    counts, edges = torch.histogram(values, BINS, range=(-end, end))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
