"""Facts: what is true, in the wordings in which it may be asked; which of them fit into a budget, and which are unseen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from errata.pretraining.recall import Question

LONGEST_ANSWER = 80
"""Characters; a longer answer is a sentence, not a fact."""


@dataclass(frozen=True)
class Fact:
    """An answer, and the prompts that it follows after one space; the first prompt is that of the row it is read from."""

    source: str
    wordings: tuple[str, ...]
    answer: str

    def unseen(self, seed: int, share: float) -> str | None:
        """The wording that training leaves out: the last one, for this share of all facts that have several."""
        if len(self.wordings) < 2:
            return None
        return self.wordings[-1] if Random(f"{seed}/unseen/{self.wordings[0]}").random() < share else None

    def trained(self, seed: int, share: float) -> tuple[str, ...]:
        """The wordings in which training shows the fact; at least one."""
        return self.wordings if self.unseen(seed, share) is None else self.wordings[:-1]


def consistent(facts: Iterable[Fact]) -> list[Fact]:
    """The facts without a prompt that an earlier one has already: none is asked twice, and none has two answers."""
    taken: set[str] = set()
    kept = []
    for fact in facts:
        wordings = tuple(dict.fromkeys(w for w in map(str.strip, fact.wordings) if w and w not in taken))
        answer = fact.answer.strip()
        if wordings and answer and len(answer) <= LONGEST_ANSWER:
            taken.update(wordings)
            kept.append(Fact(fact.source, wordings, answer))
    return kept


def chosen(facts: Sequence[Fact], number: int, shares: Mapping[str, int]) -> list[Fact]:
    """The first facts of every source, `number` in all, in proportion to the sources' shares for as long as they last."""
    ranks, counts = [], dict.fromkeys(shares, 0)
    for place, fact in enumerate(facts):
        ranks.append((counts[fact.source] / shares[fact.source], place))
        counts[fact.source] += 1
    return [facts[place] for place in sorted(place for _, place in sorted(ranks)[:number])]


def questions(facts: Iterable[Fact], wording: int = 0) -> list[Question]:
    """One question a fact that has so many wordings."""
    return [Question(fact.wordings[wording], fact.answer) for fact in facts if len(fact.wordings) > wording]


def trained_questions(facts: Iterable[Fact], seed: int, share: float) -> list[Question]:
    """One question a fact, in one of the wordings that training shows."""
    return [
        Question(Random(f"{seed}/recall/{fact.wordings[0]}").choice(fact.trained(seed, share)), fact.answer)
        for fact in facts
    ]


def unseen_questions(facts: Iterable[Fact], seed: int, share: float) -> list[Question]:
    """The questions that training never shows, of facts that it shows otherwise."""
    asked = [(fact.unseen(seed, share), fact.answer) for fact in facts]
    return [Question(prompt, answer) for prompt, answer in asked if prompt is not None]
