"""Recall: how many questions a model answers right, by greedy generation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from errata.tokens import Tokens

AT_ONCE, AT_ONCE_ON_A_GPU = 128, 1024
"""Questions that a model is asked at once."""


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that counts as right."""

    prompt: str
    answer: str


def recall(model: Any, tokenizer: Any, asked: Sequence[Question], batch_size: int | None = None) -> float:
    """The share of questions whose whole answer the model generates greedily. The model is unchanged on return."""
    return sum(answered(model, tokenizer, asked, batch_size)) / len(asked)


def answered(model: Any, tokenizer: Any, asked: Sequence[Question], batch_size: int | None = None) -> list[bool]:
    """For each question, whether the model generates the whole answer greedily."""
    batch_size = batch_size or (AT_ONCE_ON_A_GPU if model.device.type == "cuda" else AT_ONCE)
    tokens = Tokens(tokenizer)
    rows = [tokens.pair(question.prompt, question.answer) for question in asked]
    right = [False] * len(rows)
    for places in _batches(rows, batch_size):
        found = _answered(model, [rows[i][0] for i in places], [rows[i][1] for i in places])
        for i, one in zip(places, found.tolist(), strict=True):
            right[i] = one
    return right


def _batches(rows: list[tuple[list[int], list[int]]], batch_size: int) -> Iterator[list[int]]:
    """The places of rows of equal prompt and answer length, so that nothing needs padding."""

    def lengths(i: int) -> tuple[int, int]:
        return len(rows[i][0]), len(rows[i][1])

    for _, group in groupby(sorted(range(len(rows)), key=lengths), key=lengths):
        same = list(group)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


@torch.no_grad()
def _answered(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """For each row, whether every token of the answer is the likeliest after the ones before it.

    Feeding the reference answer decides the same as generating: up to the first difference the contexts are equal.
    """
    ids = torch.tensor([p + a for p, a in zip(prompts, answers, strict=True)], device=model.device)
    likeliest: torch.Tensor = model(input_ids=ids).logits.argmax(-1)
    width = len(answers[0])
    return (likeliest[:, -width - 1 : -1] == ids[:, -width:]).all(-1)
