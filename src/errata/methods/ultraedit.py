"""UltraEdit: one step, in closed form, with lifelong normalisation.

Gu, Liu, Li, Yang, Guo, Zhang, Zheng, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language
Models", TMLR 2026, arXiv 2505.14679.

One forward and one backward pass give, for every target token, what each edited map reads there, h, and the gradient at
its output, g. Both are normalised by the running mean and deviation over all edits so far. The output should move against
the normalised gradient, v = -lr (h . h~) g~, and ridge least squares writes that: Delta = V^T H (H^T H + lambda I)^-1.
There is no inner optimisation, no subject, and nothing is kept but the running statistics.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from errata.associative import Associative, Insertion, insert
from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Trace, fit
from errata.notes import Notes
from errata.objective import target_nll
from errata.sites import Site
from errata.tokens import Rows

if TYPE_CHECKING:
    from errata.model import EditedModel


class Feature(NamedTuple):
    """What one map reads and gets as gradient at the positions before the target tokens."""

    h: Tensor
    """(tokens, ff)"""
    g: Tensor
    """(tokens, model)"""


@dataclass
class UltraEdit(Editor):
    """One normalised gradient step, written in closed form."""

    name: ClassVar[str] = "ultraedit"
    depth: ClassVar[float] = 24 / 31
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weights change for every prompt: there is no gate",
        "first edit held": "later edits know nothing of earlier ones",
        "target probability": "one step of fixed length need not go down on every model",
        "contradiction": "one step of the usual length need not undo an earlier one",
    }
    search: ClassVar[dict[str, tuple[object, ...]]] = {"lr": (0.5, 1.0, 2.0), "ridge": (0.1, 1.0, 10.0)}

    spread: int | None = None
    """Layers that are edited, up to `layer`. By default 8, or a quarter of the blocks of a smaller model. (The released
    settings edit gate and up projections of some ten layers in the middle; here every site is an FFN output projection.)"""
    lr: float = 2.0
    """Length of the step; in units of the layer, see `scaled` [released: 1e-6 as it is]."""
    ridge: float = 0.1
    """lambda; in units of the mean |h|^2, see `scaled` [released: 1 as it is]."""
    scaled: bool = True
    """Whether `lr` is in units of |y| / (sqrt(model width) E[h . h~]), which makes v as long as `lr` times the output y,
    and `ridge` in units of E|h|^2; `false` takes them as they are."""
    warm: int = 64
    """Irrelevant prompts whose answers start the running statistics, so that the first edit can be normalised. The paper
    has its first batch of 100 edits for that; 0 leaves it so, and an edit of one token made first is then lost."""

    def __post_init__(self) -> None:
        self.check(self.spread is None or self.spread >= 1, f"spread={self.spread}: at least 1")
        self.check(self.ridge > 0, f"ridge={self.ridge}: a positive number")
        self.check(self.warm >= 0, f"warm={self.warm}: not negative")

    def run_of_sites(self, model: "EditedModel") -> list[Site]:
        """The sites that are edited, in ascending order."""
        last = model.site(self).layer
        count = self.spread or min(8, max(1, round(len(model.sites) / 4)))
        return [model.layout.at(layer) for layer in range(max(0, last + 1 - count), last + 1)]

    def prepare(self, model: "EditedModel") -> None:
        """No change at first; no statistics until they are needed."""
        for site in self.run_of_sites(model):
            width = site.in_features + site.out_features
            empty = {name: torch.zeros(width, dtype=torch.float64, device=model.device) for name in ("mean", "square")}
            empty["count"] = torch.zeros((), dtype=torch.float64, device=model.device)
            model.install(f"{self.name}.{site.layer}", Associative(site, model.device))
            model.install(f"{self.name}.{site.layer}.normaliser", Notes(site, empty))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """One step for all of these edits together."""
        memories = [memory for memory in model.memories.values() if isinstance(memory, Associative)]
        notes = [model.memories[f"{memory.name}.normaliser"] for memory in memories]
        if self.warm and float(notes[0].get_buffer("count")) == 0:
            known = [probe for probe in model.sampling.irrelevant if probe.answer][: self.warm]
            if known:
                rows = model.rows([(probe.prompt, probe.answer or "") for probe in known])
                for note, feature in zip(notes, self.features(model, memories, rows)[0], strict=True):
                    note.put(updated(note.tensors(), feature))
        features, trace = self.features(model, memories, model.rows([(edit.prompt, edit.target) for edit in edits]))
        for memory, note, feature in zip(memories, notes, features, strict=True):
            statistics = updated(note.tensors(), feature)
            note.put(statistics)
            memory.take(self.step(feature, statistics, model.gain(memory)))
        return trace

    def features(
        self, model: "EditedModel", memories: Sequence[Associative], rows: Rows
    ) -> tuple[list[Feature], Trace]:
        """h and g of every map at the positions before the target tokens of these rows, from one backward pass.

        The gradient is found as one step of plain descent on offsets to the maps' outputs. It is that of the sum over
        rows, so that what an edit contributes does not depend on how many are made with it.
        """
        suffix = model.suffix(memories[0], rows)
        shapes = [(*rows.ids.shape, memory.site.out_features) for memory in memories]
        offsets = [torch.zeros(shape, device=model.device, requires_grad=True) for shape in shapes]
        count, labels, row = len(rows.ids), rows.labels, rows.row_of_label
        with offset_outputs(memories, offsets) as inputs:

            def loss() -> Tensor:
                return count * target_nll(suffix.logits(), labels, row)

            trace = fit(offsets, loss, steps=1, lr=1.0)
        found = [
            Feature(a[rows.wanted].float(), -offset.detach()[rows.wanted])
            for a, offset in zip(inputs, offsets, strict=True)
        ]
        return found, Trace(tuple(value / count for value in trace.losses))

    def step(self, feature: Feature, statistics: dict[str, Tensor], gain: float) -> Insertion:
        """Delta for one map, as rows; `gain` is |y| / |a| of the map."""
        h, g = feature.h.double(), feature.g.double()
        ff = h.shape[1]
        mean, deviation = statistics["mean"], (statistics["square"] / statistics["count"]).sqrt()
        normal = (torch.cat([h, g], dim=1) - mean) / deviation.clamp(min=1e-12)
        normal = torch.where(deviation > 0, normal, 0.0)
        energy = float((deviation[:ff].square() + mean[:ff].square()).sum())  # E|h|^2
        usual = float(deviation[:ff].sum())  # E[h . h~]
        unit = gain * energy**0.5 / (g.shape[1] ** 0.5 * max(usual, 1e-12)) if self.scaled else 1.0
        V = -self.lr * unit * (h * normal[:, :ff]).sum(1, keepdim=True) * normal[:, ff:]
        ridge = self.ridge * (energy if self.scaled else 1.0)
        rows = insert(h / ridge, h, V)
        return rows._replace(counts=torch.zeros_like(rows.counts))


def updated(statistics: dict[str, Tensor], feature: Feature) -> dict[str, Tensor]:
    """Running mean and sum of squared deviations (Welford, for batches) with these features in them."""
    x = torch.cat([feature.h, feature.g], dim=1).double()
    n, m = statistics["count"], len(x)
    mean, square = x.mean(0), (x - x.mean(0)).square().sum(0)
    shift = mean - statistics["mean"]
    return {
        "count": n + m,
        "mean": statistics["mean"] + shift * m / (n + m),
        "square": statistics["square"] + square + shift.square() * n * m / (n + m),
    }


@contextmanager
def offset_outputs(memories: Sequence[Associative], offsets: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Scope: each memory's output is offset; yields the list of what the memories read in the latest forward."""
    inputs: list[Tensor] = [torch.empty(0)] * len(memories)

    def hook(i: int) -> Callable[[nn.Module, tuple[Tensor, Tensor], Tensor], Tensor]:
        def add_offset(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
            inputs[i] = args[0].detach()
            return (output + offsets[i]).to(output.dtype)

        return add_offset

    with ExitStack() as stack:
        for i, memory in enumerate(memories):
            stack.callback(memory.register_forward_hook(hook(i)).remove)
        yield inputs
