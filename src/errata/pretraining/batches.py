"""Batches: texts as right-padded rows of token ids, rows of like length together."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch

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


def grouped(rows: list[Row], tokens: int, random: Random) -> list[list[Row]]:
    """The rows in groups of at most `tokens` tokens each when padded, in random order. `rows` is sorted in place."""
    random.shuffle(rows)
    rows.sort(key=lambda row: len(row.ids))  # stable, so rows of one length stay shuffled
    groups = _cut(rows, tokens)
    random.shuffle(groups)
    return groups


def padded(rows: Sequence[Row], pad: int) -> Batch:
    """The rows as one batch, filled up with the id `pad`."""
    width = max(len(row.ids) for row in rows)
    ids = [row.ids + [pad] * (width - len(row.ids)) for row in rows]
    labels = [[IGNORED] * row.given + row.ids[row.given :] + [IGNORED] * (width - len(row.ids)) for row in rows]
    return Batch(torch.tensor(ids), torch.tensor(labels))


def _cut(rows: list[Row], tokens: int) -> list[list[Row]]:
    """Consecutive groups; the longest row of a group is its last."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        if (len(groups[-1]) + 1) * len(row.ids) > tokens:
            groups.append([])
        groups[-1].append(row)
    return groups
