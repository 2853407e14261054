"""FT-EWC: fine-tuning one matrix under elastic weight consolidation.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, arXiv 1612.00796; as a baseline of
lifelong editing by Hartvigsen et al. (GRACE), NeurIPS 2023, arXiv 2211.11031.

The target's cross-entropy plus lambda sum_j F_j (W_j - W_old_j)^2, where W_old is the weight before this edit and F, the
diagonal of the Fisher information, says which entries matter for what must be kept: earlier edits, or what the model knew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace, fit
from errata.memory import Delta, add
from errata.objective import target_nll
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel

KEPT = ("edits", "irrelevant")


class Consolidated(Delta):
    """A dense shift of W, and the running Fisher information of its entries: (model, ff) each."""

    fisher: Tensor

    def __init__(self, site: Site, keep: str, device: torch.device | None = None) -> None:
        super().__init__(site, device)
        shape = (site.out_features, site.in_features) if keep == "irrelevant" else (0, 0)
        self.register_buffer("fisher", torch.zeros(shape, device=device))


@dataclass
class FTEWC(Editor):
    """Fine-tuning of one matrix under a quadratic penalty, weighted by the Fisher information."""

    name: ClassVar[str] = "ft_ewc"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "lr": (0.01, 0.025, 0.1), "penalty": (0.1, 10.0, 1000.0), "keep": ("edits", "irrelevant"),
    }  # fmt: skip
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weight changes for every prompt: there is no gate",
        "first edit held": "the penalty slows the overwriting of earlier edits, and does not prevent it",
    }

    steps: int = 100
    """Most Adam steps an edit [GRACE]."""
    lr: float = 0.025
    """Learning rate [GRACE: 1e-2, where an entry of W is about .02; a small model does not survive that]."""
    scaled: bool = True
    """Whether `lr` is in units of the layer, a typical entry of W; `false` takes it as it is: 1e-2 [GRACE]."""
    penalty: float = 0.1
    """lambda [GRACE]."""
    keep: str = "edits"
    """What the Fisher information is of: the most recent `edits` [GRACE], or the `irrelevant` prompts and their answers,
    as a running mean over the stream."""
    samples: int = 10
    """Gradients in each estimate of F [GRACE: the 10 most recent edits]."""
    decay: float = 0.9
    """With `keep="irrelevant"`: the weight of the earlier estimates in the running mean."""
    loss: float = 1e-2
    """Stop when the loss is below this. The released code stops where every target token is the most probable one."""

    def __post_init__(self) -> None:
        self.check_one_of(keep=KEPT)
        self.check(self.penalty >= 0, f"penalty={self.penalty}: not negative")
        self.check(self.samples >= 1, f"samples={self.samples}: at least 1")
        self.check(0 <= self.decay < 1, f"decay={self.decay}: a share, in [0, 1)")

    def prepare(self, model: "EditedModel") -> None:
        """One dense shift, zero at first, and no Fisher information."""
        model.install(self.name, Consolidated(model.site(self), self.keep, model.device))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Estimate F, then descend on the penalised loss."""
        memory = model.memories[self.name]
        assert isinstance(memory, Consolidated)
        fisher, kept = self._fisher(model, memory, len(model.history) - len(edits))
        rows = model.rows([(edit.prompt, edit.target) for edit in edits])
        suffix = model.suffix(memory, rows)
        a, labels, row = suffix.a.to(memory.shift.dtype), rows.labels, rows.row_of_label
        old = memory.shift
        shift = old.clone().requires_grad_()

        def loss() -> Tensor:
            logits = suffix.logits(lambda _, y: add(y, F.linear(a, shift)))
            return target_nll(logits, labels, row) + self.penalty * consolidation(shift, old, fisher)

        unit = model.entry(memory) if self.scaled else 1.0
        trace = fit([shift], loss, steps=self.steps, lr=self.lr * unit, optimizer="adam", stop=Stop(self.loss))
        memory.put({"shift": shift.detach(), "fisher": kept})
        return trace

    def _fisher(self, model: "EditedModel", memory: Consolidated, index: int) -> tuple[Tensor, Tensor]:
        """F for the edit at this index, (model, ff), and what of it the memory keeps."""
        if self.keep == "edits":
            recent = model.history[max(0, index - self.samples) : index]
            return fisher_of(model, memory, [(edit.prompt, edit.target) for edit in recent]), memory.fisher
        probes = [probe for probe in model.sampling.irrelevant if probe.answer]
        order = torch.randperm(len(probes), generator=model.sampling.generator("ft_ewc/fisher", index))
        drawn = [probes[i] for i in order[: self.samples].tolist()]
        new = fisher_of(model, memory, [(probe.prompt, probe.answer or "") for probe in drawn])
        running = self.decay * memory.fisher + (1 - self.decay) * new if index else new
        return running, running


def fisher_of(model: "EditedModel", memory: Delta, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """F = (1/m) sum_i g_i^2, (model, ff), g_i the gradient of -log P(answer | prompt) a token; 0 of no pairs."""
    found = torch.zeros_like(memory.shift)
    if not pairs:
        return found
    rows = model.rows(pairs)
    suffix = model.suffix(memory, rows)
    shift = memory.shift.clone().requires_grad_()
    a = suffix.a.to(shift.dtype)
    logits = suffix.logits(lambda _, y: add(y, F.linear(a, shift)))
    for i in range(len(pairs)):
        own = rows.row_of_label == i
        nll = F.cross_entropy(logits[own].float(), rows.labels[own])
        (g,) = torch.autograd.grad(nll, shift, retain_graph=i + 1 < len(pairs))
        found += g**2 / len(pairs)
    return found


def consolidation(shift: Tensor, old: Tensor, fisher: Tensor) -> Tensor:
    """sum_j F_j (W_j - W_old_j)^2."""
    return (fisher * (shift - old) ** 2).sum()
