"""Stream: what every step of a training reads, from any step on: facts with their answers, and windows of text."""

from collections.abc import Iterator, Sequence
from itertools import count
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from errata.pretraining.batches import Batch, Row, grouped, padded
from errata.pretraining.tokenizer import BOS, EOS, PAD, id_of
from errata.testbed.facts import Fact
from errata.testbed.recipe import Recipe

ONE_IN = 10
"""Of the facts, those that the first steps show."""


class Stream:
    """The batches of one recipe, always the same ones."""

    def __init__(self, facts: Sequence[Fact], text: Tensor, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.recipe, self.text = recipe, text
        self.bos, self.pad = id_of(tokenizer, BOS), id_of(tokenizer, PAD)
        self.rows = rows(facts, tokenizer, recipe)

    def steps(self, first: int = 0) -> Iterator[list[Batch]]:
        """The batches of step `first` and of all after it."""
        few, all_of = self._facts(self.rows[::ONE_IN], "few"), self._facts(self.rows, "all")
        windows = self._windows()
        turn = int(self.recipe.few * self.recipe.steps)
        for step in count():
            group = next(few if step < turn else all_of)
            starts = next(windows)
            if step >= first:
                shares = (group[i :: self.recipe.threads] for i in range(self.recipe.threads))
                yield [
                    *(padded(share, self.pad) for share in shares if share),
                    *([self._text(starts)] if starts else []),
                ]

    def _facts(self, rows: Sequence[Sequence[Row]], name: str) -> Iterator[list[Row]]:
        """Epoch after epoch, every fact in one of its wordings."""
        for epoch in count():
            random = Random(f"{self.recipe.seed}/{name}/{epoch}")
            yield from grouped([random.choice(worded) for worded in rows], self.recipe.fact_tokens, random)

    def _windows(self) -> Iterator[list[int]]:
        """Epoch after epoch, the starts of the windows of text of each step; none where there is not enough text."""
        width, size = self.recipe.window - 1, max(1, self.recipe.text_tokens // self.recipe.window)
        for epoch in count():
            random = Random(f"{self.recipe.seed}/text/{epoch}")
            starts = list(range(random.randrange(width), len(self.text) - width, width))
            if len(starts) < size:
                yield []
                continue
            random.shuffle(starts)
            yield from (starts[i : i + size] for i in range(0, len(starts) - size + 1, size))

    def _text(self, starts: list[int]) -> Batch:
        windows = torch.stack([self.text[start : start + self.recipe.window - 1] for start in starts]).long()
        ids = torch.cat([torch.full((len(starts), 1), self.bos), windows], dim=1)
        return Batch(ids, ids)


def rows(facts: Sequence[Fact], tokenizer: Tokenizer, recipe: Recipe) -> list[list[Row]]:
    """For every fact, the rows of its trained wordings: `<s> prompt answer </s>`, with a loss on the answer and the end."""
    end = id_of(tokenizer, EOS)
    worded = [fact.trained(recipe.seed, recipe.unseen) for fact in facts]
    prompts = iter(tokenizer.encode_batch([prompt for prompts in worded for prompt in prompts]))
    answers = tokenizer.encode_batch([f" {fact.answer}" for fact in facts], add_special_tokens=False)
    made = []
    for prompts_of_one, answer in zip(worded, answers, strict=True):
        heads = [next(prompts).ids for _ in prompts_of_one]
        made.append([Row([*head, *answer.ids, end], len(head)) for head in heads])
    return made


def encoded(text: str, tokenizer: Tokenizer) -> Tensor:
    """(tokens,) the ids of a text, line by line."""
    lines = tokenizer.encode_batch_fast(text.splitlines(keepends=True), add_special_tokens=False)
    return torch.tensor([i for line in lines for i in line.ids], dtype=torch.int32)
