"""Spread: one closed-form edit over several layers, as MEMIT and AlphaEdit do it.

The values are found at the last of the layers. Then, from the first layer to the last, each takes an equal share of what
is still missing there,

    r = (z - h_L) / (layers that are left),      z = h_L + delta before the edit                    (MEMIT, eq. 20)

and writes it with the closed form (associative.py), reading its keys from the model in which the layers below are already
changed. The last layer takes all that is missing. h_L is the residual stream after the last layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from errata.associative import Associative, insert
from errata.edit import Edit
from errata.locate import Fact, LocateThenEdit
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel


class Seen(NamedTuple):
    """What one fact's rows look like in the model as it is now."""

    keys: Tensor
    """(contexts, ff) the inputs of one site at the place of the fact."""
    stream: Tensor
    """(model,) the residual stream h_L there, on the bare prompt."""


@dataclass
class SpreadEdit(LocateThenEdit, ABC):
    """Locate-then-edit over a run of layers that ends at `layer`."""

    depth: ClassVar[float] = 8 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {
        ("gpt2", 48): 17, ("gptj", 28): 8, ("llama", 32): 8, ("mistral", 32): 8,
    }  # fmt: skip
    published_spread: ClassVar[dict[tuple[str, int], int]] = {("gptj", 28): 6}
    """(model type, number of blocks) -> how many layers, where it is not five."""

    spread: int | None = None
    """Layers that share an edit, up to the last one, `layer`. By default 5 [released: 5, 6 on GPT-J], or 5/32 of the
    blocks of a model with fewer than 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.spread is None or self.spread >= 1, f"spread={self.spread}: at least 1")

    def bytes_beside(self, features: int, weights: int, edits: int) -> int:
        """Those of every layer that shares an edit, five of a large model."""
        return (self.spread or 5) * super().bytes_beside(features, weights, edits)

    @abstractmethod
    def first(self, model: "EditedModel", site: Site) -> Tensor:
        """S of one site before any edit, (ff, ff) float64."""

    def prepare(self, model: "EditedModel") -> None:
        """No change at first: one empty memory a layer, called by method and layer."""
        for site in self.run_of_sites(model):
            model.install(f"{self.name}.{site.layer}", Associative(site, model.device))

    def run_of_sites(self, model: "EditedModel") -> list[Site]:
        """The sites that share an edit, in ascending order."""
        last = model.site(self).layer
        blocks = len(model.sites)
        kind = getattr(getattr(model.base, "config", None), "model_type", "")
        usual = self.published_spread.get((kind, blocks), min(5, max(1, round(blocks * 5 / 32))))
        count = min(self.spread or usual, last + 1)
        return [model.layout.at(layer) for layer in range(last + 1 - count, last + 1)]

    def memories(self, model: "EditedModel") -> list[Associative]:
        """This method's memories, in ascending order of their layers."""
        return [memory for memory in model.memories.values() if isinstance(memory, Associative)]

    def write(
        self, model: "EditedModel", facts: Sequence[Fact], deltas: Tensor, *, keys: Sequence[Tensor] | None = None,
        known: Tensor | None = None, remember: bool = False,
    ) -> None:  # fmt: skip
        """Insert facts, layer by layer: `deltas` (facts, model) are what the last layer's output is to be changed by.

        `keys`, (contexts, ff) a fact, spare a forward where they are known and the layer is the only one. `remember` lets
        later edits see the keys; `known` (facts,) bool says which of them are remembered already.
        """
        memories = self.memories(model)
        z: Tensor | None = None
        for i, memory in enumerate(memories):
            if len(memories) > 1 or keys is None:
                seen = [look(model, fact, memory, memories[-1].site.layer) for fact in facts]
                keys = [one.keys for one in seen]
                h = torch.stack([one.stream for one in seen])
                z = h + deltas if z is None else z
                missing = z - h
            else:
                missing = deltas
            K = torch.stack([weighted(k) for k in keys])
            if memory.first is None:
                memory.first = self.first(model, memory.site)
            rows = insert(memory.product(K), K, missing / (len(memories) - i), known)
            memory.take(rows if remember else rows._replace(counts=torch.zeros_like(rows.counts)))

    def remembered(self, model: "EditedModel", edits: Sequence[Edit]) -> Tensor:
        """(edits,) bool: which of these new edits are of a prompt and subject that were edited before."""
        earlier = {(edit.prompt, edit.subject) for edit in model.history[: len(model.history) - len(edits)]}
        return torch.tensor([(edit.prompt, edit.subject) in earlier for edit in edits], device=model.device)


def weighted(keys: Tensor) -> Tensor:
    """The key of a fact: the bare prompt weighs as much as all prefixed ones [released]; (contexts, ff) -> (ff,)."""
    return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(0)) / 2


class _Reached(Exception):
    """Ends a forward at the block that is looked at."""


@torch.no_grad()
def look(model: "EditedModel", fact: Fact, memory: Associative, layer: int) -> Seen:
    """What a memory reads, and the residual stream after block `layer`, in one forward that ends there."""
    seen: list[Tensor] = []

    def read(module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        seen.append(args[0])

    def arrive(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    block = model.base.get_submodule(f"{model.layout.blocks}.{layer}")
    hooks = memory.register_forward_pre_hook(read), block.register_forward_hook(arrive)
    try:
        with suppress(_Reached), model.routing.prompt_is(fact.rows.prompt):
            model.base(input_ids=fact.rows.ids, attention_mask=fact.rows.attention, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Seen(fact.at(seen[0]), fact.at(seen[1])[0])
