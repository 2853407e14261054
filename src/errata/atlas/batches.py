"""Batches: the texts of epoch after epoch as right-padded rows of token ids, rows of like length together."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from errata.atlas.corpus import Text, epoch
from errata.atlas.tokens import PAD
from errata.atlas.world import World

IGNORED = -100
"""The label of positions that carry no loss."""


class Row(NamedTuple):
    """One text as tokens; the first `given` of them carry no loss."""

    ids: list[int]
    given: int


class Batch(NamedTuple):
    """Tensors of shape [row, position]; `labels` are the ids, or `IGNORED`."""

    ids: torch.Tensor
    labels: torch.Tensor


def batches(world: World, tokenizer: Tokenizer, tokens: int, first_epoch: int = 0) -> Iterator[list[Row]]:
    """Endless groups of rows, of at most `tokens` tokens each when padded."""
    number = first_epoch
    while True:
        random = Random(f"{world.seed}/batches/{number}")
        rows = _rows(epoch(world, number), tokenizer)
        random.shuffle(rows)
        rows.sort(key=lambda row: len(row.ids))  # stable, so rows of one length stay shuffled
        groups = _cut(rows, tokens)
        random.shuffle(groups)
        yield from groups
        number += 1


def padded(rows: Sequence[Row], tokenizer: Tokenizer) -> Batch:
    """The rows as one batch."""
    width = max(len(row.ids) for row in rows)
    pad = tokenizer.get_vocab()[PAD]
    ids = [row.ids + [pad] * (width - len(row.ids)) for row in rows]
    labels = [[IGNORED] * row.given + row.ids[row.given :] + [IGNORED] * (width - len(row.ids)) for row in rows]
    return Batch(torch.tensor(ids), torch.tensor(labels))


def _rows(texts: Sequence[Text], tokenizer: Tokenizer) -> list[Row]:
    given = tokenizer.encode_batch([text.prompt for text in texts])
    rest = tokenizer.encode_batch([text.rest for text in texts], add_special_tokens=False)
    return [Row(g.ids + r.ids, len(g.ids)) for g, r in zip(given, rest, strict=True)]


def _cut(rows: list[Row], tokens: int) -> list[list[Row]]:
    """Consecutive groups; the longest row of a group is its last."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        if (len(groups[-1]) + 1) * len(row.ids) > tokens:
            groups.append([])
        groups[-1].append(row)
    return groups
