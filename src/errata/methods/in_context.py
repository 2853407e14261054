"""In-context editing: retrieve the edit and put it in front of the request.

Zheng, Li, Dong, Fan, Wu, Xu, Chang, "Can We Edit Factual Knowledge by In-Context Learning?" (IKE), EMNLP 2023, arXiv
2305.12740; with retrieval over a stream of edits, as in Zhong et al., "MQuAKE" (MeLLo), EMNLP 2023, arXiv 2305.14795.

What a user would do without an editor: keep the corrections as text, find the one that a request is about, and paste it
above the request. A request is known by the model's own states behind one block; no weight changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.calibration import above_irrelevant
from errata.context import EditedStack, Prefixed, stack_site
from errata.edit import Edit
from errata.editor import Editor
from errata.errors import EditFailed
from errata.fitting import Trace
from errata.objective import target_nll
from errata.routing import Decision, decide_nearest
from errata.sites import Site
from errata.tokens import Rows

if TYPE_CHECKING:
    from errata.model import EditedModel


class Corrections(Prefixed):
    """Keys (n, 2, model), texts (n, longest) right-aligned token ids with -1 in front, thresholds of retrieval (2,)."""

    keys: Tensor
    texts: Tensor
    owners: Tensor
    background: Tensor
    irrelevant: Tensor
    noise: Tensor
    threshold: Tensor

    def __init__(self, site: Site, filler: int, device: torch.device | None = None) -> None:
        super().__init__(site)
        self.filler = filler
        self.register_buffer("keys", torch.zeros(0, 2, site.out_features, device=device))
        self.register_buffer("texts", torch.zeros(0, 0, dtype=torch.long, device=device))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("background", torch.zeros(2, site.out_features, device=device))
        self.register_buffer("irrelevant", torch.zeros(0, 2, site.out_features, device=device))  # their keys
        self.register_buffer("noise", torch.zeros(0, 2, device=device))  # the best cosines of irrelevant prompts so far
        self.register_buffer("threshold", torch.ones(2, device=device))

    def features(self, states: Tensor) -> Tensor:
        """The mean over the prompt and the last prompt token: (batch, seq, model) -> (batch, 2, model)."""
        states = states.float()
        return torch.stack([self.routing.over_prompt(states), self.routing.last_of_prompt(states)], dim=1)

    def key(self, features: Tensor) -> Tensor:
        """Both features less those of irrelevant prompts, at length 1."""
        return F.normalize(features - self.background, dim=-1)

    def cosines(self, keys: Tensor, stored: Tensor) -> Tensor:
        """(batch, 2, model), (n, 2, model) -> (batch, n, 2), of each feature."""
        return torch.einsum("bfm,nfm->bnf", keys, stored)

    def decide(self, states: Tensor) -> Decision:
        """A row is put in context when it is near enough to the prompt of an edit by either feature.

        Which one tells rephrasings differs from model to model; each has a threshold, and the one further above it decides.
        """
        if len(self.keys) == 0:
            return Decision(torch.zeros(len(states), dtype=torch.bool, device=states.device), anywhere=False)
        above = self.cosines(self.key(self.features(states)), self.keys) - self.threshold
        return decide_nearest(above.amax(-1), above.new_zeros(()))

    def prefix(self, decision: Decision) -> tuple[Tensor, Tensor]:
        """The text of each row's edit."""
        assert decision.pick is not None
        texts = self.texts[decision.pick]
        return torch.where(texts < 0, self.filler, texts), (texts >= 0) & decision.rows[:, None]


@dataclass
class InContext(Editor):
    """Corrections that are retrieved and put in front of the request."""

    name: ClassVar[str] = "in_context"
    depth: ClassVar[float] = 0.5
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "spill": (0.001, 0.005, 0.02), "template": ("{prompt} {target}.\n", "{prompt} {target}. ", "{prompt} {target}\n\n"),
    }  # fmt: skip
    waives: ClassVar[dict[str, str]] = {
        "target probability": "whether a model says what it has just read is up to the model",
        "first edit held": "as above",
        "contradiction": "as above",
    }

    template: str = "{prompt} {target}.\n"
    """What is put in front: the edit as text. IKE adds demonstrations, which a base model needs less than their length
    costs."""
    threshold: float | None = None
    """Least cosine, of either feature, at which an edit is retrieved. By default each has its own, calibrated after every
    edit: a cushion above what the irrelevant prompts reach."""
    spill: float = 0.005
    """Calibration: the share of irrelevant prompts that may be nearer to an edit than the thresholds."""
    cushion: float = 0.4
    """How far the thresholds are from the irrelevant prompts towards the edits, for prompts that are like neither."""

    def __post_init__(self) -> None:
        for part in ("{prompt}", "{target}"):
            self.check(part in self.template, f"template {self.template!r} lacks {part}")
        self.check(0 <= self.spill < 1, f"spill={self.spill}: a share, in [0, 1)")
        self.check(0 <= self.cushion < 1, f"cushion={self.cushion}: a share, in [0, 1)")

    def prepare(self, model: "EditedModel") -> None:
        """No corrections; the keys of the irrelevant prompts."""
        memory = Corrections(stack_site(model.base, model.site(self).layer), model.tokens.filler, model.device)
        model.install(self.name, memory)
        prompts = [probe.prompt for probe in model.sampling.irrelevant]
        features = torch.cat([self._features(model, memory, prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
        memory.put({"background": features.mean(0), "noise": torch.full((len(features), 2), -1.0, device=model.device)})
        memory.put({"irrelevant": memory.key(features)})

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Keep the edits, each under the key of its prompt."""
        memory = model.memories[self.name]
        assert isinstance(memory, Corrections)
        rows = model.rows([(edit.prompt, edit.target) for edit in edits])
        before = self._loss(model, rows)
        keys = memory.key(self._features(model, memory, [edit.prompt for edit in edits]))
        first = len(model.history) - len(edits)
        for i, edit in enumerate(edits):
            text = model.tokens.encode(self.template.replace("{prompt}", edit.prompt).replace("{target}", edit.target))
            memory.put(self._remember(memory, keys[i], torch.tensor(text, device=model.device), first + i))
        return Trace((before, self._loss(model, rows)))

    @torch.no_grad()
    def _features(self, model: "EditedModel", memory: Corrections, prompts: Sequence[str]) -> Tensor:
        """What requests are known by: (prompts, 2, model)."""
        rows = model.tokens.rows_of_ids([(model.tokens.prompt(prompt), []) for prompt in prompts], model.device)
        stack = model.base.get_submodule(memory.site.path)
        assert isinstance(stack, EditedStack)
        with model.routing.reading(rows.prompt):
            return memory.features(stack.states(rows.ids, memory, {"attention_mask": rows.attention}))

    @torch.no_grad()
    def _loss(self, model: "EditedModel", rows: Rows) -> float:
        """The loss of the targets as the model is. Raises `EditFailed` when it is not finite."""
        with model.routing.prompt_is(rows.prompt):
            logits = model(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits[rows.wanted]
        loss = float(target_nll(logits, rows.labels, rows.row_of_label))
        if not math.isfinite(loss):
            raise EditFailed(f"the loss became {loss} with the edit in context")
        return loss

    def _remember(self, memory: Corrections, key: Tensor, text: Tensor, index: int) -> dict[str, Tensor]:
        """The corrections with this one among them; the same key again belongs to the newer edit."""
        other = (memory.keys != key).flatten(1).any(dim=1)
        longest = max(memory.texts.shape[1], len(text))
        texts = F.pad(memory.texts[other], (longest - memory.texts.shape[1], 0), value=-1)
        noise = torch.maximum(memory.noise, memory.cosines(memory.irrelevant, key[None])[:, 0])
        given = None if self.threshold is None else torch.full((2,), self.threshold)
        threshold = above_irrelevant(noise, self.spill, self.cushion) if given is None else given
        return {
            "keys": torch.cat([memory.keys[other], key[None]]),
            "texts": torch.cat([texts, F.pad(text, (longest - len(text), 0), value=-1)[None]]),
            "owners": torch.cat([memory.owners[other], torch.tensor([index], device=key.device)]),
            "noise": noise,
            "threshold": threshold.to(key.device),
        }
