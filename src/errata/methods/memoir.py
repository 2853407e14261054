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
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import OPTIMIZERS, Stop, Trace, fit
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
        self.register_buffer("masks", torch.zeros(views, 0, packed, dtype=torch.uint8, device=device))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer(
            "irrelevant", torch.zeros(views, 0, packed, dtype=torch.uint8, device=device)
        )  # their masks
        self.register_buffer(
            "noise", torch.zeros(views, 0, device=device)
        )  # the best score of each irrelevant prompt so far
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
        """Write each edit through its own mask, and keep the mask."""
        first = len(model.history) - len(edits)
        return [self._edit_one(model, edit, first + i) for i, edit in enumerate(edits)][-1]

    def _edit_one(self, model: "EditedModel", edit: Edit, index: int) -> Trace:
        memory = model.memories[self.name]
        assert isinstance(memory, ResidualMemory)
        rows = model.rows([(context, edit.target) for context in model.contexts(edit.prompt)], self.end)
        suffix = model.suffix(memory, rows)
        with model.routing.reading(rows.prompt):
            mask = memory.mask(memory.features(suffix.a)[:1])

        columns = unpack(mask[0, 0], memory.site.in_features).nonzero().squeeze(1)
        a = suffix.a[..., columns].to(memory.weight.dtype)
        w = memory.weight[:, columns].clone().requires_grad_()

        def logits() -> Tensor:
            return suffix.logits(lambda _, y: add(y, F.linear(a, w)))

        def loss() -> Tensor:
            return target_nll(logits(), rows.labels, rows.row_of_label)

        losses: list[float] = []
        own, (lr, clip) = rows.row_of_label == 0, self._step_size(model, memory)
        for again in range(self.tries):
            rate = lr * 4**again
            trace = fit([w], loss, steps=self.steps, lr=rate, optimizer=self.optimizer, clip=clip, stop=Stop(self.loss))
            losses = losses[:-1] + list(trace.losses)
            with torch.no_grad():
                if bool((logits()[own].argmax(dim=1) == rows.labels[own]).all()):
                    break
        trace = Trace(tuple(losses))
        weight = memory.weight * (1 - self.lr * self.weight_decay) ** trace.steps
        weight[:, columns] = w.detach()
        memory.put({"weight": weight} | self._remember(memory, mask, index))
        return trace

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
        if self.tau is not None:
            threshold = torch.full_like(memory.threshold, self.tau)
        else:
            threshold = torch.quantile(noise, 1 - self.spill / len(noise), dim=1) + 1e-6
        return {
            "masks": torch.cat([memory.masks, mask], dim=1),
            "owners": torch.cat([owners, torch.tensor([index], device=owners.device)]),
            "noise": noise,
            "threshold": threshold,
        }
