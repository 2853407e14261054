"""GRACE: a codebook of discrete key-value adaptors.

Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi, "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value
Adaptors", NeurIPS 2023, arXiv 2211.11031.

Beside one linear map stand keys with radii. A prompt whose activation falls within a key's ball has the map's output
replaced by that key's value, learnt by gradient, at its last token and while the answer is said; every other prompt is
untouched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from errata.batch import Batch, distinct
from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace, fit_each
from errata.growing import appended, behind, replaced
from errata.memory import Gated
from errata.objective import target_nll
from errata.routing import NEAR, Decision, decide_best, last_true
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel

SPLIT = 1e-5
"""How far the older of two conflicting balls stays from the newer."""
PLACEMENTS = ("last", "prompt", "answer")
LOOKED_AT = 8
"""Keys whose distances are worked out exactly: the nearest ones by |k|^2 - 2 k q, which rounds."""


class Codebook(Gated):
    """Keys (n, ff), values (n, model), radii epsilon (n,), labels (n, longest) padded with -1."""

    keys: Tensor
    values: Tensor
    epsilon: Tensor
    labels: Tensor
    owners: Tensor

    def __init__(self, site: Site, placement: str, device: torch.device | None = None) -> None:
        super().__init__(site)
        self.placement = placement
        self.register_buffer("keys", torch.zeros(0, site.in_features, device=device))
        self.register_buffer("values", torch.zeros(0, site.out_features, device=device))
        self.register_buffer("epsilon", torch.zeros(0, device=device))
        self.register_buffer("labels", torch.zeros(0, 0, dtype=torch.long, device=device))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.squares = torch.zeros(0, device=device)
        """|k|^2 of each key, (n,); not stored."""

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Make these the stored tensors; the squares of keys that were there are known."""
        before = self.keys
        super().put(tensors)
        new = behind(self.keys, before) if len(self.squares) == len(before) else None
        self.squares = squares(self.keys) if new is None else appended(self.squares, squares(new))

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """A row is answered when the last prompt token lies within the ball of its nearest key."""
        if len(self.keys) == 0:
            return Decision(torch.zeros(len(a), dtype=torch.bool, device=a.device), anywhere=False)
        q = self.routing.last_of_prompt(a).to(self.keys.dtype)
        distance, index = nearest(q, self.keys, self.squares)
        return decide_best(-distance[:, :NEAR], index[:, :NEAR], -self.epsilon[index[:, 0]])

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """The value in place of the output, where it is placed."""
        assert decision.pick is not None
        tokens = (self.labels[decision.pick] >= 0).sum(1)
        if self.routing.decoding:
            places = (self.placement == "answer") & (self.routing.said < tokens)[:, None]
        else:
            places = self.places(self.routing.prompt, tokens)
        return replace_at(y, self.values[decision.pick], places)

    def places(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(batch, seq) bool: where outputs are replaced, in prompts (batch, seq) and targets of so many tokens (batch,)."""
        if self.placement == "prompt":
            return prompt
        behind = torch.arange(prompt.shape[1], device=prompt.device) - last_true(prompt)[:, None]
        return (behind >= 0) & (behind < (tokens[:, None] if self.placement == "answer" else 1))


def squares(keys: Tensor) -> Tensor:
    """|k|^2: (n, ff) -> (n,)."""
    return torch.linalg.vector_norm(keys, dim=1).square()


def nearest(q: Tensor, keys: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """The keys nearest to each query: (batch, ff), (n, ff), (n,) -> distances and indices (batch, few), nearest first."""
    near = torch.addmm(square, q, keys.T, alpha=-2).topk(min(LOOKED_AT, len(keys)), dim=1, largest=False).indices
    distance, order = torch.linalg.vector_norm(keys[near] - q[:, None], dim=-1).sort(dim=1, stable=True)
    return distance, near.gather(1, order)


def replace_at(y: Tensor, value: Tensor, places: Tensor) -> Tensor:
    """(batch, seq, model), (batch, model), (batch, seq) -> y with `value` at `places`."""
    return torch.where(places[..., None], value[:, None].to(y.dtype), y)


@dataclass
class Grace(Editor):
    """A codebook in front of one layer."""

    name: ClassVar[str] = "grace"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {
        ("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 25, ("gpt2", 48): 35,
    }  # fmt: skip
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "epsilon": (1.0, 3.0, 10.0), "lr": (0.3, 1.0), "placement": ("last", "answer"),
    }  # fmt: skip
    unsaid: ClassVar[dict[str, object]] = {"placement": "last"}
    waives: ClassVar[dict[str, str]] = {}

    epsilon: float = 1.0
    """Radius of a new key [released]."""
    steps: int = 200
    """Most Adam steps a value [released: 50 on LLaMA-2, 100 to 200 on GPT]."""
    lr: float = 1.0
    """Learning rate [released]."""
    start: str = "cold"
    """First value: `cold`, uniform in (0, 1); `warm`, the current output."""
    placement: str = "answer"
    """Where the value goes: the `last` prompt token [released: `replace_last`], all of the `prompt` [`replace_prompt`]; or,
    as far as the target goes, wherever a token of the `answer` is due. At one token a value cannot bring out a target of
    several rare ones."""
    loss: float | None = 0.02
    """Stop at this loss; None runs all steps, as released."""

    def __post_init__(self) -> None:
        self.check(self.start in ("cold", "warm"), f"start {self.start!r}: cold or warm")
        self.check_one_of(placement=PLACEMENTS)
        self.check(self.epsilon >= 0, f"epsilon={self.epsilon}: not negative")

    def prepare(self, model: "EditedModel") -> None:
        """An empty codebook."""
        model.install(self.name, Codebook(model.site(self), self.placement, model.device))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Add, split or widen a key for each edit in turn, then train the values at once.

        Which key an edit gets depends on the keys before it, but on no value; so a batch is what its edits are one by one.
        """
        memory = model.memories[self.name]
        assert isinstance(memory, Codebook)
        pairs = [[(edit.prompt, edit.target)] for edit in edits]
        batch = Batch(model, memory, pairs, touched=lambda rows: memory.places(rows.prompt, rows.target.sum(1)))
        rows, suffix = batch.whole.rows, batch.whole.suffix
        last = torch.arange(len(edits), device=rows.ids.device), last_true(rows.prompt)
        queries, outputs = suffix.a[last].to(memory.keys.dtype), suffix.y[last].float()
        labels = rows.labels.split(rows.target.sum(1).tolist())
        book, places = memory.tensors() | {"squares": memory.squares}, list[int]()
        first = len(model.history) - len(edits)
        for index, (q, output, label) in enumerate(zip(queries, outputs, labels, strict=True), start=first):
            cold = torch.rand(output.shape, generator=model.sampling.generator("grace", index)).to(output)
            book, j = place_key(book, q, cold if self.start == "cold" else output, label, self.epsilon)
            book["owners"] = _at(book["owners"], j, torch.tensor(index))
            places.append(j)
        traces: list[Trace] = []
        for run in distinct(places):  # a key that was met before goes on from the value that it has
            at = torch.tensor([places[i] for i in run], device=book["values"].device)
            values, learnt = self._trained(memory, batch, run, book["values"][at])
            traces += learnt
            book["values"] = replaced(book["values"], len(memory.values), at, values)
        memory.put({name: tensor for name, tensor in book.items() if name != "squares"})
        return Trace.of_each(traces)

    def _trained(
        self, memory: Codebook, batch: Batch, edits: Sequence[int], values: Tensor
    ) -> tuple[Tensor, list[Trace]]:
        """Values (edits, model) from which the targets of these edits of a batch follow, from first ones."""
        learnt = {edit: value.clone().requires_grad_() for edit, value in zip(edits, values, strict=True)}

        def losses(moving: Sequence[int]) -> Tensor:
            wanted = [edits[i] for i in moving]
            part = batch.part(wanted)
            value = torch.stack([learnt.get(edit, values[0]) for edit in part.edits])
            places = memory.places(part.rows.prompt, part.rows.target.sum(1))
            logits = part.suffix.logits(lambda _, y: replace_at(y, value, places))
            return part.losses(logits, target_nll, wanted)

        stop = None if self.loss is None else Stop(self.loss)
        traces = fit_each(
            [[value] for value in learnt.values()], losses, steps=self.steps, lr=self.lr, optimizer="adam", stop=stop
        )
        return torch.stack([value.detach() for value in learnt.values()]), traces


def place_key(
    book: dict[str, Tensor], q: Tensor, value: Tensor, label: Tensor, epsilon: float
) -> tuple[dict[str, Tensor], int]:
    """The codebook with a place for query `q` (ff,), and the index of that place (GRACE, Algorithm 1). Its keys come with
    their `squares` (n,).

    Far from all keys: a new key. Within reach of a key with another label: a new key, and both balls shrink to half the
    distance. With the same label: that key, its ball widened to cover `q`. The very same query: that key, relabelled.
    """
    if len(book["keys"]):
        distance, index = nearest(q[None], book["keys"], book["squares"])
        d, j = float(distance[0, 0]), int(index[0, 0])
        if d == 0.0:
            return book | {"labels": _relabel(book["labels"], j, label)}, j
        if d <= epsilon + float(book["epsilon"][j]):
            known = book["labels"][j]
            if torch.equal(known[known >= 0], label):
                return book | {"epsilon": _at(book["epsilon"], j, book["epsilon"][j].clamp(min=d))}, j
            book = book | {"epsilon": _at(book["epsilon"], j, torch.tensor(d / 2 - SPLIT).clamp(min=0))}
            epsilon = d / 2
    n = len(book["keys"])
    return {
        "keys": appended(book["keys"], q[None]),
        "squares": appended(book["squares"], squares(q[None])),
        "values": appended(book["values"], value[None]),
        "epsilon": torch.cat([book["epsilon"], torch.tensor([epsilon]).to(book["epsilon"])]),
        "labels": _relabel(torch.nn.functional.pad(book["labels"], (0, 0, 0, 1), value=-1), n, label),
        "owners": torch.nn.functional.pad(book["owners"], (0, 1)),
    }, n


def _relabel(labels: Tensor, j: int, label: Tensor) -> Tensor:
    wider = torch.nn.functional.pad(labels, (0, max(0, len(label) - labels.shape[1])), value=-1)
    return _at(wider, j, torch.nn.functional.pad(label, (0, wider.shape[1] - len(label)), value=-1))


def _at(tensor: Tensor, j: int, row: Tensor) -> Tensor:
    """A copy of a tensor with one row replaced."""
    copy = tensor.clone()
    copy[j] = row.to(copy)
    return copy
