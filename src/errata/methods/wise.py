"""WISE: rethinking the knowledge memory for lifelong model editing.

Wang, Li, Zhang, Xu, Yao, Jiang, Xie, Huang, Chen, "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of
Large Language Models", NeurIPS 2024, arXiv 2405.14768.

A side memory W' stands beside one FFN output projection W. Edits are trained into random sparse subspaces of it, one for
each shard of the stream, and the shards are merged (Ties). A margin loss makes ||a (W' - W)|| large on edits and small
elsewhere, so that the same quantity decides who answers: the side memory or W. WISE-Merge keeps one side memory;
WISE-Retrieve starts another after every k shards, and the most active one answers.

As published, a shard is trained by itself, edit after edit, and what it forgets on the way or loses in the merge is lost.
Here an edit is trained through the merged memory, with earlier edits replayed, unless `joint` and `replay` say otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from errata import presets, sharding
from errata.calibration import SPILLS, taught, thresholds
from errata.contrast import contrasts
from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace, fit
from errata.forgetting import Looked, look
from errata.memory import add
from errata.merging import OPERATORS, Merging
from errata.objective import hinge, target_nll
from errata.side_memory import OVER, SideMemory, nonlinearity
from errata.states import States, gather

if TYPE_CHECKING:
    from errata.model import EditedModel
    from errata.suffix import Suffix
    from errata.tokens import Rows

LOOKED_AT = 8
"""Earlier edits among which the most forgotten are looked for, as a multiple of those that are replayed."""


@dataclass
class Wise(Editor):
    """A side memory with knowledge sharding, merging and activation routing."""

    name: ClassVar[str] = "wise"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}
    unsaid: ClassVar[dict[str, object]] = {"reach": "trained"}
    search: ClassVar[dict[str, tuple[object, ...]]] = {"lr": (0.05, 0.15, 0.4), "rho": (0.2, 0.5), "contexts": (3, 6)}
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the gate may open where no answer changes, and the logits then move; not with spills=rows",
        "first edit held": "the calibrated gate stays shut where an edit's activation is below irrelevant ones",
    }

    mode: str = "merge"
    """`merge` all rounds into one side memory, or keep them apart and `retrieve` the most active one [paper]."""
    most: int | None = None
    """Retrieve: side memories that are kept apart at most; beyond, two are merged, with the fewest edits [paper, B.8]."""
    k: int = 2
    """Shards in a round, which are merged into one side memory [paper]."""
    rho: float = 0.5
    """Share of the entries that one shard may change [paper: .2 of matrices of 45 M]."""
    anchors: bool = True
    """Whether the shards' subspaces may overlap, by rho^2 [paper]; otherwise they are disjoint (B.7), and k rho <= 1."""
    shard_edits: int | None = None
    """Edits in a shard. By default 500 [released], or, where the length of the stream is known, so many that it makes one
    round [replication script], and three with `retrieve`, which takes no more into one side memory than that holds."""
    merge: str = "ties"
    """Merging operator: linear, slerp, ties, sign, dare or dare_ties [paper: ties]."""
    density: float = 0.8
    """Share of the entries that Ties keeps, and Dare on average [released: .53, of shards of density .2]."""
    joint: bool = True
    """Whether a shard is trained as part of the merged memory, or by itself and merged afterwards [paper]."""
    replay: int = 24
    """Earlier edits that are trained along with a new one: half at random, half the most forgotten. The paper has none
    (0); a small matrix holds so few edits that it needs them."""
    negatives: int = 32
    """Irrelevant prompts in the margin loss of an edit [released: 1]; their states are computed once a stream."""
    contrast: int = 8
    """Prompts of earlier edits, asked about this edit's subject, that are kept below alpha like irrelevant ones: the only
    ones that are about an edited subject. The paper has none (0)."""
    contexts: int = 6
    """Rows of a new edit: its prompt alone and behind so many less one of the context prefixes [released: 11, all]."""
    steps: int = 20
    """Most steps an edit [released: 30 to 70]."""
    optimizer: str = "adam"
    """`adam`, whose steps do not depend on the scale of a model's activations, or `sgd` [released, lr 1]."""
    lr: float = 0.15
    """Learning rate; with adam in units of a typical entry of W, |y| / (|a| sqrt(model))."""
    clip: float | None = None
    """Largest norm of the gradient; the paper has none."""
    margin: bool = True
    """Whether the margin loss L_a is trained (the paper's router ablation is without)."""
    alpha: float = 0.25
    """Eq. 5: the most activation that an irrelevant prompt should have ..."""
    beta: float = 1.0
    """... the least that an edit should have ..."""
    gamma: float = 0.75
    """... and the least difference between them."""
    margins: str = "relative"
    """Unit of the three: `relative` to the mean norm of W's own output, or `absolute` [released: 5, 20, 10 on LLaMA-2]."""
    memo: bool = True
    """Retrieve: whether replayed edits of other side memories are kept below alpha in this one (L_memo) [paper, B.5]."""
    end: bool = True
    """Whether the end of the text is learnt with the target, so that the model says it and stops [released: no]."""
    distance: str = "paper"
    """||a (W' - W)|| [`paper`], or ||act(a W') - act(a W)|| with the FFN's nonlinearity [`released`]."""
    over: str = "blend"
    """Where a prompt's activation is taken: `mean` over its tokens [released], at the `last`, the `max`, or a `blend` of
    the first two."""
    act_ratio: float | None = None
    """Threshold as a multiple of the least activation among the edits [released: .88]. By default it is calibrated after
    every edit, within what irrelevant prompts allow that were not trained on."""
    spill: float = 0.01
    """Calibration: the share of irrelevant prompts that may change their answer (`spills=answers`) or be routed to the
    side memory (`spills=rows`)."""
    reach: str = "sampled"
    """Calibration: the edits that the threshold is kept within reach of. The new one and those `trained` along with it,
    whose activations are larger than those of the others; and also the `sampled` ones that were only looked at."""
    spills: str = "answers"
    """What is counted: irrelevant `answers` that change, in their first token, or `rows` that the side memory answers."""
    routing: str = "activation"
    """`activation`, or the `oracle` that knows the prompts and rephrasings of all edits: an upper bound, no method."""
    norm_constraint: float | None = 1.0
    """Largest change of an entry [released]."""
    loss: float = 0.02
    """Stop at this loss [released]."""
    weight_decay: float = 0.0
    """Decay of the shift. The released 1e-5 decays W' itself, past the mask, which would need W to be read."""
    preset: str | None = None
    """`published`: the released code's values for the base model, for all options that are left at their defaults."""

    def __post_init__(self) -> None:
        self.check(0 < self.rho <= 1, f"rho={self.rho}: a share, in (0, 1]")
        self.check(self.k >= 1, f"k={self.k}: at least one shard")
        self.check(
            self.anchors or self.k * self.rho <= 1, f"k={self.k}, rho={self.rho}: disjoint subspaces need k * rho <= 1"
        )
        self.check(self.negatives >= 1, f"negatives={self.negatives}: at least 1")
        self.check(self.most is None or self.most >= 2, f"most={self.most}: at least two, or mode=merge for one")
        self.check(self.most is None or self.mode == "retrieve", "most: only mode=retrieve keeps side memories apart")
        self.check_one_of(
            mode=("merge", "retrieve"), merge=OPERATORS, margins=("relative", "absolute"), over=OVER,
            distance=("paper", "released"), routing=("activation", "oracle"), spills=SPILLS,
            reach=("trained", "sampled"), preset=(None, "published"),
        )  # fmt: skip

    def prepare(self, model: "EditedModel") -> None:
        """An empty side memory."""
        h = self.resolved(model)
        seed = model.sampling.generator("wise/mask").initial_seed()
        site = model.site(h)
        shape = (site.out_features, site.in_features)

        def masks(round_: int, shard: int) -> Tensor:
            return sharding.mask(shape, h.rho, seed + 1000 * round_, shard, disjoint=not h.anchors)

        merging = Merging(h.merge, h.density, lambda round_: model.sampling.generator("wise/dare", round_))
        memory = SideMemory(
            site, model.device, over=h.over, masks=masks, merging=merging,
            apart=h.mode == "retrieve", nonlinearity=nonlinearity(model.base) if h.distance == "released" else None,
        )  # fmt: skip
        model.install(self.name, memory)

    def resolved(self, model: "EditedModel") -> Self:
        """These options with the preset filled in: an option that is not at its default stays as it is."""
        if self.preset is None:
            return self
        given = {f.name: own for f in fields(self) if (own := getattr(self, f.name)) != f.default}
        return replace(self, **presets.wise(model, model.site(self).layer) | given)

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Train the current shard on each edit, then merge."""
        h, first = self.resolved(model), len(model.history) - len(edits)
        return [h._edit_one(model, edit, first + i) for i, edit in enumerate(edits)][-1]

    def _edit_one(self, model: "EditedModel", edit: Edit, index: int) -> Trace:
        memory = model.memories[self.name]
        assert isinstance(memory, SideMemory)
        memory.make_room(self._shard_size(model.expected, model.site(self).weights), self.k, self.most)
        homes = torch.cat([memory.homes, memory.homes.new_tensor([memory.current])])
        same, apart, looked = self._replayed(model, memory, edit, index)
        contexts = model.contexts(edit.prompt)
        drawn = torch.randperm(len(contexts) - 1, generator=model.sampling.generator("wise/contexts", index)) + 1
        pairs = [(contexts[i], edit.target) for i in [0, *drawn[: self.contexts - 1].tolist()]]
        pairs += [(old.prompt, old.target) for old in same]
        rows = model.rows(pairs, self.end)
        suffix = model.suffix(memory, rows)
        irrelevant = model.irrelevant_states(memory)
        negatives = [taught(irrelevant, self.negatives, model.sampling.generator("wise/negatives", index))]
        close = contrasts(model, edit, (same + apart)[: self.contrast])
        close += [old.prompt for old in apart if self.memo]
        if close:
            negatives.append(gather(list(model.read(memory, close))))
        theta, trace = self._fit(model, memory, suffix, rows, negatives)
        values = torch.cat([memory.values[: len(memory.values) - len(theta)], theta])
        memory.put({"values": values, "edits": memory.edits + 1, "homes": homes} | self._scope(model, memory, edit))
        d_in = memory.active(suffix.a, suffix.y, rows.prompt)
        bare = torch.cat([d_in[:1], d_in[len(pairs) - len(same) :]])
        if looked is not None and self.reach == "sampled":
            d_seen = memory.active(looked.suffix.a, looked.suffix.y, looked.rows.prompt)
            bare = torch.cat([bare, d_seen[looked.order[self.replay - self.replay // 2 :]]])
        memory.put(thresholds(model, memory, bare, self.act_ratio, self.spill, self.spills))
        return trace

    def _fit(
        self, model: "EditedModel", memory: SideMemory, suffix: "Suffix", rows: "Rows", negatives: Sequence[States]
    ) -> tuple[Tensor, Trace]:
        """The new values of the last shard, at the entries of its mask. Eq. 7: nothing else has a gradient."""
        where = sharding.entries(memory.masks()[-1])
        shift_of = memory.writing(where, joint=self.joint)
        theta = memory.values[len(memory.values) - len(where) :].clone().requires_grad_()
        places = rows.attention.nonzero(as_tuple=True)  # padding is not multiplied
        a, labels, row = suffix.a[places].to(theta.dtype), rows.labels, rows.row_of_label
        unit = model.irrelevant_states(memory).output_norm if self.margins == "relative" else 1.0

        def loss() -> Tensor:
            shift = shift_of(theta)
            c = a.new_zeros(*rows.ids.shape, len(shift)).index_put(places, F.linear(a, shift))
            nll = target_nll(suffix.logits(lambda _, y: add(y, c)), labels, row)
            if not self.margin:
                return nll
            with model.routing.reading(rows.prompt):
                d_in = memory.activation(c, suffix.y) / unit
            d_out, *d_close = [memory.activations(states, shift) / unit for states in negatives]
            return nll + self._margin(d_in, d_out) + sum(hinge(d - self.alpha) for d in d_close)

        def within() -> None:
            if self.norm_constraint is not None:
                theta.clamp_(-self.norm_constraint, self.norm_constraint)

        lr, clip = self._step_size(model, memory)
        trace = fit(
            [theta], loss, steps=self.steps, lr=lr, optimizer=self.optimizer, clip=clip,
            weight_decay=self.weight_decay, stop=Stop(self.loss), after=within,
        )  # fmt: skip
        return theta.detach(), trace

    def _step_size(self, model: "EditedModel", memory: SideMemory) -> tuple[float, float | None]:
        """Learning rate and clip, from units of the layer: (|y| / |a|)^2 and |a| / |y| for sgd, an entry of W for adam."""
        if self.margins == "absolute":
            return self.lr, self.clip
        if self.optimizer == "adam":
            return self.lr * model.entry(memory), self.clip
        gain = model.gain(memory)
        return self.lr * gain**2, None if self.clip is None else self.clip / gain

    def _margin(self, d_in: Tensor, d_out: Tensor) -> Tensor:
        """Eq. 5 (L_a): mean_+(d_out - d_in + gamma) + mean_+(d_out - alpha) + mean_+(beta - d_in)."""
        return hinge(d_out[:, None] - d_in[None] + self.gamma) + hinge(d_out - self.alpha) + hinge(self.beta - d_in)

    def _replayed(
        self, model: "EditedModel", memory: SideMemory, edit: Edit, index: int
    ) -> tuple[list[Edit], list[Edit], Looked | None]:
        """Earlier edits in force to train along; some of other side memories; and where the most forgotten are from."""
        places = list(
            {old.prompt: i for i, old in enumerate(model.history[:index]) if old.prompt != edit.prompt}.values()
        )
        drawn = torch.randperm(len(places), generator=model.sampling.generator("wise/replay", index)).tolist()
        earlier = [places[i] for i in drawn]
        home = memory.homes.tolist()
        start = 0 if self.joint else index - int(memory.edits)
        same = [model.history[i] for i in earlier if home[i] == memory.current and i >= start]
        apart = [model.history[i] for i in earlier if home[i] != memory.current]
        if self.replay == 0 or len(same) <= self.replay:
            return same[: self.replay], apart[: self.replay], None
        half = self.replay // 2
        looked = look(model, memory, memory.always, same[half : LOOKED_AT * self.replay])
        return same[:half] + looked.worst(self.replay - half), apart[: self.replay], looked

    def _scope(self, model: "EditedModel", memory: SideMemory, edit: Edit) -> dict[str, Tensor]:
        """What the oracle is told about an edit."""
        if self.routing != "oracle":
            return {}
        read = gather(list(model.read(memory, [edit.prompt, *edit.rephrases])))
        return memory.scope(read.last(read.states))

    def _shard_size(self, expected: int | None, weights: int) -> int:
        apart = weights if self.mode == "retrieve" else None
        return sharding.edits_in(self.k, expected, apart) if self.shard_edits is None else self.shard_edits

    def bytes_beside(self, features: int, weights: int, edits: int) -> int:
        """The side memories that WISE-Retrieve keeps apart, but the last."""
        rounds = -(-edits // (self.k * self._shard_size(edits, weights)))
        return 4 * weights * (min(rounds, self.most or rounds) - 1) if self.mode == "retrieve" else 0

    def beyond(self, model: "EditedModel", edits: int) -> str:
        """That the one matrix of WISE-Merge loses some of them."""
        return sharding.beyond(model.site(self).weights, edits) if self.mode == "merge" else ""
