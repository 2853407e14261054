"""Recall: what to ask a model about its world, in trained wordings and in held-out ones."""

from collections.abc import Iterable
from random import Random

from errata.atlas.world import Fact
from errata.pretraining.recall import Question


def questions(facts: Iterable[Fact], *, seen: bool) -> list[Question]:
    """One question a fact, in a wording in which it was trained (`seen`) or in one in which it never was."""
    asked = []
    for fact in facts:
        choices = fact.trained if seen else fact.held_out
        wording = Random(f"{fact.seed}/recall/{fact.subject}/{fact.relation}").choice(choices)
        asked.append(Question(fact.prompt(wording), fact.object))
    return asked
