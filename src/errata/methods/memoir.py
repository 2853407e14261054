"""MEMOIR: lifelong editing with minimal overwrite and informed retention.

Wang, Qin, Dimitriadis, Favero, Frossard, "MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed Retention
for LLMs", NeurIPS 2025, arXiv 2506.07899.

A zero-initialised residual memory W_m stands beside one FFN output projection W. Each edit writes only through the input
features that its prompt's TopHash mask selects, and the masks are kept: a later prompt whose own mask overlaps a stored
one enough is answered through the stored mask, any other prompt by the pretrained model exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from errata.batch import Batch, Part, added, answers, distinct, together
from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import OPTIMIZERS, Stop, Trace, fit_each
from errata.mask_index import MaskIndex
from errata.masks import nearest, overlaps, pack, top_hash, unpack
from errata.memory import Gated, add
from errata.objective import target_nll
from errata.routing import Decision, decide_best
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel

MANY = 20_000
"""Edits from which on the nearest mask is looked up in an index rather than by comparing all of them."""
FEATURES = {
    "any": ("blend", "centred_mean", "last"), "blend": ("blend",), "centred_mean": ("centred_mean",), "mean": ("mean",),
    "last": ("last",),
}  # fmt: skip
"""What masks can be made of, and the views that each stands for: one mask a view is stored."""


class ResidualMemory(Gated):
    """W_m (model, ff), and the masks (views, edits, ff bits) that index it; it is read through those of the first view."""

    weight: Tensor
    permutation: Tensor
    background: Tensor
    masks: Tensor
    owners: Tensor
    irrelevant: Tensor
    noise: Tensor
    threshold: Tensor

    def __init__(self, site: Site, active: int, feature: str, permutation: Tensor, device: torch.device) -> None:
        super().__init__(site)
        self.active, self.feature = active, feature
        self._indexes: list[MaskIndex] = []
        width, packed, views = site.in_features, (site.in_features + 7) // 8, len(FEATURES[feature])
        self.register_buffer("weight", torch.zeros(site.out_features, width, device=device))
        self.register_buffer("permutation", permutation.to(device))
        self.register_buffer("background", torch.zeros(2, width, device=device))  # mean and last-token feature
        none = torch.zeros(views, 0, packed, dtype=torch.uint8, device=device)
        self.register_buffer("masks", none)
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("irrelevant", none)  # the masks of irrelevant prompts ...
        self.register_buffer("noise", torch.zeros(views, 0, device=device))  # ... and the best score of each so far
        self.register_buffer("threshold", torch.ones(views, device=device))

    def features(self, a: Tensor) -> Tensor:
        """The mean over the prompt and the last prompt token of each row: (batch, seq, ff) -> (batch, 2, ff)."""
        a = a.float()
        return torch.stack([self.routing.over_prompt(a), self.routing.last_of_prompt(a)], dim=1)

    def mask(self, features: Tensor) -> Tensor:
        """The TopHash masks of each row's prompt, packed: (batch, 2, ff) -> (views, batch, bytes)."""
        centred = features - self.background
        z = {
            "blend": F.normalize(centred, dim=-1).sum(dim=1),
            "centred_mean": centred[:, 0],
            "mean": features[:, 0],
            "last": centred[:, 1],
        }
        views = [top_hash(z[view], self.permutation, self.active) for view in FEATURES[self.feature]]
        return torch.stack([pack(view) for view in views])

    def score(self, mask: Tensor, stored: Tensor) -> Tensor:
        """Overlap corrected for chance, R' = (R - N/D) / (1 - N/D): 0 for unrelated masks, 1 for equal ones.

        Packed (batch, bytes), (edits, bytes) -> (batch, edits).
        """
        return self.corrected(overlaps(mask, stored))

    def corrected(self, shared: Tensor) -> Tensor:
        """R' of a number of shared features."""
        chance = self.active / self.site.in_features
        return (shared / self.active - chance) / max(1 - chance, 1 / self.site.in_features)

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Make these the stored tensors; indexes of other masks are no longer theirs."""
        super().put(tensors)
        if "masks" in tensors and self._indexes:
            stored = [masks.numpy() for masks in self.masks]
            known = len(self._indexes[0])
            if all(np.array_equal(new[:known], old.rows) for new, old in zip(stored, self._indexes, strict=True)):
                for index, masks in zip(self._indexes, stored, strict=True):
                    index.grow(masks)
            else:
                self._indexes = []

    def _floor(self, view: int) -> int:
        """The least number of shared features that may reach the threshold."""
        chance = self.active / self.site.in_features
        return max(1, math.floor(self.active * (chance + float(self.threshold[view]) * (1 - chance))) - 1)

    def _indexed(self) -> list[MaskIndex]:
        """An index of the masks of each view, where there are many and they are on the CPU."""
        if len(self.owners) < MANY or self.masks.device.type != "cpu" or torch.compiler.is_compiling():
            return []
        if not self._indexes:
            self._indexes = [MaskIndex.of(masks.numpy(), self.site.in_features) for masks in self.masks]
        return self._indexes

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """A row is answered when its mask overlaps a stored one enough, in the view where it does so best.

        The stored mask of that edit is then used.
        """
        if len(self.owners) == 0:
            return Decision(torch.zeros(len(a), dtype=torch.bool, device=a.device), anywhere=False)
        mask, indexes, tau = self.mask(self.features(a)), self._indexed(), self.threshold
        found = [
            nearest(mask[v], self.masks[v], self._floor(v) if indexes else 0, indexes[v] if indexes else None)
            for v in range(len(mask))
        ]
        scores = torch.stack([self.corrected(shared) for shared, _ in found], dim=1)  # (batch, views, few)
        picks = torch.stack([which for _, which in found], dim=1)
        room = (scores[..., 0] - tau) / (1 - tau).clamp(min=1e-6)
        view = room.argmax(dim=1)
        best = torch.arange(len(view), device=view.device), view
        return decide_best(scores[best], picks[best], tau[view])

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """W a + W_m (m * a), with the stored mask m of each row."""
        assert decision.pick is not None
        m = unpack(self.masks[0, decision.pick], self.site.in_features)
        return add(y, F.linear(a.to(self.weight.dtype) * m[:, None], self.weight))


@dataclass
class Memoir(Editor):
    """A residual memory behind sparse, prompt-dependent masks."""

    name: ClassVar[str] = "memoir"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}

    active: float = 4096 / 14336
    """N, the features an edit may use, as a fraction of the input width [released: 4096 of 14336]."""
    tau: float | None = None
    """Threshold on the chance-corrected overlap [released, LLaMA-3: an overlap of .4, which is .16 here]. By default it
    is calibrated: as low as the irrelevant prompts allow, after every edit."""
    spill: float = 0.005
    """Calibration: the share of irrelevant prompts that may be answered by mistake."""
    feature: str = "any"
    """What a mask is made of: the prompt's `centred_mean` [released], its `last` token, its `mean`, the `blend` of the
    first two; or a mask of `any` of these three, and the nearest one decides. On ZsRE the mean routes better, where
    rephrasings share few words only the last token does, and which a model is like is not known before."""
    steps: int = 70
    """Most steps an edit [released: 30 to 70]."""
    optimizer: str = "adalayer"
    """`adalayer`, which learns rare words as fast as common ones and overwrites little; `adam`, which overwrites more; or
    `sgd` [released, with lr=1 clip=1 tries=1 loss=0.02 end=false]."""
    lr: float = 0.02
    """Learning rate."""
    tries: int = 3
    """While the prompt itself is not answered with the target, so many times `steps` are made, with four times the
    learning rate of the time before [released: 1]."""
    clip: float | None = None
    """Largest norm of the gradient."""
    scaled: bool = True
    """Whether `lr` and `clip` are in units of the layer: (|y| / |a|)^2 and |a| / |y| for sgd, a typical entry of W for the
    others, so that the same values do for layers of any scale; `false` takes them as they are [released]."""
    end: bool = True
    """Whether the end of the text is learnt with the target, so that the model says it and stops [released: no]."""
    loss: float = 0.005
    """Stop at this loss [released: 0.02]. A lower one leaves a margin that later edits may eat into."""
    weight_decay: float = 0.0
    """Decay of all of W_m at every step. The released 1e-5 shrinks a memory to a fraction over a long stream."""

    def __post_init__(self) -> None:
        self.check(0 < self.active <= 1, f"active={self.active}: a fraction of the width, in (0, 1]")
        self.check(self.feature in FEATURES, f"feature {self.feature!r}: one of {', '.join(FEATURES)}")
        self.check(self.optimizer in OPTIMIZERS, f"optimizer {self.optimizer!r}: one of {', '.join(OPTIMIZERS)}")
        self.check(self.tries >= 1, f"tries={self.tries}: at least 1")
        self.check(0 <= self.spill < 1, f"spill={self.spill}: a share, in [0, 1)")

    def prepare(self, model: "EditedModel") -> None:
        """An empty memory; the background feature and the masks of the irrelevant prompts."""
        site = model.site(self)
        order = torch.randperm(site.in_features, generator=model.sampling.generator("memoir/permutation"))
        active = max(1, round(self.active * site.in_features))
        memory = ResidualMemory(site, active, self.feature, order, model.device)
        model.install(self.name, memory)
        prompts = [probe.prompt for probe in model.sampling.irrelevant]
        features = torch.cat([memory.features(a) for a, _, _ in model.read(memory, prompts)])
        memory.put({"background": features.mean(0)})
        irrelevant = memory.mask(features)
        memory.put({"irrelevant": irrelevant, "noise": torch.full(irrelevant.shape[:2], -1.0, device=model.device)})

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Write each edit through its own mask, all at once, and keep the masks."""
        index, traces = len(model.history) - len(edits), list[Trace]()
        for run in distinct([edit.prompt for edit in edits]):
            traces = self._edit_together(model, [edits[i] for i in run], index)
            index += len(run)
        return traces[-1]

    def _edit_together(self, model: "EditedModel", edits: Sequence[Edit], index: int) -> list[Trace]:
        """Each edit learns its own columns of W_m, beside the shifts that the others make meanwhile; these are added up.

        Tried again are those whose prompts are then not answered with their targets.
        """
        memory = model.memories[self.name]
        assert isinstance(memory, ResidualMemory)
        pairs = [[(context, edit.target) for context in model.contexts(edit.prompt)] for edit in edits]
        batch = Batch(model, memory, pairs, self.end)
        with model.routing.reading(batch.whole.rows.prompt):
            features = batch.whole.each(memory.features(batch.whole.suffix.a))
        masks = memory.mask(torch.stack([own[0] for own in features]))
        columns = [unpack(mask, memory.site.in_features).nonzero().squeeze(1) for mask in masks[0]]
        lr, clip = self._step_size(model, memory)

        @cache
        def inputs(part: Part) -> list[tuple[int, Tensor]]:
            own, dtype = zip(part.edits, part.each(part.suffix.a), strict=True), memory.weight.dtype
            return [(e, a[..., columns[e]].to(dtype)) for e, a in own]

        def logits(part: Part, w: Sequence[Tensor]) -> Tensor:
            return part.suffix.logits(lambda _, y: add(y, torch.cat([F.linear(a, w[e]) for e, a in inputs(part)])))

        def learnt(weight: Tensor, todo: Sequence[int], lr: float) -> tuple[Tensor, list[Trace]]:
            w = [weight[:, own].clone().requires_grad_() for own in columns]

            def nll(moving: Sequence[int]) -> Tensor:
                wanted = [todo[i] for i in moving]
                part = batch.part(wanted)
                return part.losses(logits(part, together(weight, columns, w)), target_nll, wanted)

            problems = [[w[e]] for e in todo]
            stop = Stop(self.loss)
            traces = fit_each(problems, nll, steps=self.steps, lr=lr, optimizer=self.optimizer, clip=clip, stop=stop)
            return added(weight, columns, [own.detach() for own in w]), traces

        weight, todo = memory.weight, list(range(len(edits)))
        losses: list[list[float]] = [[] for _ in edits]
        for again in range(self.tries):
            weight, traces = learnt(weight, todo, lr * 4**again)
            for e, trace in zip(todo, traces, strict=True):
                losses[e] = losses[e][:-1] + list(trace.losses)
            with torch.no_grad():
                said = batch.whole.targets(logits(batch.whole, [weight[:, own] for own in columns]))
            if not (todo := [e for e, answer in enumerate(said) if not answers(*answer)]):
                break
        traces = [Trace(tuple(own)) for own in losses]
        if self.weight_decay:
            outside = ~unpack(masks[0], memory.site.in_features).any(dim=0)
            weight[:, outside] *= (1 - self.lr * self.weight_decay) ** sum(trace.steps for trace in traces)
        memory.put({"weight": weight})
        for e in range(len(edits)):
            memory.put(self._remember(memory, masks[:, e : e + 1], index + e))
        return traces

    def _step_size(self, model: "EditedModel", memory: ResidualMemory) -> tuple[float, float | None]:
        """Learning rate and clip."""
        if not self.scaled:
            return self.lr, self.clip
        gain = model.gain(memory)
        lr = self.lr * (gain**2 if self.optimizer == "sgd" else model.entry(memory))
        return lr, None if self.clip is None else self.clip / gain

    def _remember(self, memory: ResidualMemory, mask: Tensor, index: int) -> dict[str, Tensor]:
        """The index with this edit in it; the same mask again belongs to the newer edit."""
        known = (memory.masks == mask).all(dim=2).all(dim=0)
        owners = torch.where(known, index, memory.owners)
        if known.any():
            return {"owners": owners}
        near = [memory.score(there, new)[:, 0] for there, new in zip(memory.irrelevant, mask, strict=True)]
        noise = torch.maximum(memory.noise, torch.stack(near))
        allowed = torch.quantile(noise, 1 - self.spill / len(noise), dim=1) + 1e-6
        threshold = allowed if self.tau is None else torch.full_like(memory.threshold, self.tau)
        return {
            "masks": torch.cat([memory.masks, mask], dim=1),
            "owners": torch.cat([owners, torch.tensor([index], device=owners.device)]),
            "noise": noise,
            "threshold": threshold,
        }
