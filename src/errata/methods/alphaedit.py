"""AlphaEdit: editing in the null space of the knowledge that is to be preserved.

Fang, Jiang, Wang, Ma, Jie, Wang, He, Chua, "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models",
ICLR 2025, arXiv 2410.02355.

MEMIT whose change of each matrix is projected onto the directions that other keys hardly use, so that what the map
answers there stays as it is; the keys of earlier edits are kept in the solve:
Delta = R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1, worked out in the range of P.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from errata.associative import null_space
from errata.edit import Edit
from errata.errors import EditFailed
from errata.fitting import Trace, fit
from errata.objective import target_nll
from errata.sites import Site
from errata.spread import SpreadEdit

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class AlphaEdit(SpreadEdit):
    """Least squares in the null space of preserved knowledge."""

    name: ClassVar[str] = "alphaedit"
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weights change for every prompt: there is no gate",
        "first edit held": "the keys of all edits fill the null space, which in a small map is narrow to begin with",
    }
    search: ClassVar[dict[str, tuple[object, ...]]] = {"steps": (25, 100), "threshold": (0.2, 0.5)}

    threshold: float = 0.2
    """Directions of K0 with eigenvalues below this span the null space; in units of their mean, see `scaled` [released:
    2e-2 as it is]."""
    L2: float = 1e-3
    """Weight of |Delta|^2; in units of the mean |k|^2, see `scaled` [released: 10 as it is]."""

    def first(self, model: "EditedModel", site: Site) -> Tensor:
        """P / L2: the inverse of L2 I in the range of P."""
        found = self.known(model, [site])
        moment = found.moments[site.path]
        moment.check(site.path)
        threshold = self.threshold * (moment.energy / site.in_features if self.scaled else 1.0)
        L2 = self.L2 * (moment.energy if self.scaled else 1.0)

        def make() -> Tensor:
            P = null_space(moment, threshold)
            if not bool(P.any()):
                raise EditFailed(
                    f"no direction of the keys of {site.path} has an eigenvalue below {threshold:.2g}: nothing may be"
                    " changed; set threshold higher"
                )
            return P / L2

        return found.derived(("null space", site.path, threshold, L2), make)

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Find the values of all facts, then write them together in the null space."""
        top = self.memories(model)[-1]
        found = [self.located(model, top, edit, target_nll, fit) for edit in edits]
        facts, values = [fact for fact, _ in found], [value for _, value in found]
        deltas, keys = torch.stack([value.delta for value in values]), [value.keys for value in values]
        self.write(model, facts, deltas, keys=keys, known=self.remembered(model, edits), remember=True)
        return values[-1].trace
