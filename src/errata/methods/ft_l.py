"""FT-L: fine-tuning one matrix inside a box.

Zhu et al., "Modifying Memories in Transformer Models", 2020, arXiv 2012.00363; as run by Meng et al. (ROME), 2022, and
Wang et al. (WISE), NeurIPS 2024, arXiv 2405.14768.

Adam on one FFN output projection W, cross-entropy on the new target, every entry kept within epsilon of its value before
the edit. The simplest editor, and the one whose damage to everything else is plainest.
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

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class FTL(Editor):
    """Fine-tuning of one matrix under an L-infinity constraint."""

    name: ClassVar[str] = "ft_l"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "lr": (0.01, 0.025, 0.05), "epsilon": (0.1, 0.25, 1.0), "drift": (None, 2.0),
    }  # fmt: skip
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weight changes for every prompt: there is no gate",
        "first edit held": "later edits overwrite the same entries",
    }

    steps: int = 50
    """Most Adam steps an edit [WISE, baselines]."""
    lr: float = 0.025
    """Learning rate [WISE, baselines: 5e-4, the best of three, where an entry of W is about .02]."""
    epsilon: float | None = 0.25
    """Half width of the box around the weights before this edit, None for no box [ROME code: 5e-4 on GPT2-XL, which is .03
    of an entry; a small model takes no edit within that]."""
    drift: float | None = None
    """Half width of a second box, around the pretrained weights, that bounds what all edits do together; None for none."""
    scaled: bool = True
    """Whether `lr`, `epsilon` and `drift` are in units of the layer, a typical entry of W, which makes one set of values
    hold for layers of any scale; `false` takes them as they are: lr 5e-4 and epsilon 5e-4 [released]."""
    objective: str = "target"
    """`target`: every target token from its own position. `prompt_last`: all from the last prompt token, the released
    objective, which is wrong for targets of several tokens."""
    loss: float = 1e-2
    """Stop when the loss is below this [ROME code]."""

    def __post_init__(self) -> None:
        self.check(self.objective in ("target", "prompt_last"), f"objective {self.objective!r}: target or prompt_last")
        self.check(self.steps >= 1, f"steps={self.steps}: at least 1")

    def prepare(self, model: "EditedModel") -> None:
        """One dense shift, zero at first."""
        model.install(self.name, Delta(model.site(self), model.device))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Descend on the target's loss, projecting onto the box after each step."""
        memory = model.memories[self.name]
        assert isinstance(memory, Delta)
        rows = model.rows([(edit.prompt, edit.target) for edit in edits])
        labels, row = rows.labels, rows.row_of_label
        first = torch.cat([row.new_ones(1, dtype=torch.bool), row[1:] != row[:-1]]).nonzero()[:, 0]
        suffix = model.suffix(memory, rows)
        a = suffix.a.to(memory.shift.dtype)
        unit = model.entry(memory) if self.scaled else 1.0
        before = memory.shift
        shift = before.clone().requires_grad_()

        def loss() -> Tensor:
            logits = suffix.logits(lambda _, y: add(y, F.linear(a, shift)))
            if self.objective == "prompt_last":
                logits = logits[first][row]
            return target_nll(logits, labels, row)

        def box() -> None:
            if self.epsilon is not None:
                shift.clamp_(before - self.epsilon * unit, before + self.epsilon * unit)
            if self.drift is not None:
                shift.clamp_(-self.drift * unit, self.drift * unit)

        trace = fit(
            [shift], loss, steps=self.steps, lr=self.lr * unit, optimizer="adam", stop=Stop(self.loss), after=box
        )
        memory.put({"shift": shift.detach()})
        return trace
