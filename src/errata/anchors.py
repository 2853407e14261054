"""Anchors: LEMoE's router, which reads what no edit changes and sends a prompt to one expert, or to none.

Wang, Li, "LEMoE", EMNLP 2024, arXiv 2406.20030, section 3.2: KV-anchor routing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.memory import Memory
from errata.routing import Decision, decide, kept_out
from errata.sites import Site

FEATURES = {"any": ("mean", "last"), "mean": ("mean",), "last": ("last",), "embedding": ("mean",)}
"""What a prompt can be routed by, and the views that each stands for."""


class Anchors(Memory):
    """The router, beside the FFN or the input embedding: changes nothing, and decides which expert answers a prompt."""

    keys: Tensor
    inner: Tensor
    outer: Tensor
    centre: Tensor
    prompts: Tensor
    owners: Tensor
    threshold: Tensor
    margin: Tensor
    ways: Tensor | None
    starts: Tensor | None

    def __init__(self, site: Site, feature: str, width: int, device: torch.device, contrast: float = 0.0) -> None:
        """`contrast`: how far from other subjects a prompt must be on the way to an edit's; 0 asks for nothing."""
        super().__init__(site)
        self.contrast = contrast
        self.views, self.embeds = FEATURES[feature], feature == "embedding"
        views, d = len(self.views), site.out_features if self.embeds else site.in_features
        hidden = max(1, d // 4)
        self.register_buffer("keys", torch.zeros(0, width, device=device))  # k_i
        self.register_buffer("inner", torch.zeros(0, hidden, views * d, device=device))  # W_down of each expert
        self.register_buffer("outer", torch.zeros(0, width, hidden, device=device))  # W_up of each expert
        self.register_buffer("centre", torch.zeros(views, d, device=device))  # mean over irrelevant prompts
        self.register_buffer("prompts", torch.zeros(0, views, d, device=device))  # e of every edit made
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))  # ... and its expert, or -1
        self.register_buffer("threshold", torch.full((views,), torch.inf, device=device))
        self.register_buffer("margin", torch.zeros((), device=device))  # least fit of an edit less the threshold
        self.register_buffer("ways", self.prompts.clone() if contrast else None)  # what is distinct of every edit ...
        self.register_buffer("starts", torch.zeros(0, views, device=device) if contrast else None)  # ... and from where
        self.irrelevant = torch.zeros(0, views, d, device=device)
        """e of the irrelevant prompts; not stored."""

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """y as it is; on a prompt, the decision is made."""
        self.routing.decision(self.name, lambda: self.decide(a, y))
        return y

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """The expert of each row, or none."""
        if len(self.keys) == 0:
            return Decision(torch.zeros(len(y), dtype=torch.bool, device=y.device), anywhere=False)
        e = self.embedding(a, y)
        cosine = self._cosines(e)
        told = decide(*self._fit(e, self._alike(e, cosine)))
        return told if self.ways is None else kept_out(told, decide(*self._fit(e, cosine)))

    def fit(self, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How well each prompt fits the expert that is picked for it, the threshold that this must reach, and that expert.

        An expert takes prompts that are nearer to one of its edits than irrelevant prompts are, in some view in which they
        have what is distinct of the nearest edit; of those that take a prompt, that with the highest score is picked.
        (batch, views, model) -> (batch,), (batch,), (batch,).
        """
        return self._fit(e, self._alike(e, self._cosines(e)))

    def _fit(self, e: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, given how near prompts are to each edit: (batch, views, model), (batch, views, edits)."""
        near = self._of_experts(cosine)
        threshold = self.threshold[:, None].expand_as(near)
        room = (near - threshold) / (1 - threshold).clamp(min=1e-6)
        best = room.max(dim=1)
        takes = best.values >= 0
        pick = torch.where(takes.any(dim=1), self.scores(e).where(takes, -torch.inf).argmax(1), best.values.argmax(1))
        row = torch.arange(len(e), device=e.device)
        view = best.indices[row, pick]
        return near[row, view, pick], self.threshold[view], pick

    def near(self, e: Tensor) -> Tensor:
        """The cosine to the nearest edit of each expert, in each view: (batch, views, model) -> (batch, views, experts)."""
        return self._of_experts(self._cosines(e))

    def _cosines(self, e: Tensor) -> Tensor:
        """The cosine to every edit, -1 of those not in force: (batch, views, model) -> (batch, views, edits)."""
        return torch.einsum("bvd,pvd->bvp", e, self.prompts).where(self.owners >= 0, -1.0)

    def _alike(self, e: Tensor, cosine: Tensor) -> Tensor:
        """These cosines, -1 throughout in a view in which what is distinct of the nearest edit is missing."""
        if self.ways is None or self.starts is None:
            return cosine
        nearest, view = cosine.argmax(dim=-1), torch.arange(len(self.views), device=e.device)
        along = (e * self.ways[nearest, view]).sum(dim=-1) - self.starts[nearest, view]
        return cosine.masked_fill((along < self.contrast)[..., None], -1.0)

    def _of_experts(self, cosine: Tensor) -> Tensor:
        """The largest of each expert's edits: (batch, views, edits) -> (batch, views, experts)."""
        experts = self.owners.clamp(min=0).expand_as(cosine)
        return cosine.new_full((*cosine.shape[:2], len(self.keys)), -1.0).scatter_reduce(2, experts, cosine, "amax")

    def features(self, a: Tensor, y: Tensor) -> Tensor:
        """What a prompt is routed by: (batch, seq, ...) -> (batch, views, model)."""
        read = (y if self.embeds else a).float()
        found = {"mean": self.routing.over_prompt(read), "last": self.routing.last_of_prompt(read)}
        return torch.stack([found[view] for view in self.views], dim=1)

    def embedding(self, a: Tensor, y: Tensor) -> Tensor:
        """e, the features centred and each of length 1: (batch, seq, ...) -> (batch, views, model)."""
        return F.normalize(self.features(a, y) - self.centre, dim=-1)

    def scores(self, e: Tensor) -> Tensor:
        """k_i . v_i with v_i = W_up SiLU(W_down e): (batch, views, model) -> (batch, experts)."""
        return score(e, self.keys, self.inner, self.outer)


def score(e: Tensor, keys: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """k_i . W_up SiLU(W_down e) of every expert: (batch, views, model) -> (batch, experts)."""
    hidden = F.silu(torch.einsum("ihd,bd->bih", inner, e.flatten(1)))
    return torch.einsum("iw,iwh,bih->bi", keys, outer, hidden)
