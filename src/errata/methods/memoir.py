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
FEATURES = ("blend", "centred_mean", "mean", "last")


class ResidualMemory(Gated):
    """W_m (model, ff), and the masks (edits, ff bits) that index it."""

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
        self._index: MaskIndex | None = None
        width, packed = site.in_features, (site.in_features + 7) // 8
        self.register_buffer("weight", torch.zeros(site.out_features, width, device=device))
        self.register_buffer("permutation", permutation.to(device))
        self.register_buffer("background", torch.zeros(2, width, device=device))  # mean and last-token feature
        self.register_buffer("masks", torch.zeros(0, packed, dtype=torch.uint8, device=device))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("irrelevant", torch.zeros(0, packed, dtype=torch.uint8, device=device))  # their masks
        self.register_buffer("noise", torch.zeros(0, device=device))  # the best score of each irrelevant prompt so far
        self.register_buffer("threshold", torch.ones((), device=device))

    def features(self, a: Tensor) -> Tensor:
        """The mean over the prompt and the last prompt token of each row: (batch, seq, ff) -> (batch, 2, ff)."""
        a = a.float()
        return torch.stack([self.routing.over_prompt(a), self.routing.last_of_prompt(a)], dim=1)

    def mask(self, features: Tensor) -> Tensor:
        """The TopHash mask of each row's prompt, packed: (batch, 2, ff) -> (batch, bytes)."""
        centred = features - self.background
        z = {
            "blend": F.normalize(centred, dim=-1).sum(dim=1),
            "centred_mean": centred[:, 0],
            "mean": features[:, 0],
            "last": centred[:, 1],
        }[self.feature]
        return pack(top_hash(z, self.permutation, self.active))

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
        """Make these the stored tensors; an index of the masks before them is no longer theirs."""
        super().put(tensors)
        if "masks" in tensors and self._index is not None:
            known = len(self._index)
            same = len(self.masks) >= known and torch.equal(self.masks[:known], torch.from_numpy(self._index.rows))
            if same:
                self._index.grow(self.masks.numpy())
            else:
                self._index = None

    def _floor(self) -> int:
        """The least number of shared features that may reach the threshold."""
        chance = self.active / self.site.in_features
        return max(1, math.floor(self.active * (chance + float(self.threshold) * (1 - chance))) - 1)

    def _indexed(self) -> MaskIndex | None:
        """An index of the masks, where there are many and they are on the CPU."""
        if len(self.masks) < MANY or self.masks.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if self._index is None:
            self._index = MaskIndex.of(self.masks.numpy(), self.site.in_features)
        return self._index

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """A row is answered when its mask overlaps a stored one enough; that stored mask is then used."""
        if len(self.masks) == 0:
            return Decision(torch.zeros(len(a), dtype=torch.bool, device=a.device), anywhere=False)
        index = self._indexed()
        floor = 0 if index is None else self._floor()
        shared, picks = nearest(self.mask(self.features(a)), self.masks, floor, index)
        return decide_best(self.corrected(shared), picks, self.threshold)

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """W a + W_m (m * a), with the stored mask m of each row."""
        assert decision.pick is not None
        m = unpack(self.masks[decision.pick], self.site.in_features)
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
    feature: str = "last"
    """What a mask is made of: the prompt's `last` token, its `centred_mean` [released], its `mean`, or the `blend` of the
    first two. On ZsRE they route equally well; where rephrasings share few words, only the last token does."""
    steps: int = 30
    """Most steps an edit [released: 30 to 70]."""
    optimizer: str = "adam"
    """`adam`, which learns rare words as fast as common ones, or `sgd` [released, with lr=1 clip=1 end=false]."""
    lr: float = 0.1
    """Learning rate."""
    clip: float | None = None
    """Largest norm of the gradient."""
    scaled: bool = True
    """Whether `lr` and `clip` are in units of the layer: a typical entry of W for adam, (|y| / |a|)^2 and |a| / |y| for
    sgd, so that the same values do for layers of any scale; `false` takes them as they are [released]."""
    end: bool = True
    """Whether the end of the text is learnt with the target, so that the model says it and stops [released: no]."""
    loss: float = 0.02
    """Stop at this loss [released]."""
    weight_decay: float = 0.0
    """Decay of all of W_m at every step. The released 1e-5 shrinks a memory to a fraction over a long stream."""

    def __post_init__(self) -> None:
        self.check(0 < self.active <= 1, f"active={self.active}: a fraction of the width, in (0, 1]")
        self.check(self.feature in FEATURES, f"feature {self.feature!r}: one of {', '.join(FEATURES)}")
        self.check(self.optimizer in OPTIMIZERS, f"optimizer {self.optimizer!r}: one of {', '.join(OPTIMIZERS)}")
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
        memory.put({"irrelevant": irrelevant, "noise": torch.full((len(irrelevant),), -1.0, device=model.device)})

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

        columns = unpack(mask[0], memory.site.in_features).nonzero().squeeze(1)
        a = suffix.a[..., columns].to(memory.weight.dtype)
        w = memory.weight[:, columns].clone().requires_grad_()

        def loss() -> Tensor:
            logits = suffix.logits(lambda _, y: add(y, F.linear(a, w)))
            return target_nll(logits, rows.labels, rows.row_of_label)

        lr, clip = self._step_size(model, memory)
        trace = fit([w], loss, steps=self.steps, lr=lr, optimizer=self.optimizer, clip=clip, stop=Stop(self.loss))
        weight = memory.weight * (1 - self.lr * self.weight_decay) ** trace.steps
        weight[:, columns] = w.detach()
        memory.put({"weight": weight} | self._remember(memory, mask, index))
        return trace

    def _step_size(self, model: "EditedModel", memory: ResidualMemory) -> tuple[float, float | None]:
        """Learning rate and clip."""
        if not self.scaled:
            return self.lr, self.clip
        gain = model.gain(memory)
        lr = self.lr * (model.entry(memory) if self.optimizer == "adam" else gain**2)
        return lr, None if self.clip is None else self.clip / gain

    def _remember(self, memory: ResidualMemory, mask: Tensor, index: int) -> dict[str, Tensor]:
        """The index with this edit in it; the same mask again belongs to the newer edit."""
        known = (memory.masks == mask).all(dim=1)
        owners = torch.where(known, index, memory.owners)
        if known.any():
            return {"owners": owners}
        noise = torch.maximum(memory.noise, memory.score(memory.irrelevant, mask)[:, 0])
        tau = self.tau if self.tau is not None else torch.quantile(noise, 1 - self.spill) + 1e-6
        return {
            "masks": torch.cat([memory.masks, mask]),
            "owners": torch.cat([owners, torch.tensor([index], device=owners.device)]),
            "noise": noise,
            "threshold": torch.as_tensor(tau, dtype=torch.float32, device=owners.device),
        }
