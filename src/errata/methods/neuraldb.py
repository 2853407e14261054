"""NeuralDB: keys and residuals of edits, kept as they are behind a cosine gate.

Fei et al., "Scaling Knowledge Editing in LLMs to 100,000 Facts with Neural KV Database", ICLR 2026, arXiv 2507.18028.

What locate-then-edit methods would fold into one weight, the key k_i that the subject's last token has at one FFN output
projection and the residual r_i that makes the model say the target, is stored. A prompt token whose key is more like a
stored one than gamma has that residual added to its output; every other token is untouched, and nothing is overwritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.contrast import away, of_others
from errata.edit import Edit
from errata.fitting import Trace, fit
from errata.locate import LocateThenEdit
from errata.memory import Gated, add
from errata.objective import target_nll
from errata.routing import Decision, decide_nearest, kept_out, last_true
from errata.sites import Site

if TYPE_CHECKING:
    from errata.model import EditedModel

SAME = 1 - 1e-4
"""The cosine from which two keys are one: a later edit at the same key takes its place."""
NEVER = -2.0
"""Less than any cosine: of what is not to be found."""


class Database(Gated):
    """Keys k (n, ff) of length 1, residuals r (n, model), and gamma; n is the number of different keys.

    `ways` (n, ff) and `starts` (n,), where there are any, are what is distinct of each key among those of other subjects.
    """

    keys: Tensor
    ways: Tensor | None
    starts: Tensor | None
    residuals: Tensor
    owners: Tensor
    noise: Tensor
    gamma: Tensor

    def __init__(self, site: Site, device: torch.device | None = None, contrast: float = 0.0) -> None:
        """`contrast`: how far from other subjects a key must be on the way to a stored one; 0 asks for nothing."""
        super().__init__(site)
        self.contrast = contrast
        self.register_buffer("keys", torch.zeros(0, site.in_features, device=device))
        self.register_buffer("ways", self.keys.clone() if contrast else None)
        self.register_buffer("starts", torch.zeros(0, device=device) if contrast else None)
        self.register_buffer("residuals", torch.zeros(0, site.out_features, device=device))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("noise", torch.zeros(0, device=device))  # the best cosine of each irrelevant prompt so far
        self.register_buffer("gamma", torch.ones((), device=device))

    def cosines(self, a: Tensor) -> Tensor:
        """The cosine with each key: (..., ff) -> (..., n)."""
        return F.normalize(a.to(self.keys.dtype), dim=-1) @ self.keys.T

    def alike(self, a: Tensor, cosines: Tensor) -> Tensor:
        """These cosines, `NEVER` of tokens that lack what is distinct of their nearest key."""
        if self.ways is None or self.starts is None:
            return cosines
        nearest = cosines.argmax(dim=-1)
        along = (F.normalize(a.to(self.keys.dtype), dim=-1) * self.ways[nearest]).sum(dim=-1) - self.starts[nearest]
        return cosines.masked_fill((along < self.contrast)[..., None], NEVER)

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """A row is answered when the key of any of its prompt tokens is near enough to a stored one."""
        if len(self.keys) == 0:
            return Decision(torch.zeros(len(a), dtype=torch.bool, device=a.device), anywhere=False)
        cosines = self.cosines(a)
        told = self._nearest(self.alike(a, cosines))
        return told if self.ways is None else kept_out(told, self._nearest(cosines))

    def _nearest(self, cosines: Tensor) -> Decision:
        """Which rows have a prompt token that is near enough: (batch, seq, n)."""
        best = cosines.masked_fill(~self.routing.prompt[..., None], NEVER).amax(dim=1)
        return decide_nearest(best, self.gamma)

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """y + r_j at the prompt tokens whose key is near enough to k_j. Never while decoding."""
        if self.routing.decoding:
            return y
        cosines, index = self.alike(a, self.cosines(a)).max(dim=-1)
        near = (cosines >= self.gamma) & self.routing.prompt
        return torch.where(near[..., None], add(y, self.residuals[index]), y)


@dataclass
class NeuralDB(LocateThenEdit):
    """A key-value database beside one layer."""

    name: ClassVar[str] = "neuraldb"
    depth: ClassVar[float] = 27 / 31
    search: ClassVar[dict[str, tuple[object, ...]]] = {"steps": (25, 100), "clamp": (0.75, 4.0)}
    waives: ClassVar[dict[str, str]] = {}

    gamma: float | None = None
    """Least cosine at which a key is taken for a stored one [paper: a constant]. By default it is calibrated: as low as the
    irrelevant prompts allow, after every edit."""
    place: str = "prompt"
    """Whose key is stored: of the last token of the `prompt`, or of the `subject` [paper, at layers 4 to 8 of 32]; with
    `auto` of the subject, unless no value there makes the target likely, as on small models."""
    averaged: bool = False
    """Whether the key is the mean over contexts [paper, as in MEMIT], which an edit's own prompt may miss, or that of the
    bare prompt, which it meets exactly."""
    spill: float = 0.005
    """Calibration: the share of irrelevant prompts that may be answered by mistake."""
    contrast: float = 0.0
    """How far a key must be on the way from the mean of the same prompt about other subjects, 0, to the stored one, 1, so
    that neighbours are left alone; of edits at the end of the prompt. The paper asks for nothing (0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(0 <= self.spill < 1, f"spill={self.spill}: a share, in [0, 1)")
        self.check(self.gamma is None or -1 <= self.gamma <= 1, f"gamma={self.gamma}: a cosine, in [-1, 1]")
        self.check(0 <= self.contrast < 1, f"contrast={self.contrast}: a share, in [0, 1)")

    def prepare(self, model: "EditedModel") -> None:
        """An empty database."""
        model.install(self.name, Database(model.site(self), model.device, self.contrast))

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Find the residual of each edit at its key, and store both."""
        first = len(model.history) - len(edits)
        return [self._edit_one(model, edit, first + i) for i, edit in enumerate(edits)][-1]

    def _edit_one(self, model: "EditedModel", edit: Edit, index: int) -> Trace:
        memory = model.memories[self.name]
        assert isinstance(memory, Database)
        held = memory.tensors()
        # A token takes one residual, that of its nearest key; so this one is found as if there were no others.
        memory.put(held | {"keys": held["keys"][:0]})
        fact, value = self.located(model, memory, edit, target_nll, fit)
        memory.put(held)
        k = F.normalize(value.keys, dim=-1)
        k = F.normalize(k.mean(0) if self.averaged else k[0], dim=-1)
        told_apart = self.contrast and fact.places[0] == last_true(fact.rows.prompt)[0]
        others = of_others(edit) if told_apart else []
        memory.put(self._remember(model, memory, k, value.delta, index, others))
        return value.trace

    def _remember(
        self, model: "EditedModel", memory: Database, k: Tensor, r: Tensor, index: int, others: Sequence[str]
    ) -> dict[str, Tensor]:
        """The database with this edit in it; the same key again belongs to the newer edit. `others`: other subjects'."""
        other = memory.keys @ k < SAME
        states = model.irrelevant_states(memory)
        cosines = F.normalize(states.states, dim=-1) @ k
        best = torch.full((states.prompts,), -1.0, device=k.device).scatter_reduce(0, states.row, cosines, "amax")
        noise = torch.maximum(memory.noise, best) if len(memory.noise) else best
        gamma = self.gamma if self.gamma is not None else torch.quantile(noise, 1 - self.spill) + 1e-6
        told = {}
        if memory.ways is not None and memory.starts is not None:
            read = [model.routing.last_of_prompt(a) for a, _, _ in model.read(memory, others)]
            way, start = away(k, F.normalize(torch.cat([k.new_zeros(0, len(k)), *read]), dim=-1))
            told["ways"] = torch.cat([memory.ways[other], way[None]])
            told["starts"] = torch.cat([memory.starts[other], start[None]])
        return told | {
            "keys": torch.cat([memory.keys[other], k[None]]),
            "residuals": torch.cat([memory.residuals[other], r[None].to(memory.residuals)]),
            "owners": torch.cat([memory.owners[other], torch.tensor([index], device=k.device)]),
            "noise": noise,
            "gamma": torch.as_tensor(gamma, dtype=torch.float32, device=k.device),
        }
