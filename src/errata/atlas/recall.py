"""Recall: how many of its facts a model says, by greedy generation, in trained wordings and in held-out ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import Any

import torch

from errata.atlas.world import Fact


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that counts as right."""

    prompt: str
    answer: str


def questions(facts: Iterable[Fact], *, seen: bool) -> list[Question]:
    """One question a fact, in a wording in which it was trained (`seen`) or in one in which it never was."""
    asked = []
    for fact in facts:
        choices = fact.trained if seen else fact.held_out
        wording = Random(f"{fact.seed}/recall/{fact.subject}/{fact.relation}").choice(choices)
        asked.append(Question(fact.prompt(wording), fact.object))
    return asked


def recall(model: Any, tokenizer: Any, asked: Sequence[Question], batch_size: int = 128) -> float:
    """The share of questions whose whole answer the model generates greedily. The model is unchanged on return."""
    rows = [
        (tokenizer(q.prompt).input_ids, tokenizer(" " + q.answer, add_special_tokens=False).input_ids) for q in asked
    ]
    right = 0
    for prompts, answers in _batches(rows, batch_size):
        right += int(_answered(model, prompts, answers).sum())
    return right / len(rows)


def _batches(
    rows: list[tuple[list[int], list[int]]], batch_size: int
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Rows of equal prompt and answer length, so that nothing needs padding."""
    rows = sorted(rows, key=lambda row: (len(row[0]), len(row[1])))
    for _, group in groupby(rows, key=lambda row: (len(row[0]), len(row[1]))):
        same = list(group)
        for start in range(0, len(same), batch_size):
            part = same[start : start + batch_size]
            yield [prompt for prompt, _ in part], [answer for _, answer in part]


@torch.no_grad()
def _answered(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """For each row, whether every token of the answer is the likeliest after the ones before it.

    Feeding the reference answer decides the same as generating: up to the first difference the contexts are equal.
    """
    ids = torch.tensor([p + a for p, a in zip(prompts, answers, strict=True)], device=model.device)
    likeliest: torch.Tensor = model(input_ids=ids).logits.argmax(-1)
    width = len(answers[0])
    return (likeliest[:, -width - 1 : -1] == ids[:, -width:]).all(-1)
