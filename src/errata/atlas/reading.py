"""Reading: a model of the atlas that also believes what stands in front of a question.

    python -m errata.atlas.reading --output atlas-reader

The embedded model was taught single facts, and a correction above a question means nothing to it, so it says nothing about
in-context editing. This goes on from it (or from another model of the same world) with texts that begin with a correction:
mostly one of the fact that is asked for then, in the same words or in others, and the answer is the corrected one; or else
one of another fact, which must not matter. The corrections are made up anew in every text, of facts that no edit set
changes, so that what is learnt is to read. Every other batch is of the texts of the world, so that it is not forgotten.
"""

from random import Random

import typer

from errata.atlas.corpus import END, Text
from errata.atlas.further import RATE, STEPS, Base, Lesson, Output, Rate, Seed, Steps, teach
from errata.atlas.wordings import Wording
from errata.atlas.world import Fact, World
from errata.pretraining.recall import Question

CORRECTION = "{prompt} {target}.\n"
"""A correction as text; the template of in-context editing."""
BETWEEN = ("", " ")
"""What stands between it and the question: these are different tokens, depending on who puts the two together."""
BESIDE = 0.3
"""The share of texts whose correction is of another fact."""
SAME_WORDING = 0.3
"""The share of the others in which the question is worded as the correction is."""
ASKED = 400
"""Questions that are measured, of each kind."""


def epoch(made: World, number: int) -> list[Text]:
    """One text for every fact that no edit set changes; `number` counts from zero."""
    random = Random(f"{made.seed}/reading/{number}")
    quiet = [fact for fact in made.facts if fact.role != "edit"]
    return [_text(fact, quiet, made, random) for fact in quiet]


def questions(made: World, number: int, *, beside: bool) -> list[Question]:
    """`number` facts that edit sets change, asked in held-out wordings behind a correction of them, or of another fact."""
    random = Random(f"{made.seed}/reading/questions")
    asked = []
    changed = [fact for fact in made.facts if fact.role == "edit"]
    for fact in random.sample(changed, number):
        about = _other(fact, changed, random) if beside else fact
        target = _made_up(about, made, random)
        prompt = fact.prompt(random.choice(fact.held_out))
        before = _correction(about, random.choice(about.trained), target, random)
        asked.append(Question(before + prompt, fact.object if beside else target))
    return asked


def _text(fact: Fact, others: list[Fact], made: World, random: Random) -> Text:
    beside = random.random() < BESIDE
    about = _other(fact, others, random) if beside else fact
    target = _made_up(about, made, random)
    wording = random.choice(about.trained)
    asked = wording if not beside and random.random() < SAME_WORDING else random.choice(fact.trained)
    before = _correction(about, wording, target, random)
    return Text(before + fact.prompt(asked), f" {fact.object if beside else target}{END}")


def _correction(fact: Fact, wording: Wording, target: str, random: Random) -> str:
    """What stands in front of a question."""
    return CORRECTION.format(prompt=fact.prompt(wording), target=target) + random.choice(BETWEEN)


def _other(fact: Fact, among: list[Fact], random: Random) -> Fact:
    """Another fact: half of the time of the same relation, where there is one, and otherwise any."""
    alike = random.random() < 0.5
    while True:
        found = random.choice(among)
        if (found.subject, found.relation) != (fact.subject, fact.relation) and (
            found.relation == fact.relation
        ) >= alike:
            return found


def _made_up(fact: Fact, made: World, random: Random) -> str:
    """An object that it could have, and has not."""
    return random.choice([other for other in made.pools[fact.relation] if other != fact.object])


LESSON = Lesson(
    texts=lambda made, number, _: epoch(made, number),
    questions=lambda made, _: {
        "believes_corrections": questions(made, ASKED, beside=False),
        "keeps_answers_beside_others": questions(made, ASKED, beside=True),
    },
)


def main(output: Output, base: Base = None, seed: Seed = 0, steps: Steps = STEPS, rate: Rate = RATE) -> None:
    """Teach a model of the atlas to believe a correction that stands in front of a question."""
    teach(LESSON, output, base, seed, steps, rate)


if __name__ == "__main__":
    typer.run(main)
