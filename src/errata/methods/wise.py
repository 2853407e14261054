"""WISE: rethinking the knowledge memory for lifelong model editing (WISE-Merge).

Wang, Li, Zhang, Xu, Yao, Jiang, Xie, Huang, Chen, "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of
Large Language Models", NeurIPS 2024, arXiv 2405.14768.

A side memory W' stands beside one FFN output projection W; here it is its shift Delta = W' - W. Edits are trained into
random sparse subspaces of it, one for each shard of the stream, and the shards are merged (Ties). A margin loss makes
||a Delta|| large on edits and small elsewhere, so that the same quantity decides who answers: the side memory or W.
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
from errata.memory import Gated, add
from errata.merging import OPERATORS
from errata.objective import hinge, target_nll
from errata.routing import Decision, decide
from errata.sites import Site
from errata.states import States

if TYPE_CHECKING:
    from errata.model import EditedModel

SETTLED_WEIGHT = 0.6
"""Weight of the memory of earlier rounds when it is merged with new shards, which share the rest [released]."""


class SideMemory(Gated):
    """The side memory as a shift of W, all (model, ff): `shift` answers; it is merged of `settled` and `shards`."""

    shift: Tensor
    settled: Tensor
    shards: Tensor
    epsilon: Tensor
    edits: Tensor
    rounds: Tensor

    def __init__(self, site: Site, over: str, device: torch.device) -> None:
        super().__init__(site)
        self.over = over
        shape = (site.out_features, site.in_features)
        self.register_buffer("shift", torch.zeros(shape, device=device))
        self.register_buffer("settled", torch.zeros(0, *shape, device=device))  # of earlier rounds, if any
        self.register_buffer("shards", torch.zeros(0, *shape, device=device))  # of this round, the last in training
        self.register_buffer("epsilon", torch.full((), torch.inf, device=device))
        self.register_buffer("edits", torch.zeros((), dtype=torch.long, device=device))  # in the last shard
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long, device=device))

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """Eq. 6: the side memory answers where the activation reaches epsilon."""
        c = F.linear(a.to(self.shift.dtype), self.shift)
        return decide(self.activation(c), self.epsilon)

    def activation(self, c: Tensor) -> Tensor:
        """Eq. 3, ||a Delta||, of each prompt: (batch, seq, model) -> (batch,)."""
        norm = c.norm(dim=-1)
        return self.routing.last_of_prompt(norm) if self.over == "last" else self.routing.over_prompt(norm)

    def activations(self, prompts: States, shift: Tensor) -> Tensor:
        """The same of prompts whose states are known: (prompts,)."""
        norm = F.linear(prompts.states, shift).norm(dim=-1)
        return prompts.last(norm) if self.over == "last" else prompts.mean(norm)

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """W' a."""
        return add(y, F.linear(a.to(self.shift.dtype), self.shift))


@dataclass
class Wise(Editor):
    """A side memory with knowledge sharding, merging and activation routing."""

    name: ClassVar[str] = "wise"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}
    waives: ClassVar[dict[str, str]] = {
        "target probability": "the calibrated gate stays shut where an edit's activation is below irrelevant ones",
        "first edit held": "as above; and shards are merged, which changes what earlier edits wrote",
    }

    rho: float = 0.2
    """Share of the entries that one shard may change [paper, table 9]."""
    k: int = 2
    """Shards that are merged in one round [paper]."""
    shard_edits: int | None = None
    """Edits in a shard. By default 1/k of the stream, where its length is known [replication script], or 500 [released].
    """
    merge: str = "ties"
    """Merging operator: ties, sign or linear [paper: ties]."""
    steps: int = 30
    """Most steps an edit [released: 30 to 70]."""
    optimizer: str = "adam"
    """`adam`, whose steps do not depend on the scale of a model's activations, or `sgd` [released, lr 1]."""
    lr: float = 0.01
    """Learning rate."""
    clip: float | None = None
    """Largest norm of the gradient; the paper has none."""
    alpha: float = 0.5
    """Eq. 5: the most activation that an irrelevant prompt should have ..."""
    beta: float = 1.0
    """... the least that an edit should have ..."""
    gamma: float = 0.5
    """... and the least difference between them."""
    margins: str = "relative"
    """Unit of the three: `relative` to the mean norm of W's own output, or `absolute` [released: 5, 20, 10 on LLaMA-2]."""
    over: str = "mean"
    """Where a prompt's activation is taken: at its `last` token, or as the `mean` over its tokens [released]."""
    act_ratio: float | None = None
    """Threshold as a multiple of the least activation among the edits [released: .88]. By default it is calibrated: as
    low as the irrelevant prompts allow, after every edit."""
    spill: float = 0.01
    """Calibration: the share of irrelevant prompts that may be answered by mistake."""
    negatives: int = 32
    """Irrelevant prompts in the margin loss of an edit [released: 1]; their states are computed once a stream."""
    replay: int = 8
    """Earlier edits of the shard that are trained along with a new one, so that it does not overwrite them. The paper
    has none (0); a small model's matrix holds so few edits that it needs them."""
    norm_constraint: float | None = 1.0
    """Largest change of an entry [released]."""
    loss: float = 0.02
    """Stop at this loss [released]."""
    weight_decay: float = 0.0
    """Decay of the optimiser; the released 1e-5 goes past the mask and shrinks every entry of W'."""

    def __post_init__(self) -> None:
        self.check(0 < self.rho <= 1, f"rho={self.rho}: a share, in (0, 1]")
        self.check(self.k >= 1, f"k={self.k}: at least one shard")
        self.check(self.merge in OPERATORS, f"merge {self.merge!r}: one of {', '.join(OPERATORS)}")
        self.check(self.margins in ("relative", "absolute"), f"margins {self.margins!r}: relative or absolute")
        self.check(self.over in ("last", "mean"), f"over {self.over!r}: last or mean")
        self.check(self.negatives >= 1, f"negatives={self.negatives}: at least 1")

    def prepare(self, model: "EditedModel") -> None:
        """An empty side memory."""
        model.install(self.name, SideMemory(model.site(self), self.over, model.device))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Train the current shard on each edit, then merge."""
        first = len(model.history) - len(edits)
        return [self._edit_one(model, edit, first + i) for i, edit in enumerate(edits)][-1]

    def _edit_one(self, model: "EditedModel", edit: Edit, index: int) -> Trace:
        memory = model.memories[self.name]
        assert isinstance(memory, SideMemory)
        state = self._open_shard(memory, self._shard_size(model))
        shard = state["shards"][-1]
        mask = self._mask(model, memory, int(state["rounds"]), len(state["shards"]) - 1)
        pairs = [(context, edit.target) for context in model.contexts(edit.prompt)]
        pairs += [(old.prompt, old.target) for old in self._replayed(model, edit, index, int(state["edits"]))]
        rows = model.rows(pairs)
        suffix = model.suffix(memory, rows)
        a = suffix.a.to(shard.dtype)
        irrelevant = model.irrelevant_states(memory)
        a_out = irrelevant.some(self.negatives, model.sampling.generator("wise/negatives", index))
        unit = irrelevant.output_norm if self.margins == "relative" else 1.0
        theta = shard.clone().requires_grad_()

        def loss() -> Tensor:
            c = F.linear(a, theta)
            with model.routing.reading(rows.prompt):
                d_in = memory.activation(c)
            d_out = memory.activations(a_out, theta)
            logits = suffix.logits(lambda _, y: add(y, c))
            return target_nll(logits, rows.labels, rows.row_of_label) + self._margin(d_in / unit, d_out / unit)

        def masked() -> None:
            assert theta.grad is not None
            theta.grad.mul_(mask)

        def within() -> None:
            if self.norm_constraint is not None:
                theta.clamp_(-self.norm_constraint, self.norm_constraint)

        trace = fit(
            [theta], loss, steps=self.steps, lr=self.lr, optimizer=self.optimizer, clip=self.clip,
            weight_decay=self.weight_decay,
            stop=Stop(self.loss), gradient=masked, after=within,
        )  # fmt: skip
        state["shards"] = torch.cat([state["shards"][:-1], theta.detach()[None]])
        state["edits"] = state["edits"] + 1
        state["shift"] = self._merged(state)
        with model.routing.reading(rows.prompt):
            own = memory.activation(F.linear(a, state["shift"]))[0]
        memory.put(state | {"epsilon": self._epsilon(memory, irrelevant, state["shift"], own)})
        return trace

    def _replayed(self, model: "EditedModel", edit: Edit, index: int, room: int) -> list[Edit]:
        """Earlier edits of this shard, still in force, to train along with a new one."""
        latest = {old.prompt: old for old in model.history[index - room : index] if old.prompt != edit.prompt}
        order = torch.randperm(len(latest), generator=model.sampling.generator("wise/replay", index))
        return [list(latest.values())[i] for i in order[: self.replay].tolist()]

    def _margin(self, d_in: Tensor, d_out: Tensor) -> Tensor:
        """Eq. 5 (L_a): mean_+(d_out - d_in + gamma) + mean_+(d_out - alpha) + mean_+(beta - d_in)."""
        return hinge(d_out[:, None] - d_in[None] + self.gamma) + hinge(d_out - self.alpha) + hinge(self.beta - d_in)

    def _shard_size(self, model: "EditedModel") -> int:
        if self.shard_edits is not None:
            return self.shard_edits
        return 500 if model.expected is None else -(-model.expected // self.k)

    def _open_shard(self, memory: SideMemory, size: int) -> dict[str, Tensor]:
        """The memory's tensors with a shard that has room; after k full shards a round is settled."""
        state = memory.tensors()
        if len(state["shards"]) and int(state["edits"]) < size:
            return state
        if len(state["shards"]) == self.k:
            settled = state["shift"][None]
            state |= {"settled": settled, "shards": state["shards"][:0], "rounds": state["rounds"] + 1}
        fresh = torch.zeros_like(state["shift"])[None]
        return state | {"shards": torch.cat([state["shards"], fresh]), "edits": torch.zeros_like(state["edits"])}

    def _mask(self, model: "EditedModel", memory: SideMemory, round_: int, shard: int) -> Tensor:
        """M_i, Bernoulli(rho) entries (model, ff); redrawn from its seed, so it need not be stored."""
        generator = model.sampling.generator("wise/mask", round_ * 1000 + shard)
        return (torch.rand(memory.shift.shape, generator=generator) < self.rho).to(memory.shift)

    def _merged(self, state: dict[str, Tensor]) -> Tensor:
        """Shards of this round and what earlier rounds have settled, as one shift."""
        taus = [*state["settled"], *state["shards"]]
        if len(taus) == 1:
            return taus[0]
        new = len(state["shards"])
        share = 1 - SETTLED_WEIGHT if len(state["settled"]) else 1.0
        weights = [SETTLED_WEIGHT] * len(state["settled"]) + [share / new] * new
        return OPERATORS[self.merge](taus, weights)

    def _epsilon(self, memory: SideMemory, irrelevant: States, shift: Tensor, own: Tensor) -> Tensor:
        """The threshold: calibrated, or the running minimum over the edits' activations when they were made."""
        if self.act_ratio is not None:
            return torch.minimum(memory.epsilon, own * self.act_ratio)
        return torch.quantile(memory.activations(irrelevant, shift), 1 - self.spill) * (1 + 1e-4)
