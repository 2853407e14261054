"""LEMoE: a mixture-of-experts adaptor that grows with every batch of edits.

Wang, Li, "LEMoE: Advanced Mixture of Experts Adaptor for Lifelong Model Editing of Large Language Models", EMNLP 2024,
arXiv 2406.20030.

Beside one frozen FFN stand experts f_i, each a small FFN of its own that learned one batch of edits and was then frozen.
A prompt is sent to the expert whose key k_i fits it best (KV-anchor routing): what is compared with the keys is made of
what the FFN reads, or of the model's input embeddings, which no edit changes, so a prompt is sent where it was sent when
it was trained.

No code was released. Where the paper leaves a choice: each expert has a frozen projection of its own, since one that is
shared and goes on learning moves the old routes; its training also replays the prompts of older experts ("anchors");
expert t answers its own batch in training whatever the router says; the expert that is picked counts in full, since a
softmax over all of them would shrink the older ones with every batch; and an expert rejects prompts that are nearer to none
of its edits than irrelevant prompts are, since what the keys learned says little far from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.anchors import FEATURES, Anchors, score
from errata.calibration import above_irrelevant
from errata.contrast import away, of_others
from errata.edit import Edit
from errata.editor import Editor
from errata.errors import RoutingError
from errata.fitting import Stop, Trace, fit
from errata.memory import Gated, add
from errata.objective import target_nll
from errata.ordering import Order, plan
from errata.routing import Decision
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel

ANCHORS = "lemoe-anchors"
EXPERT = ("up", "down", "keys", "inner", "outer")
"""The tensors of an expert and of its part of the router, each with the experts along the first axis."""


class Experts(Gated):
    """f_i, beside the FFN: one correction a row, by the expert that the router picked for it."""

    up: Tensor
    down: Tensor
    scale: Tensor

    def __init__(self, site: Site, width: int, device: torch.device) -> None:
        super().__init__(site)
        self.register_buffer("up", torch.zeros(0, width, site.in_features, device=device))
        self.register_buffer("down", torch.zeros(0, site.out_features, width, device=device))
        self.register_buffer("scale", torch.ones(2, device=device))  # what makes an input entry, and an output one, 1

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """What the router decided for these rows."""
        found = self.routing.decisions.get(ANCHORS)
        if found is None:
            raise RoutingError("lemoe routes by input embeddings, and this call went past them: pass input_ids")
        return found

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """h(x) = W_0(x) + f_i(x); the experts that no row needs are not computed."""
        assert decision.pick is not None
        several = torch.compiler.is_compiling()
        wanted = range(len(self.up)) if several else decision.pick[decision.rows].unique().tolist()
        for i in wanted:
            one = add(y, self.expert(a, self.up[i], self.down[i]))
            y = torch.where((decision.pick == i)[:, None, None], one, y)
        return y

    def expert(self, a: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """f_i(x) = W_2 SiLU(W_1 x), in units of the FFN's input and output: (batch, seq, ff) -> (batch, seq, model)."""
        return F.linear(F.silu(F.linear(a.to(up.dtype) / self.scale[0], up)), down) * self.scale[1]


@dataclass
class Lemoe(Editor):
    """One expert for every batch of edits, older ones frozen, and a router that may reject."""

    name: ClassVar[str] = "lemoe"
    depth: ClassVar[float] = 18 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 18, ("mistral", 32): 18}
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "lr": (0.003, 0.01, 0.03), "width": (64, 256), "cushion": (0.1, 0.25, 0.5),
    }  # fmt: skip
    waives: ClassVar[dict[str, str]] = {}

    batch: int = 10
    """Edits of one expert. One that comes alone joins the expert that has room (a buffer of this size, trained anew on
    all it holds); more at once are planned into batches by clustering. The paper's sizes are not given."""
    width: int = 256
    """Hidden width of an expert, which the paper does not give."""
    router: int = 64
    """Width of the keys; the projection goes through a quarter of the embedding [LiveEdit's re-implementation]."""
    steps: int = 40
    """Most steps an edit, or a batch of them."""
    lr: float = 0.01
    """Learning rate of Adam, on tensors in units of the layer [paper: AdamW, 2e-4]."""
    strength: float = 1.0
    """Weight of the router's cross-entropy."""
    feature: str = "any"
    """What a prompt is routed by: the mean of its input `embedding`s [paper]; or of what the FFN reads, the `mean` over the
    prompt or its `last` token; or `any` of these two, and the nearest decides."""
    spill: float = 0.005
    """Calibration: the share of irrelevant prompts that may be nearer to an edit than the threshold."""
    cushion: float = 0.25
    """How far the threshold is from the irrelevant prompts towards the edits, for prompts that are like neither."""
    contrast: float = 0.0
    """How far what the router sees must be on the way from the mean of an edit's prompt about other subjects, 0,
    to the edit's own, 1, so that neighbours are left alone. The paper asks for nothing (0)."""
    end: bool = True
    """Whether the end of the text is learnt with the target, so that the model says it and stops."""
    loss: float = 0.02
    """Stop at this loss."""

    def __post_init__(self) -> None:
        self.check(self.batch >= 1, f"batch={self.batch}: at least one edit an expert")
        self.check(self.width >= 1 and self.router >= 1, f"width={self.width}, router={self.router}: at least 1")
        self.check_one_of(feature=FEATURES)
        self.check(0 <= self.spill < 1, f"spill={self.spill}: a share, in [0, 1)")
        self.check(0 <= self.cushion < 1, f"cushion={self.cushion}: a share, in [0, 1)")
        self.check(0 <= self.contrast < 1, f"contrast={self.contrast}: a share, in [0, 1)")

    def prepare(self, model: "EditedModel") -> None:
        """No experts; the router beside the FFN or the input embedding, the experts beside the FFN."""
        site = _ffn(model, model.site(self))
        read = _words(model) if self.feature == "embedding" else site
        anchors = Anchors(read, self.feature, self.router, model.device, self.contrast)
        experts = Experts(site, self.width, model.device)
        model.install(ANCHORS, anchors)
        model.install(self.name, experts)
        irrelevant = [probe.prompt for probe in model.sampling.irrelevant]
        features = torch.cat([anchors.features(a, y) for a, y, _ in model.read(anchors, irrelevant)])
        anchors.put({"centre": features.mean(0)})
        anchors.irrelevant = F.normalize(features - anchors.centre, dim=-1)
        states = model.irrelevant_states(experts)
        a, y = float(states.states.norm(dim=-1).mean()), states.output_norm
        scale = [a / site.in_features**0.5, y / site.out_features**0.5]
        experts.put({"scale": torch.tensor(scale, device=model.device)})

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Each batch to an expert: the one that has room, or a new one."""
        anchors = model.memories[ANCHORS]
        assert isinstance(anchors, Anchors)
        first, last = len(model.history) - len(edits), len(anchors.keys) - 1
        room = self.batch - int((anchors.owners == last).sum()) if last >= 0 else 0
        batches = self.order(model, edits).batches if len(edits) > self.batch else (tuple(range(len(edits))),)
        prompts = self.points(model, edits)
        owners = anchors.owners.new_full((len(edits),), -1)
        anchors.put(self._distinct(model, anchors, edits, prompts) | {
            "prompts": torch.cat([anchors.prompts, prompts]),
            "owners": torch.cat([anchors.owners, owners]),
        })  # fmt: skip
        start = last if len(edits) <= room else last + 1
        return [self._learn(model, [first + i for i in b], start + n) for n, b in enumerate(batches)][-1]

    def order(self, model: "EditedModel", edits: Sequence[Edit]) -> Order:
        """Batches of like edits, by clustering what the router sees, with the similarity within and between them."""
        points = self.points(model, edits)
        return plan(points.flatten(1), self.batch, model.sampling.generator("lemoe/order", len(edits)))

    def points(self, model: "EditedModel", edits: Sequence[Edit]) -> Tensor:
        """What the router sees of edits: (edits, views, model)."""
        anchors = model.memories[ANCHORS]
        assert isinstance(anchors, Anchors)
        return self._embedded(model, anchors, [edit.prompt for edit in edits])

    def _distinct(
        self, model: "EditedModel", anchors: Anchors, edits: Sequence[Edit], prompts: Tensor
    ) -> dict[str, Tensor]:
        """What is distinct of edits, whose `prompts` look so to the router, beside that of earlier ones."""
        if anchors.ways is None or anchors.starts is None:
            return {}
        others = [self._embedded(model, anchors, of_others(edit)) for edit in edits]
        found = [away(own, other) for own, other in zip(prompts, others, strict=True)]
        ways, starts = (torch.stack(some) for some in zip(*found, strict=True))
        return {"ways": torch.cat([anchors.ways, ways]), "starts": torch.cat([anchors.starts, starts])}

    def _learn(self, model: "EditedModel", new: Sequence[int], t: int) -> Trace:
        """Train expert t, its key and its projection on these edits of the history and on those it has learned before."""
        anchors, experts = model.memories[ANCHORS], model.memories[self.name]
        assert isinstance(anchors, Anchors)
        assert isinstance(experts, Experts)
        in_force = sorted({edit.prompt: i for i, edit in enumerate(model.history)}.values())
        current = torch.zeros_like(anchors.owners, dtype=torch.bool)
        current[in_force] = True
        owners = anchors.owners.index_fill(0, torch.tensor(new, device=model.device), t).where(current, -1)
        settled = [i for i in in_force if int(owners[i]) >= 0]
        older = [(model.history[i].prompt, model.history[i].target) for i in settled if owners[i] == t and i not in new]
        pairs = [(c, model.history[i].target) for i in new for c in model.contexts(model.history[i].prompt)] + older
        rows = model.rows(pairs, self.end)
        suffix = model.suffix(experts, rows)
        up, down, key, inner, outer = theta = [
            part.requires_grad_() for part in self._expert(model, anchors, experts, t)
        ]

        e = torch.cat([self._embedded(model, anchors, [prompt for prompt, _ in pairs]), anchors.prompts[settled]])
        label = torch.cat([owners.new_full((len(pairs),), t), owners[settled]])
        before = anchors.scores(e)[:, :t]
        share = torch.bincount(label, minlength=t + 1).float()[label]  # so that every expert counts alike
        present, labels, row = len(label.unique()), rows.labels, rows.row_of_label

        def loss() -> Tensor:
            logits = suffix.logits(lambda a, y: add(y, experts.expert(a, up, down)))
            routes = torch.cat([before, score(e, key[None], inner[None], outer[None])], dim=1)
            wrong = (F.cross_entropy(routes, label, reduction="none") / share).sum() / present
            return target_nll(logits, labels, row) + self.strength * wrong

        trace = fit(theta, loss, steps=self.steps, lr=self.lr, optimizer="adam", stop=Stop(self.loss))
        made = dict(zip(EXPERT, (part.detach() for part in theta), strict=True))
        for memory in (anchors, experts):
            held = {name: memory.tensors()[name][:t] for name in EXPERT if name in memory.tensors()}
            memory.put({name: torch.cat([kept, made[name][None]]) for name, kept in held.items()})
        anchors.put({"owners": owners})
        self._calibrate(anchors, in_force)
        return trace

    def _expert(self, model: "EditedModel", anchors: Anchors, experts: Experts, t: int) -> list[Tensor]:
        """The tensors of expert t, copied; of a new one, random but for W_2, which is 0: it begins by saying nothing."""
        if t < len(anchors.keys):
            held = experts.tensors() | anchors.tensors()
            return [held[name][t].clone() for name in EXPERT]
        generator = model.sampling.generator("lemoe/expert", t)
        shapes = [t_.shape[1:] for t_ in (experts.up, experts.down, anchors.keys, anchors.inner, anchors.outer)]
        parts = [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]
        parts[1].zero_()
        return [part.to(model.device) for part in parts]

    def _calibrate(self, anchors: Anchors, in_force: Sequence[int]) -> None:
        """The thresholds, a cushion above the irrelevant prompts, and how far above them the worst edit is."""
        noise = anchors.near(anchors.irrelevant).amax(dim=2)
        anchors.put({"threshold": above_irrelevant(noise, self.spill, self.cushion)})
        fit, threshold, _ = anchors.fit(anchors.prompts[list(in_force)])
        anchors.put({"margin": (fit - threshold).min()})

    def _embedded(self, model: "EditedModel", anchors: Anchors, prompts: Sequence[str]) -> Tensor:
        """e of prompts: (prompts, views, model)."""
        none = anchors.centre.new_zeros(0, *anchors.centre.shape)
        return torch.cat([none, *(anchors.embedding(a, y) for a, y, _ in model.read(anchors, prompts))])


def _ffn(model: "EditedModel", site: Site) -> Site:
    """The whole FFN that an output projection belongs to; the projection itself where the FFN is no module of its own."""
    parent = site.path.rpartition(".")[0]
    if site.role == "moe_block" or parent == f"{model.layout.blocks}.{site.layer}":
        return site
    return replace(site, path=parent, in_features=site.out_features, role="ffn")


def _words(model: "EditedModel") -> Site:
    """The input embedding."""
    table = model.base.get_input_embeddings()  # type: ignore[operator]
    path = next(name for name, module in model.base.named_modules() if module is table)
    return Site(path, 0, 1, int(table.embedding_dim), role="embedding")
