"""Gate: an edit is verified before it is acknowledged.

After an edit the model is asked, by greedy decoding, for its prompt, its own rephrasings and automatic ones, the prompts
of some earlier edits, the same about some other subjects, and prompts that it should leave alone. What came of them is a
`Check`; whether that is good enough is for the `Gate` to say.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from errata.answers import Question, generate, question
from errata.contrast import WITNESSES, of_others
from errata.edit import Edit
from errata.editor import Check
from errata.errors import BadOption
from errata.model import EditedModel

FRAMES = ("To be clear: {}", "Here is a fact. {}", "As everybody knows by now, {}")
"""What makes a prompt an automatic rephrasing. No editor learns with these."""
LENGTH = 5
"""Tokens of the answer to a prompt that should be left alone, which must stay the same."""


@dataclass(frozen=True)
class Gate:
    """What an edit must show to be acknowledged. By default: its own prompt is answered with its target."""

    min_reliability: float | None = None
    """Share of the prompt and of earlier edits that must be answered as edited, the prompt in any case. By default the
    prompt alone counts; 0 asks for nothing."""
    min_locality: float = 0.0
    """Share of the prompts to be left alone whose answers must be those before the edit."""
    earlier: int = 8
    """Earlier edits that are asked again, drawn anew for every edit. One that did not hold before it does not count."""
    watched: int = 16
    """Irrelevant prompts to be left alone, beside the edit's own probes."""

    def __post_init__(self) -> None:
        for name in ("min_reliability", "min_locality"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise BadOption(f"{name}={value}: a share, in [0, 1]")

    def problem(self, edit: Edit, check: Check) -> str | None:
        """Why an edit is not good enough; None where it is."""
        wanted = self.min_reliability
        if wanted != 0 and not check.answered:
            return f"{edit.prompt!r} is answered with {check.answer!r}, not with {edit.target!r}"
        held, asked = check.answered + check.earlier[0], 1 + check.earlier[1]
        if wanted and held / asked < wanted:
            return f"reliability {held / asked:.2f} < {wanted}: of {check.earlier[1]} earlier edits {check.earlier[0]} hold"
        same, probes = check.locality
        if probes and same / probes < self.min_locality:
            return f"locality {same / probes:.2f} < {self.min_locality}: {same} of {probes} answers are unchanged"
        return None


class Before(NamedTuple):
    """What the model said before an edit."""

    earlier: list[Edit]
    """Earlier edits that held."""
    probes: list[Question]
    """The edits' own probes."""
    said: list[tuple[int, ...]]
    """The answers to them, then to the irrelevant prompts."""
    neighbours: list[Question]
    """What the edits ask, asked about other subjects."""
    said_of_others: list[tuple[int, ...]]
    """The answers to that."""


class Watch:
    """Asks a model before and after each edit. Asking never writes."""

    def __init__(self, model: EditedModel, gate: Gate) -> None:
        self.model, self.gate = model, gate
        order = torch.randperm(len(model.sampling.irrelevant), generator=model.sampling.generator("gate/irrelevant"))
        chosen = [model.sampling.irrelevant[i].prompt for i in order[: gate.watched].tolist()]
        self._watched = self._open(chosen)
        self._known: tuple[list[Tensor], list[tuple[int, ...]]] | None = None  # their answers, and in which state

    def before(self, edits: Sequence[Edit]) -> Before:
        """Ask before these edits are made."""
        prompts = {edit.prompt for edit in edits}
        others = [edit for edit in self.model.edits if edit.prompt not in prompts]
        draw = self.model.sampling.generator("gate/earlier", len(self.model.history))
        some = [others[i] for i in torch.randperm(len(others), generator=draw)[: self.gate.earlier].tolist()]
        held = self.holding(some)
        probes = self._open([probe.prompt for edit in edits for probe in edit.locality])
        said = self._say(probes) + self._say_watched()
        near = self._open([prompt for edit in edits for prompt in of_others(edit, WITNESSES) if prompt not in prompts])
        earlier = [edit for edit, holds in zip(some, held, strict=True) if holds]
        return Before(earlier, probes, said, near, self._say(near))

    def after(self, edits: Sequence[Edit], before: Before) -> list[Check]:
        """Ask after they were made. What is shared by all of them is told of each."""
        start = time.perf_counter()
        wordings = [self._wordings(edit) for edit in edits]
        asked = [self._question(prompt, edit) for edit, each in zip(edits, wordings, strict=True) for prompt in each]
        asked += [self._question(edit.prompt, edit) for edit in before.earlier]
        said = generate(self.model, asked, spare=0)
        held = iter([said[q][: len(q.answer)] == q.answer for q in asked])
        rows = [[next(held) for _ in each] for each in wordings]
        earlier = sum(held), len(before.earlier)
        now = self._say(before.probes) + self._say_watched()
        same = sum(a == b for a, b in zip(before.said, now, strict=True)), len(now)
        near = self._say(before.neighbours)
        spared = sum(a == b for a, b in zip(before.said_of_others, near, strict=True)), len(near)
        answers = [self.model.tokens.decode(said[self._question(edit.prompt, edit)]).strip() for edit in edits]
        seconds = (time.perf_counter() - start) / len(edits)
        return [
            Check(row[0], answer, (sum(row[1:]), len(row) - 1), earlier, same, seconds, spared)
            for row, answer in zip(rows, answers, strict=True)
        ]

    def holding(self, edits: Sequence[Edit]) -> list[bool]:
        """Whether each of these edits' prompts is answered with its target."""
        asked = [self._question(edit.prompt, edit) for edit in edits]
        said = generate(self.model, asked, spare=0)
        return [said[q][: len(q.answer)] == q.answer for q in asked]

    @staticmethod
    def _wordings(edit: Edit) -> list[str]:
        """The prompt, then its rephrasings, given and automatic."""
        given = [wording for wording in edit.rephrases if wording.strip()]
        return [edit.prompt, *given, *(frame.format(edit.prompt) for frame in FRAMES)]

    def _question(self, prompt: str, edit: Edit) -> Question:
        return question(self.model.tokens, prompt, edit.target)

    def _open(self, prompts: Sequence[str]) -> list[Question]:
        """Questions without an answer to look for."""
        asked = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip()]
        return [Question(tuple(self.model.tokens.prompt(prompt)), (), "") for prompt in asked]

    def _say_watched(self) -> list[tuple[int, ...]]:
        """The answers to the irrelevant prompts; known already where no edit has been made since they were asked."""
        state = [tensor for tensors in self.model._tensors().values() for tensor in tensors.values()]
        known = self._known
        if (
            known is None
            or len(known[0]) != len(state)
            or any(a is not b for a, b in zip(known[0], state, strict=True))
        ):
            known = self._known = state, self._say(self._watched)
        return known[1]

    def _say(self, probes: Sequence[Question]) -> list[tuple[int, ...]]:
        said = generate(self.model, list(probes), spare=LENGTH)
        return [said[probe] for probe in probes]
