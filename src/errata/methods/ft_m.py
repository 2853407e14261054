"""FT-M: fine-tuning one matrix on the masked objective, without a box.

Zhang, Yao, Tian, Wang et al., "A Comprehensive Study of Knowledge Editing for Large Language Models", 2024,
arXiv 2401.01286.

The cross-entropy of the target's tokens, each predicted from its own position and the prompt masked out, is minimised
over one FFN output projection W. Nothing holds W near its value before the edit; a global box is an option.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor

from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace, fit
from errata.memory import Delta, add
from errata.objective import target_nll

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class FTM(Editor):
    """Fine-tuning of one matrix on the target alone."""

    name: ClassVar[str] = "ft_m"
    depth: ClassVar[float] = 21 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 21, ("mistral", 32): 21, ("gptj", 28): 21}
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "lr": (0.01, 0.025, 0.05), "steps": (25, 50), "drift": (None, 2.0),
    }  # fmt: skip
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weight changes for every prompt: there is no gate",
        "first edit held": "later edits overwrite the same entries",
    }

    steps: int = 25
    """Most Adam steps an edit [EasyEdit]."""
    lr: float = 0.025
    """Learning rate [EasyEdit: 5e-4, where an entry of W is about .02]."""
    drift: float | None = None
    """Half width of a box around the pretrained weights, which bounds what all edits do together; None for none."""
    scaled: bool = True
    """Whether `lr` and `drift` are in units of the layer, a typical entry of W; `false` takes them as they are: lr 5e-4
    [EasyEdit]."""
    loss: float = 1e-2
    """Stop when the loss is below this [EasyEdit]."""

    def __post_init__(self) -> None:
        self.check(self.steps >= 1, f"steps={self.steps}: at least 1")
        self.check(self.drift is None or self.drift > 0, f"drift={self.drift}: positive, or none")

    def prepare(self, model: "EditedModel") -> None:
        """One dense shift, zero at first."""
        model.install(self.name, Delta(model.site(self), model.device))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Descend on the masked loss of these edits, from where the last ones left W."""
        memory = model.memories[self.name]
        assert isinstance(memory, Delta)
        rows = model.rows([(edit.prompt, edit.target) for edit in edits])
        suffix = model.suffix(memory, rows)
        a, labels, row = suffix.a.to(memory.shift.dtype), rows.labels, rows.row_of_label
        unit = model.entry(memory) if self.scaled else 1.0
        shift = memory.shift.clone().requires_grad_()

        def loss() -> Tensor:
            logits = suffix.logits(lambda _, y: add(y, F.linear(a, shift)))
            return target_nll(logits, labels, row)

        def box() -> None:
            if self.drift is not None:
                shift.clamp_(-self.drift * unit, self.drift * unit)

        trace = fit(
            [shift], loss, steps=self.steps, lr=self.lr * unit, optimizer="adam", stop=Stop(self.loss), after=box
        )
        memory.put({"shift": shift.detach()})
        return trace
