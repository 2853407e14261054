"""MEMOIR: lifelong editing with minimal overwrite and informed retention.

Wang, Qin, Dimitriadis, Favero, Frossard, "MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed Retention
for LLMs", NeurIPS 2025, arXiv 2506.07899.

A zero-initialised residual memory W_m stands beside one FFN output projection W. Each edit writes only through the input
features that its prompt's TopHash mask selects, and the masks are kept: a later prompt whose own mask overlaps a stored
one enough is answered through the stored mask, any other prompt by the pretrained model exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from errata import protection
from errata.batch import Batch, Part, added, answers, around, distinct
from errata.contrast import of_others, of_subject
from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import OPTIMIZERS, Stop, Trace, fit_each
from errata.masks import pack, unpack
from errata.memory import add
from errata.objective import target_nll
from errata.residual_memory import FEATURES, ResidualMemory, held
from errata.wording import wordings

if TYPE_CHECKING:
    from errata.model import EditedModel

MASKS = ("top_hash", "random", "random_columns")


@dataclass
class Memoir(Editor):
    """A residual memory behind sparse, prompt-dependent masks."""

    name: ClassVar[str] = "memoir"
    depth: ClassVar[float] = 27 / 31
    published_layers: ClassVar[dict[tuple[str, int], int]] = {("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21}
    unsaid: ClassVar[dict[str, object]] = {
        "protect": 0.0, "faint": 1.0, "contrast": 0.0, "reworded": 0.0, "capacity": None,
    }  # fmt: skip
    search: ClassVar[dict[str, tuple[object, ...]]] = {
        "lr": (0.02, 0.05, 0.1), "active": (1 / 7, 2 / 7, 4 / 7), "protect": (0.0, 3.0, 10.0), "faint": (0.5, 1.0),
    }  # fmt: skip

    active: float = 4096 / 14336
    """N, the features an edit may use, as a fraction of the memory's width [released: 4096 of 14336]."""
    size: float = 1.0
    """Share of the input features that the memory has columns for, at random [paper: all]; a smaller one holds less."""
    capacity: float | None = 500
    """Edits per million weights that W_m takes; the next ones have another, an empty one, and this is never written again.
    None: one W_m takes all [paper, where a thousand edits are 22 per million]."""
    tau: float | None = None
    """Threshold on the overlap; at -1 every prompt is answered, the ablation without conditional activation [released,
    LLaMA-3: .4 with `overlap=raw`, which is .16 here]. By default it is calibrated: as low as the irrelevant prompts
    allow, after every edit."""
    overlap: str = "corrected"
    """Units of `tau`: the overlap `corrected` for what masks share by chance, N/D, or the `raw` one [paper]. A calibrated
    threshold decides alike in both."""
    spill: float = 0.005
    """Calibration: the share of irrelevant prompts that may be answered by mistake."""
    contrast: float = 0.15
    """An edit's own features are those that its prompt loses when it asks about another subject. A prompt that has not
    this share of them, corrected for chance, is not answered: it asks the same, but of something else. Not with a `tau`,
    or where an edit has no subject and its prompt no name; 0: never [paper]."""
    relation: float | None = None
    """The same of the features that its prompt loses when something else is asked about its subject, at a `tau`, too; then
    both shares are means over the views of `feature`. 0 is what any prompt has by chance. None: of no account [paper]."""
    feature: str = "any"
    """What a mask is made of: the prompt's `centred_mean` [released], its `last` token, its `mean`, the `blend` of the
    first two; or a mask of `any` of these three, and the nearest one decides. On ZsRE the mean routes better, where
    rephrasings share few words only the last token does, and which a model is like is not known before."""
    mask: str = "top_hash"
    """What an edit writes through: its `top_hash` mask [paper]; or, as ablations, a `random` one, a function of the prompt
    that no likeness of features enters, so that only the edit's own prompt finds it again and any rephrasing is the
    pretrained model's; or `random_columns`, where TopHash masks still route and only what is written is random."""
    permutation: bool = True
    """Whether masks are permuted [paper]; without, an edit writes through the very features that are largest on it."""
    prefixed: bool = False
    """Whether the masks of the prompt, or of its wordings, behind each context prefix are stored too [paper: no]."""
    steps: int = 70
    """Most steps an edit [released: 30 to 70]."""
    optimizer: str = "adalayer"
    """`adalayer`, which learns rare words as fast as common ones and overwrites little; `adam`, which overwrites more; or
    `sgd` [released, with lr=1 clip=1 tries=1 loss=0.02 end=false]."""
    lr: float = 0.05
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
    loss: float = 0.02
    """Stop at this loss [released]. A lower one leaves a margin that later edits may eat into, if they are let."""
    faint: float = 0.5
    """In every other context an edit learns to answer from this share of what it reads, so that a rephrasing, which reads
    less than the prompt does, is answered too. 1: from all, in every context [paper]."""
    reworded: float = 0.5
    """Behind its context prefixes an edit is learnt from other wordings, in which this share of the prompt's small words is
    left out (`errata.wording`). 0: from the prompt itself [paper]."""
    protect: float = 3.0
    """How firmly an edit leaves alone what earlier ones read through its columns (`errata.protection`), without which
    they are overwritten as edits come; takes a matrix of (ff, ff). 0: not at all [paper]; `lr=0.02 loss=0.005` then
    overwrite less."""
    weight_decay: float = 0.0
    """Decay of all of W_m at every step. The released 1e-5 shrinks a memory to a fraction over a long stream."""

    def __post_init__(self) -> None:
        self.check(self.capacity is None or self.capacity > 0, f"capacity={self.capacity}: more than 0, or none")
        self.check(0 < self.active <= 1, f"active={self.active}: a fraction of the width, in (0, 1]")
        self.check(0 < self.size <= 1, f"size={self.size}: a share of the input features, in (0, 1]")
        self.check_one_of(feature=FEATURES, mask=MASKS, overlap=("corrected", "raw"), optimizer=OPTIMIZERS)
        self.check(
            self.mask != "random" or (self.tau is None and not self.prefixed),
            "mask=random is found by its own prompt alone, so it goes with neither tau nor prefixed",
        )
        self.check(0 < self.faint <= 1, f"faint={self.faint}: a share, in (0, 1]")
        self.check(0 <= self.reworded <= 1, f"reworded={self.reworded}: a share, in [0, 1]")
        self.check(self.protect >= 0, f"protect={self.protect}: not negative")
        self.check(0 <= self.contrast < 1, f"contrast={self.contrast}: a share, in [0, 1)")
        self.check(self.relation is None or 0 <= self.relation < 1, f"relation={self.relation}: a share, in [0, 1)")
        self.check(self.tries >= 1, f"tries={self.tries}: at least 1")
        self.check(0 <= self.spill < 1, f"spill={self.spill}: a share, in [0, 1)")

    def bytes_beside(self, features: int, weights: int, edits: int) -> int:
        """What earlier edits read, where that is protected, and its factor; and the W_m that are closed by then."""
        closed = 0 if self.capacity is None else (edits - 1) // held(self.capacity, self.size * weights)
        return (8 * round(self.size * features) ** 2 if self.protect else 0) + round(4 * self.size * weights) * closed

    def prepare(self, model: "EditedModel") -> None:
        """An empty memory; the background feature and the masks of the irrelevant prompts."""
        site = model.site(self)
        width, kept = max(1, round(self.size * site.in_features)), None
        if width < site.in_features:
            drawn = torch.randperm(site.in_features, generator=model.sampling.generator("memoir/kept"))
            kept = drawn[:width].sort().values
        order = torch.randperm(width, generator=model.sampling.generator("memoir/permutation"))
        order = order if self.permutation else torch.arange(width)
        memory = ResidualMemory(
            site, max(1, round(self.active * width)), self.feature, order, model.device, raw=self.overlap == "raw",
            apart=self.prefixed or self.mask != "top_hash", kept=kept, protected=self.protect > 0,
            contrast=self.contrast if self.tau is None else 0.0, asked=self.relation,
            in_rounds=self.capacity is not None,
        )  # fmt: skip
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
            traces += self._edit_together(model, [edits[i] for i in run], index)
            index += len(run)
        return Trace.of_each(traces)

    def _edit_together(self, model: "EditedModel", edits: Sequence[Edit], index: int) -> list[Trace]:
        """Each edit learns its own columns of W_m, beside the shifts that the others make meanwhile; these are added up.

        Tried again are those whose prompts are then not answered with their targets.
        """
        memory = model.memories[self.name]
        assert isinstance(memory, ResidualMemory)
        if self.capacity is not None:
            memory.make_room(self.capacity)
        seed, share = model.sampling.seed, self.reworded
        contexts = [model.contexts(edit.prompt, wordings(edit, share, seed)) for edit in edits]
        pairs = [[(context, edit.target) for context in own] for edit, own in zip(edits, contexts, strict=True)]
        batch = Batch(model, memory, pairs, self.end)
        with model.routing.reading(batch.whole.rows.prompt):
            features = batch.whole.each(memory.features(batch.whole.suffix.a))
        masks = [memory.mask(own[: None if self.prefixed else 1]) for own in features]
        written = [self._written(model, memory, mask[:, :1], index + e) for e, mask in enumerate(masks)]
        through = unpack(torch.stack(written), memory.width)
        columns = [own.nonzero().squeeze(1) for own in through]
        lr, clip = self._step_size(model, memory)
        taught = {edit.prompt for edit in model.history[:index]}
        known = [bool((memory.known(own[:, :1]) & memory.here()).any()) for own in masks]
        met = [edit.prompt in taught and old for edit, old in zip(edits, known, strict=True)]
        moment, roots = protection.roots(memory, batch, columns, met, self.protect)

        @cache
        def inputs(part: Part) -> list[tuple[int, Tensor, Tensor]]:
            """Of each edit what its columns are given, m * a, and what its V is given, m * a R: (rows, seq, n)."""
            found = []
            for e, a in zip(part.edits, part.each(part.suffix.a), strict=True):
                own, r = memory.read(a)[..., columns[e]].to(memory.weight.dtype), roots[e]
                own[1::2] *= self.faint
                found.append((e, own, own if r is None else own @ r))
            return found

        @cache
        def alone(part: Part, weight: Tensor) -> list[Tensor]:
            """What the columns of an edit that has no others beside it make of its rows, before it moves them."""
            return [F.linear(a, weight[:, columns[e]]) for e, a, _ in inputs(part)]

        def logits(part: Part, weight: Tensor, v: Sequence[Tensor]) -> Tensor:
            if len(edits) == 1:
                still = alone(part, weight)
            else:
                beside = around(weight, columns, shifts(v))
                still = [F.linear(a, beside[e]) for e, a, _ in inputs(part)]
            c = torch.cat([own + F.linear(b, v[e]) for own, (e, _, b) in zip(still, inputs(part), strict=True)])
            return part.suffix.logits(lambda _, y: add(y, c))

        def shifts(v: Sequence[Tensor]) -> list[Tensor]:
            """V R^T, how far each edit has moved its columns."""
            return [own.detach() if r is None else own.detach() @ r.T for own, r in zip(v, roots, strict=True)]

        def learnt(weight: Tensor, todo: Sequence[int], lr: float) -> tuple[Tensor, list[Trace]]:
            v = [torch.zeros_like(weight[:, own]).requires_grad_() for own in columns]

            def nll(moving: Sequence[int]) -> Tensor:
                wanted = [todo[i] for i in moving]
                part = batch.part(wanted)
                return part.losses(logits(part, weight, v), target_nll, wanted)

            problems = [[v[e]] for e in todo]
            stop = Stop(self.loss)
            traces = fit_each(problems, nll, steps=self.steps, lr=lr, optimizer=self.optimizer, clip=clip, stop=stop)
            return added(weight, columns, shifts(v)), traces

        unmoved = [torch.zeros_like(memory.weight[:, own]) for own in columns]
        weight, todo = memory.weight, list(range(len(edits)))
        losses: list[list[float]] = [[] for _ in edits]
        for again in range(self.tries):
            weight, traces = learnt(weight, todo, lr * 4**again)
            for e, trace in zip(todo, traces, strict=True):
                losses[e] = losses[e][:-1] + list(trace.losses)
            with torch.no_grad():
                said = batch.whole.targets(logits(batch.whole, weight, unmoved))
            if not (todo := [e for e, answer in enumerate(said) if not answers(*answer)]):
                break
        traces = [Trace(tuple(own)) for own in losses]
        if self.weight_decay:
            outside = ~through.any(dim=0)
            weight[:, outside] *= (1 - self.lr * self.weight_decay) ** sum(trace.steps for trace in traces)
        memory.put({"weight": weight} | ({} if moment is None else {"moment": moment}))
        for e, (mask, own) in enumerate(zip(masks, written, strict=True)):
            memory.put(self._remember(model, memory, edits[e], mask, own, index + e))
        return traces

    def _written(self, model: "EditedModel", memory: ResidualMemory, mask: Tensor, index: int) -> Tensor:
        """The mask that an edit writes through, packed (bytes,): that which its prompt has had, or a new one."""
        known = memory.known(mask).nonzero()
        if len(known):
            return memory.through(known[0, 0])
        if self.mask == "top_hash":
            return mask[0, 0]
        width, generator = memory.width, model.sampling.generator("memoir/mask", index)
        columns = torch.randperm(width, generator=generator)[: memory.active].to(mask.device)
        return pack(torch.zeros(width, dtype=torch.bool, device=mask.device).index_fill(0, columns, value=True))

    def _step_size(self, model: "EditedModel", memory: ResidualMemory) -> tuple[float, float | None]:
        """Learning rate and clip."""
        if not self.scaled:
            return self.lr, self.clip
        gain = model.gain(memory)
        lr = self.lr * (gain**2 if self.optimizer == "sgd" else model.entry(memory))
        return lr, None if self.clip is None else self.clip / gain

    def _remember(
        self, model: "EditedModel", memory: ResidualMemory, edit: Edit, mask: Tensor, written: Tensor, index: int
    ) -> dict[str, Tensor]:
        """The index with this edit's masks in it, its prompt's first; the same mask again belongs to the newer edit."""
        known = memory.known(mask[:, :1])
        if known.any():
            return memory.taken_over(known, index)
        near = [memory.score(new, there).amax(0) for there, new in zip(memory.irrelevant, mask, strict=True)]
        noise = torch.maximum(memory.noise, torch.stack(near))
        if self.mask == "random":
            threshold = torch.full_like(memory.threshold, memory.exact())
        elif self.tau is not None:
            threshold = torch.full_like(memory.threshold, self.tau)
        else:
            threshold = torch.quantile(noise, 1 - self.spill / len(noise), dim=1) + 1e-6
        found = memory.joined(mask, written, index) | {"noise": noise, "threshold": threshold}
        for name, prompts in (("distinct", of_others(edit)), ("relation", of_subject(edit))):
            if (held := getattr(memory, name)) is not None:
                others = [memory.mask(memory.features(a)) for a, _, _ in model.read(memory, prompts)]
                found[name] = torch.cat([held, memory.distinguished(mask, others)], dim=1)
        return found
