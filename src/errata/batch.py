"""Batch: edits that are learnt at once, in suffix runs that hold the rows of all of them.

Each edit has parameters of its own, reads only its own rows and has its own loss; what is shared is the run. An edit that
has reached its loss is left out when the run is packed anew, which happens whenever half of what it holds has stopped.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from errata.memory import Memory
from errata.suffix import Suffix
from errata.tokens import Rows

if TYPE_CHECKING:
    from errata.model import EditedModel

Pairs = Sequence[tuple[str, str]]
"""The rows of one edit, as texts: (prompt, target)."""
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, labels, row of each label) -> loss, as in objective.py."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some edits of a batch in one suffix run."""

    edits: tuple[int, ...]
    rows: Rows
    suffix: Suffix
    counts: tuple[int, ...]
    """Rows of each edit; they follow one another."""

    def each(self, values: Tensor) -> tuple[Tensor, ...]:
        """What belongs to each edit, of (rows, ...)."""
        return values.split(self.counts)

    @cached_property
    def _labels(self) -> list[tuple[int, Tensor, Tensor]]:
        """Of each edit how many labels it has, its labels, and which of its rows each of them belongs to."""
        sizes = [int(target.sum()) for target in self.each(self.rows.target)]
        labels, row = self.rows.labels.split(sizes), self.rows.row_of_label.split(sizes)
        starts = [sum(self.counts[:i]) for i in range(len(self.counts))]
        return [(size, own, of - start) for size, own, of, start in zip(sizes, labels, row, starts, strict=True)]

    def targets(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each edit its logits, its labels, and which of its rows each label belongs to."""
        sizes = [size for size, _, _ in self._labels]
        for mine, (_, labels, row) in zip(logits.split(sizes), self._labels, strict=True):
            yield mine, labels, row

    def losses(self, logits: Tensor, objective: Objective, edits: Sequence[int]) -> Tensor:
        """The loss of some of the edits: (wanted, vocabulary) -> (edits,)."""
        found = dict(zip(self.edits, self.targets(logits), strict=True))
        return torch.stack([objective(*found[edit]) for edit in edits])


class Batch:
    """The rows of several edits above one memory; edits are numbered from 0."""

    def __init__(
        self, model: "EditedModel", memory: Memory, pairs: Sequence[Pairs], end: bool = False,
        touched: Callable[[Rows], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Run the part of the model below `memory` on all rows; `end` is as for `model.rows`, `touched` for `Suffix`."""
        self._model, self._memory, self._pairs, self._end, self._touched = model, memory, pairs, end, touched
        self.whole = self._last = self._packed(range(len(pairs)))

    def part(self, edits: Sequence[int]) -> Part:
        """A run that holds these edits: the last one, or one of these edits alone where it would be half of the last."""
        if not set(edits) <= set(self._last.edits):
            self._last = self.whole
        if 2 * len(edits) <= len(self._last.edits):
            self._last = self._packed(edits)
        return self._last

    def _packed(self, edits: Sequence[int]) -> Part:
        rows = self._model.rows([pair for edit in edits for pair in self._pairs[edit]], self._end)
        suffix = self._model.suffix(self._memory, rows, touched=self._touched(rows) if self._touched else None)
        return Part(tuple(edits), rows, suffix, tuple(len(self._pairs[edit]) for edit in edits))


def distinct(keys: Sequence[Hashable]) -> list[list[int]]:
    """Runs of 0, 1, 2, ..., in order, in none of which a key comes twice: what has the same key depends on one another."""
    runs: list[list[int]] = [[]]
    seen: set[Hashable] = set()
    for i, key in enumerate(keys):
        if key in seen:
            runs.append([])
            seen.clear()
        runs[-1].append(i)
        seen.add(key)
    return runs


def added(weight: Tensor, columns: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
    """The weight (model, ff) after edits that each shifted columns (n,) of it by (model, n)."""
    new = weight.clone()
    for own, shift in zip(columns, shifts, strict=True):
        new[:, own] += shift
    return new


def around(weight: Tensor, columns: Sequence[Tensor], shifts: Sequence[Tensor]) -> list[Tensor]:
    """What is in each edit's columns (model, n) beside its own shift: the weight, and the shifts of the others."""
    now = added(weight, columns, shifts)
    return [now[:, own] - shift for own, shift in zip(columns, shifts, strict=True)]


def answers(logits: Tensor, labels: Tensor, row: Tensor) -> bool:
    """Whether the first row's target is what is most probable: (wanted, vocabulary), (wanted,), (wanted,)."""
    first = row == 0
    return bool((logits[first].argmax(dim=1) == labels[first]).all())
