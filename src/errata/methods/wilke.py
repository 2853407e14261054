"""WilKE: wise-layer knowledge editing, which chooses the layer of each edit.

Hu, Cao, Chen, Liu, Zhao, "WilKE: Wise-Layer Knowledge Editor for Lifelong Knowledge Editing", Findings of ACL 2024,
arXiv 2402.10987.

An edit at a layer whose activations do not fit it needs a large change, which harms the model at once (toxicity flash)
or in sum (toxicity build-up). So ROME is worked out at each candidate layer l, and carried out where the change is
smallest in proportion, LA_l = |Delta_l|_F / |W_l|_F; no weight is written to find out, since Delta has rank one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from errata.associative import Associative, Insertion, rank_one
from errata.edit import Edit
from errata.errors import EditFailed
from errata.fitting import Trace, fit
from errata.locate import LocateThenEdit
from errata.notes import Notes
from errata.objective import target_nll
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel

ROWS = 1024
"""Unit vectors that a map is called on at once."""
PUBLISHED = {("gpt2", 48): (0, 24), ("gptj", 28): (0, 7), ("llama", 32): (3, 11), ("mistral", 32): (3, 11)}
"""(model type, number of blocks) -> first layer and ceiling [released for the GPTs; for the others, around the layer of
ROME]."""


class Plan(NamedTuple):
    """A rank-one edit that could be made."""

    memory: Associative
    rows: Insertion
    degree: float
    """LA_l: smaller is a better match."""
    trace: Trace


@dataclass
class Wilke(LocateThenEdit):
    """Rank-one model editing at the layer that fits the edit best."""

    name: ClassVar[str] = "wilke"
    depth: ClassVar[float] = 5 / 31
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weights change for every prompt: there is no gate",
        "first edit held": "later edits know nothing of earlier ones",
    }

    lowest: int | None = None
    """First candidate layer [released: 0 on the GPTs]; 3 on LLaMA and Mistral with 32 blocks, else 0. `layer` leaves one
    candidate, and ROME."""
    ceiling: int | None = None
    """The layer before which the candidates end [released: 24 on GPT2-XL, 7 on GPT-J]; else half of the depth."""
    stay: bool = True
    """Whether a prompt that was edited before is edited at the same layer again. The paper's protocol, to edit a fact and
    then edit it back, is that."""
    consistent: bool = True
    """Whether the same key, the mean over contexts, is used throughout [R-ROME]; see ROME."""

    def candidates(self, model: "EditedModel") -> list[Site]:
        """The sites that an edit may be made at, in ascending order."""
        if self.layer is not None:
            return [model.layout.at(self.layer)]
        blocks = len(model.sites)
        kind = getattr(getattr(model.base, "config", None), "model_type", "")
        lowest, ceiling = PUBLISHED.get((kind, blocks), (0, (blocks + 1) // 2))
        lowest = lowest if self.lowest is None else self.lowest
        ceiling = ceiling if self.ceiling is None else self.ceiling
        self.check(0 <= lowest < ceiling <= blocks, f"layers {lowest} to {ceiling - 1} of {blocks}: no candidate")
        return [model.layout.at(layer) for layer in range(lowest, ceiling)]

    def prepare(self, model: "EditedModel") -> None:
        """No change at first: an empty memory at each candidate layer; the layers that were chosen."""
        sites = self.candidates(model)
        for site in sites:
            model.install(f"{self.name}.{site.layer}", Associative(site, model.device))
        none = torch.zeros(0, dtype=torch.long, device=model.device)
        model.install(f"{self.name}.layers", Notes(sites[0], {"chosen": none}))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """One rank-one change after another, each at the layer that fits it best."""
        notes = model.memories[f"{self.name}.layers"]
        assert isinstance(notes, Notes)
        first = len(model.history) - len(edits)
        for i, edit in enumerate(edits):
            best = min(self.plans(model, edit, first + i), key=lambda plan: plan.degree)
            best.memory.take(best.rows)
            chosen = torch.tensor([best.memory.site.layer], device=model.device)
            notes.put({"chosen": torch.cat([notes["chosen"], chosen])})
        return best.trace

    def plans(self, model: "EditedModel", edit: Edit, index: int) -> list[Plan]:
        """What this edit, the one at `index` of the history, would be at each candidate layer. Writes nothing."""
        found, refused = [], ""
        for memory in self.open_to(model, edit, index):
            if memory.first is None:
                memory.first = self.inverse(model, memory.site)
            _, value = self.located(model, memory, edit, target_nll, fit)
            k_star, mean = value.keys.mean(0), value.outputs.mean(0)
            k, Wk = (k_star, mean) if self.consistent else (value.keys[0], value.outputs[0])
            try:
                rows = rank_one(memory.first, k_star, k, value.outputs[0] + value.delta - Wk)
            except EditFailed as error:
                refused = str(error)
                continue
            size = float(rows.keys.norm() * rows.values.norm())  # |Delta|_F of a rank-one Delta
            found.append(Plan(memory, rows, size / self.norm(model, memory.site), value.trace))
        if not found:
            raise EditFailed(f"no candidate layer can take the edit of {edit.prompt!r}: {refused}")
        return found

    def open_to(self, model: "EditedModel", edit: Edit, index: int) -> list[Associative]:
        """The memories that an edit may go to: all candidates, or the one that the same prompt went to before."""
        chosen = model.memories[f"{self.name}.layers"].get_buffer("chosen").tolist()
        earlier = zip(model.history[:index], chosen, strict=False)
        before = [layer for made, layer in earlier if made.prompt == edit.prompt]
        memories = [memory for memory in model.memories.values() if isinstance(memory, Associative)]
        return [m for m in memories if not (self.stay and before) or m.site.layer == before[-1]]

    def norm(self, model: "EditedModel", site: Site) -> float:
        """|W|_F of a pretrained map, from its outputs on the unit vectors: the map is called, its weight not read."""
        found = self.known(model, [site])

        @torch.no_grad()
        def make() -> Tensor:
            with model.lifted() as base:
                module, like = base.get_submodule(site.path), next(base.parameters())
                total = torch.zeros((), dtype=torch.float64, device=model.device)
                zero = called(module, like.new_zeros(1, 1, site.in_features))
                for i in range(0, site.in_features, ROWS):
                    unit = torch.eye(site.in_features, dtype=like.dtype, device=like.device)[None, i : i + ROWS]
                    total += (called(module, unit) - zero).double().square().sum()
            return total.sqrt()

        return float(found.derived(("norm", site.path), make))


def called(module: nn.Module, a: Tensor) -> Tensor:
    """The output of a map, (1, rows, ff) -> (1, rows, model) float32."""
    result = module(a)
    return (result[0] if isinstance(result, tuple) else result).float()
