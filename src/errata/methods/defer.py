"""DEFER: a flag that decides whether one layer is replaced by a learnt one.

Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi, "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value
Adaptors", NeurIPS 2023, arXiv 2211.11031: their stand-in for SERAC (Mitchell et al., 2022).

Beside one linear map stand a flag g = sigmoid(w q + b) and a map o = V q + c, both of q, the map's input at the last prompt
token. Where g >= 1/2, o takes the place of the map's output, at every position. Both are trained on each edit alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace, fit
from errata.memory import Gated, add
from errata.objective import target_nll
from errata.routing import Decision, decide
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel


class Deferral(Gated):
    """The flag w (ff,), b () and the map V (model, ff), c (model,), in units: entries of q in `reads`, of o in `writes`."""

    w: Tensor
    b: Tensor
    V: Tensor
    c: Tensor
    reads: Tensor
    writes: Tensor

    def __init__(self, site: Site, device: torch.device | None = None) -> None:
        super().__init__(site)
        self.register_buffer("w", torch.zeros(site.in_features, device=device))
        self.register_buffer("b", torch.full((), -1.0, device=device))  # shut, where nothing was learnt
        self.register_buffer("V", torch.zeros(site.out_features, site.in_features, device=device))
        self.register_buffer("c", torch.zeros(site.out_features, device=device))
        self.register_buffer("reads", torch.ones((), device=device))
        self.register_buffer("writes", torch.ones((), device=device))

    def query(self, a: Tensor) -> Tensor:
        """q, the input at the last prompt token, in its unit: (batch, seq, ff) -> (batch, ff)."""
        return self.routing.last_of_prompt(a).to(self.w.dtype) / self.reads

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """A row is answered where g >= 1/2. Its o is held, since the prompt is gone while decoding."""
        q = self.query(a)
        g = torch.sigmoid(q @ self.w + self.b)
        o = self.writes * F.linear(q, self.V, self.c)
        return decide(g, torch.full_like(g, 0.5))._replace(held=o)

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """o in place of the output, at every position, the decoded ones included."""
        assert decision.held is not None
        return decision.held[:, None].to(y.dtype).expand_as(y)


@dataclass
class Defer(Editor):
    """A learnt flag and a learnt layer, trained on each edit in turn."""

    name: ClassVar[str] = "defer"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {
        ("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 25, ("gpt2", 48): 35,
    }  # fmt: skip
    search: ClassVar[dict[str, tuple[object, ...]]] = {"lr": (0.07, 0.2, 0.7), "steps": (30, 100)}
    waives: ClassVar[dict[str, str]] = {
        "target probability": "the flag is trained through a mixture, and may stay below 1/2",
        "unrelated prompts": "nothing teaches the flag to stay down",
        "first edit held": "later edits overwrite both the flag and the map",
    }

    steps: int = 100
    """Adam steps an edit [released]."""
    lr: float = 0.2
    """Learning rate times the features of q, so that a step may move g and o by about as much whatever the width [WISE,
    baselines: 7e-5, which is .77 of 11008]. With `scaled=false`, the learning rate as it is [GRACE: 1e-1]."""
    scaled: bool = True
    """Whether q and o are in units of the layer, their typical entries, in which the published rates hold for layers of
    any scale."""
    loss: float | None = None
    """Stop at this loss; None runs all steps [released]."""

    def __post_init__(self) -> None:
        self.check(self.steps >= 1, f"steps={self.steps}: at least 1")

    def prepare(self, model: "EditedModel") -> None:
        """A flag that is down, and a map to 0."""
        memory = Deferral(model.site(self), model.device)
        model.install(self.name, memory)
        if self.scaled:
            # The norms |a| and |y| of irrelevant prompts, spread over their entries.
            norm = model.irrelevant_states(memory).output_norm
            reads = norm / model.gain(memory) / math.sqrt(memory.site.in_features)
            writes = norm / math.sqrt(memory.site.out_features)
            memory.put({"reads": torch.tensor(reads).to(memory.w), "writes": torch.tensor(writes).to(memory.w)})

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Train the flag and the map on these edits; nothing is replayed, nothing irrelevant is shown."""
        memory = model.memories[self.name]
        assert isinstance(memory, Deferral)
        rows = model.rows([(edit.prompt, edit.target) for edit in edits])
        suffix = model.suffix(memory, rows)
        labels, row = rows.labels, rows.row_of_label
        with model.routing.reading(rows.prompt):
            q = memory.query(suffix.a)
        w, b, V, c = (tensor.clone().requires_grad_() for tensor in (memory.w, memory.b, memory.V, memory.c))

        def mixed(_: Tensor, y: Tensor) -> Tensor:
            """g o + (1 - g) y at every position, which is how it is trained."""
            g = torch.sigmoid(q @ w + b)[:, None, None]
            o = memory.writes * F.linear(q, V, c)[:, None]
            return add(y, g * (o - y.to(o.dtype)))

        def loss() -> Tensor:
            return target_nll(suffix.logits(mixed), labels, row)

        lr = self.lr / memory.site.in_features if self.scaled else self.lr
        stop = None if self.loss is None else Stop(self.loss)
        trace = fit([w, b, V, c], loss, steps=self.steps, lr=lr, optimizer="adam", stop=stop)
        memory.put({"w": w.detach(), "b": b.detach(), "V": V.detach(), "c": c.detach()})
        return trace
