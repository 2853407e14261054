"""LocFT-BF: localised fine-tuning, breadth-first.

Yang, Sun et al., "Fine-tuning Done Right in Model Editing", ICLR 2026, arXiv 2509.22072.

Fine-tuning fails as an editor because it is run depth-first, one edit to convergence after another. Here one late FFN
output projection is trained in epochs of mini-batches over all edits at hand. Along a stream these are the new edits and
a sample of earlier ones, which are kept as text and replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace, fit
from errata.memory import Delta, add
from errata.objective import target_nll
from errata.suffix import Suffix
from errata.tokens import Rows

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class LocFTBF(Editor):
    """Breadth-first fine-tuning of one late matrix, with replay."""

    name: ClassVar[str] = "locft_bf"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "lr": (0.01, 0.02, 0.05), "replay": (8, 32, 128), "epochs": (10, 30),
    }  # fmt: skip
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weight changes for every prompt: there is no gate",
    }

    epochs: int = 30
    """Most passes over the new edits and the replayed ones."""
    batch: int = 64
    """Edits in a mini-batch."""
    replay: int = 32
    """Earlier edits in force that are trained along with new ones. The paper trains all edits at once, and has no
    stream; 0 is depth-first fine-tuning."""
    lr: float = 0.02
    """Learning rate of Adam, in units of the layer, a typical entry of W."""
    loss: float = 0.01
    """Stop when the mean loss of an epoch is below this; a single edit of a full mini-batch may still be far above it."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            self.check(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1")
        self.check(self.replay >= 0, f"replay={self.replay}: not negative")

    def prepare(self, model: "EditedModel") -> None:
        """One dense shift, zero at first."""
        model.install(self.name, Delta(model.site(self), model.device))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Train the new edits and the replayed ones together, a mini-batch a step."""
        memory = model.memories[self.name]
        assert isinstance(memory, Delta)
        shift = memory.shift.clone().requires_grad_()
        batches = self._batches(model, memory, edits)
        turns = cycle([(suffix, suffix.a.to(shift.dtype), rows.labels, rows.row_of_label) for rows, suffix in batches])

        def loss() -> Tensor:
            suffix, a, labels, row = next(turns)
            return target_nll(suffix.logits(lambda _, y: add(y, F.linear(a, shift))), labels, row)

        stop = Stop(self.loss, over=len(batches))
        steps = self.epochs * len(batches)
        trace = fit([shift], loss, steps=steps, lr=self.lr * model.entry(memory), optimizer="adam", stop=stop)
        memory.put({"shift": shift.detach()})
        return trace

    def _batches(self, model: "EditedModel", memory: Delta, edits: Sequence[Edit]) -> list[tuple[Rows, Suffix]]:
        """Mini-batches, each of new and old edits in their share, with what lies below the memory computed once."""
        index = len(model.history) - len(edits)
        new = {edit.prompt for edit in edits}
        old = list({edit.prompt: edit for edit in model.history[:index] if edit.prompt not in new}.values())
        generator = model.sampling.generator("locft_bf", index)
        drawn = [old[i] for i in torch.randperm(len(old), generator=generator)[: self.replay].tolist()]
        pool = [*edits, *drawn]
        count = -(-len(pool) // self.batch)
        found = []
        for i in range(count):
            rows = model.rows([(edit.prompt, edit.target) for edit in pool[i::count]])
            found.append((rows, model.suffix(memory, rows)))
        return found
