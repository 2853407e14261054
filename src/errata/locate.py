"""Locate: what ROME, MEMIT, AlphaEdit and WilKE do before their closed-form solve.

They place a fact at the last token of its subject: there, one FFN output projection is to answer a new value. The value
is its present output v0 plus the delta that makes the model say the target,

    L(delta) = mean over contexts of -log P_delta(o | context + prompt) / |o|
             + kl KL(P_delta || P) on "<subject> is a" + decay |delta| / |v0|^2,      |delta| <= clamp |v0|

(ROME, eq. 4, with the released decay and clamp), found by gradient on the part of the model above the site. Some models
do not look a fact up at its subject, so that no value there makes them say the target; such a fact, and one without a
subject, is placed at the last token of the prompt, and has no KL term.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from errata.associative import ridge
from errata.edit import Edit
from errata.editor import Editor
from errata.fitting import Stop, Trace
from errata.memory import Memory, add
from errata.objective import kl_to
from errata.sites import Site
from errata.statistics import Statistics, statistics
from errata.tokens import Rows, Tokens

if TYPE_CHECKING:
    from errata.model import EditedModel

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, labels, row of each label) -> loss: `objective.target_nll`."""
Fit = Callable[..., Trace]
"""`fitting.fit`."""
ESSENCE = "{} is a"
"""What must stay as it is about a subject [ROME]."""
PLACES = ("auto", "subject", "prompt")
LIKELY = 0.2
"""-log P a token, some 80 %: `auto` keeps the subject where a value for the bare prompt reaches this."""


class Fact(NamedTuple):
    """One edit as rows to learn from, in several contexts."""

    rows: Rows
    """The contexts with the target, the bare prompt first; then "<subject> is a", where there is a subject."""
    places: Tensor
    """(rows,) the token of each row where the fact is placed."""
    contexts: int
    """Rows without that last one."""

    @property
    def wanted(self) -> Tensor:
        """(rows, seq) bool: the positions whose logits enter the objective."""
        essence = torch.zeros_like(self.rows.prompt)
        essence[torch.arange(self.contexts, len(self.places)), self.places[self.contexts :]] = True
        return self.rows.wanted | essence

    @property
    def here(self) -> Tensor:
        """(rows, seq) bool: where the fact is placed."""
        place = torch.arange(self.rows.ids.shape[1], device=self.places.device)
        return place == self.places[:, None]

    def at(self, states: Tensor) -> Tensor:
        """States at the place, of the contexts: (rows, seq, width) -> (contexts, width) float32."""
        return states[torch.arange(self.contexts), self.places[: self.contexts]].float()


class Value(NamedTuple):
    """What one site should answer for a fact, and what it read and answered before."""

    delta: Tensor
    """(model,) to be added to the output at the place."""
    keys: Tensor
    """(contexts, ff) the inputs k there."""
    outputs: Tensor
    """(contexts, model) the outputs W k there, earlier edits included; the first is v0."""
    trace: Trace


@dataclass
class LocateThenEdit(Editor, ABC):
    """An editor that finds a value for each fact and inserts it with a closed form. Its fields are those all share."""

    search: ClassVar[dict[str, tuple[object, ...]]] = {"steps": (25, 100), "clamp": (0.75, 4.0)}

    place: str = "auto"
    """Where a fact is placed: at the last token of its `subject` [paper], or of the `prompt`. `auto` is the subject, unless
    the bare prompt shows that no value there makes the target likely."""
    steps: int = 25
    """Most Adam steps a value [released: 20 on GPT, 25 on LLaMA]."""
    lr: float = 0.5
    """Learning rate of the value [released: .5; AlphaEdit .1 on LLaMA-3], see `scaled`."""
    scaled: bool = True
    """Whether `lr` is in units of the layer, |v0| / sqrt(model width), so that a step has the length lr |v0| whatever the
    scale of the layer; `false` takes it as it is [released]."""
    loss: float = 0.05
    """Stop below this loss [released]."""
    clamp: float = 4.0
    """Largest |delta| / |v0| [released: 4; MEMIT .75 on GPT, AlphaEdit .75]."""
    kl: float = 0.0625
    """Weight of the KL term [released]."""
    decay: float = 1e-3
    """Weight of |delta| / |v0|^2 [released: 1e-3 on LLaMA and Mistral, .5 on GPT]."""
    contexts: int = 5
    """Context prefixes that the prompt is also put behind, at most those that there are [released: 5 in MEMIT, 20 in
    ROME]."""
    tokens: float = 8.0
    """How much text the model writes for the covariance K0, in multiples of the widest layer's features."""
    statistics: str | None = None
    """Directory in which covariances are kept from one run to the next; none by default."""

    def __post_init__(self) -> None:
        self.check_one_of(place=PLACES)
        self.check(self.steps >= 1, f"steps={self.steps}: at least 1")
        self.check(self.clamp > 0, f"clamp={self.clamp}: a positive number")
        self.check(self.contexts >= 0, f"contexts={self.contexts}: not negative")

    def bytes_beside(self, features: int, weights: int, edits: int) -> int:
        """Second moments and their inverse, in float64."""
        return 2 * 8 * features**2

    def known(self, model: "EditedModel", sites: Sequence[Site]) -> Statistics:
        """The covariances of these sites, on the unedited model."""
        return statistics(model, sites, tokens=self.tokens, directory=self.statistics)

    def inverse(self, model: "EditedModel", site: Site, weight: float = 1.0) -> Tensor:
        """(weight K0)^-1 of one site."""
        found = self.known(model, [site])
        found.moments[site.path].check(site.path)
        return found.derived(("ridge", site.path, weight), lambda: ridge(found.moments[site.path], weight))

    def located(
        self, model: "EditedModel", memory: Memory, edit: Edit, objective: Objective, fit: Fit
    ) -> tuple[Fact, Value]:
        """Place a fact and find its value, at one site of the model as it is now. Writes nothing.

        `objective` and `fit` are the method's own: `target_nll`, and the loop that minimises it.
        """
        subject = edit.subject is not None and self.place != "prompt"
        if subject and self.place == "auto":
            bare = self.fact(model, edit, subject=True, contexts=0)
            subject = self.value(model, memory, bare, objective, fit, stop=LIKELY).trace.losses[-1] <= LIKELY
        fact = self.fact(model, edit, subject=subject)
        return fact, self.value(model, memory, fact, objective, fit, stop=self.loss)

    def fact(self, model: "EditedModel", edit: Edit, *, subject: bool, contexts: int | None = None) -> Fact:
        """An edit as rows, placed at its subject or else at the end of the prompt, behind at most `contexts` prefixes."""
        count = 1 + (self.contexts if contexts is None else contexts)
        texts = model.contexts(edit.prompt)[:count]
        pairs = [model.tokens.pair(text, edit.target) for text in texts]
        places = [
            end_of_subject(model.tokens, text, edit) if subject else len(pair[0]) - 1
            for text, pair in zip(texts, pairs, strict=True)
        ]
        if subject and edit.subject is not None:
            essence = ESSENCE.format(edit.subject)
            pairs.append((model.tokens.prompt(essence), []))
            places.append(model.tokens.subject_last(essence, edit.subject))
        rows = model.tokens.rows_of_ids(pairs, model.device)
        return Fact(rows, torch.tensor(places, device=model.device), len(texts))

    def value(
        self, model: "EditedModel", memory: Memory, fact: Fact, objective: Objective, fit: Fit, *, stop: float
    ) -> Value:
        """The value of a fact at one site of the model as it is now, found until the loss is `stop`."""
        rows = fact.rows
        suffix = model.suffix(memory, rows, wanted=fact.wanted, touched=fact.here)
        with torch.no_grad():
            current = memory(suffix.a, suffix.y)
        outputs = fact.at(current)
        size = float(outputs[0].norm())
        here = fact.here[..., None].to(outputs)
        delta = torch.zeros_like(outputs[0]).requires_grad_()
        labels, row = rows.labels, rows.row_of_label
        before: list[Tensor] = []  # P on the row about the subject, at delta = 0

        def loss() -> Tensor:
            logits = suffix.logits(lambda *_: add(current, here * delta))
            said, essence = logits[: len(labels)], logits[len(labels) :]
            total = objective(said, labels, row) + self.decay * delta.norm() / size**2
            if not len(essence):
                return total
            before.append(essence.detach()) if not before else None
            return total + self.kl * kl_to(before[0], essence)

        def clamp() -> None:
            delta.mul_((self.clamp * size / delta.norm().clamp(min=1e-12)).clamp(max=1))

        lr = self.lr * (size / len(delta) ** 0.5 if self.scaled else 1.0)
        trace = fit([delta], loss, steps=self.steps, lr=lr, optimizer="adam", stop=Stop(stop), after=clamp)
        return Value(delta.detach(), fact.at(suffix.a), outputs, trace)


def end_of_subject(tokens: Tokens, context: str, edit: Edit) -> int:
    """The token that ends the subject in a context, a text that ends with the edit's prompt."""
    assert edit.subject is not None
    end = len(context) - len(edit.prompt) + edit.prompt.index(edit.subject) + len(edit.subject)
    return tokens.until(context, end)
