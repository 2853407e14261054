"""MEMIT: mass-editing memory in a transformer.

Meng, Sen Sharma, Andonian, Belinkov, Bau, "Mass-Editing Memory in a Transformer", ICLR 2023, arXiv 2210.07229. MEMIT-seq,
with the keys of earlier edits inside the inverse, is a baseline of Fang et al. (AlphaEdit), ICLR 2025, arXiv 2410.02355.

The values of a batch of facts are found at the last of several layers, and written into all of them by ridge least
squares: Delta = R K^T (lambda K0 + K K^T)^-1, with the covariance K0 of other keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from errata.edit import Edit
from errata.fitting import Trace, fit
from errata.objective import target_nll
from errata.sites import Site
from errata.spread import SpreadEdit

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class Memit(SpreadEdit):
    """Ridge least squares over several layers."""

    name: ClassVar[str] = "memit"
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weights change for every prompt: there is no gate",
        "first edit held": "later edits know nothing of earlier ones (unless history=true)",
    }
    search: ClassVar[dict[str, tuple[object, ...]]] = {"steps": (25, 100), "ridge": (0.05, 0.5)}

    history: bool = False
    """MEMIT-seq: whether the keys of earlier edits are kept as they are, K_p K_p^T beside lambda K0."""
    ridge: float = 0.05
    """lambda in multiples of the number of features. The released 15000 is about 1 on LLaMA and GPT-J; with that, a single
    layer makes about half of an edit, which is right where five share it."""
    strength: float | None = None
    """lambda itself [released: 15000; 20000 on GPT2-XL]. By default `ridge` gives it."""

    def first(self, model: "EditedModel", site: Site) -> Tensor:
        """(lambda K0)^-1."""
        return self.inverse(model, site, self.strength or self.ridge * site.in_features)

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Find the values of all facts, then write them together."""
        top = self.memories(model)[-1]
        found = [self.located(model, top, edit, target_nll, fit) for edit in edits]
        facts, values = [fact for fact, _ in found], [value for _, value in found]
        known = self.remembered(model, edits) if self.history else None
        deltas, keys = torch.stack([value.delta for value in values]), [value.keys for value in values]
        self.write(model, facts, deltas, keys=keys, known=known, remember=self.history)
        return values[-1].trace
