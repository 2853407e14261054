"""Agreement: whether our results put methods in the same order as a published table does."""

from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from typing import NamedTuple

from errata.bench import published
from errata.bench.record import Row, one_by_one
from errata.metrics import mean

FEWEST = 3
"""Methods that make an order."""
SCORER = "teacher_forced_token"
"""What the papers report."""
CEILING = 0.98
"""A score from which on there is no room for another to be better: two edits of a hundred."""


FEW = 5
"""Methods from which on an order is told without a caution."""


class Agreement(NamedTuple):
    """Kendall's tau over the methods that both have, by their averages."""

    table: str
    model: str
    data: str
    edits: int
    methods: tuple[str, ...]
    """From our best to our worst."""
    tau: float
    """1: the same order; -1: the opposite one."""
    perfect: int = 0
    """Methods at the ceiling, whose order tells nothing."""

    @property
    def caution(self) -> str:
        """Why a tau says little, if it does."""
        told = [f"of {len(self.methods)} methods"] if len(self.methods) < FEW else []
        return "; ".join([*told, *([f"{self.perfect} at the ceiling"] if self.perfect > 1 else [])])


def agreements(rows: Sequence[Row], tables: Sequence[str] | None = None) -> list[Agreement]:
    """For each model, data set, T and published table with at least three methods in common.

    A method that was measured in several ways counts with the mean of its averages.
    """
    found = []
    for model, data, edits in dict.fromkeys((row.model, row.data, row.edits) for row in rows):
        group = [row for row in rows if (row.model, row.data, row.edits) == (model, data, edits)]
        for table in dict.fromkeys(line.table for line in published.beside(group, tables)):
            pairs = _pairs(group, table)
            tau = kendall(list(pairs.values()))
            if len(pairs) >= FEWEST and tau is not None:
                perfect = sum(ours >= CEILING for ours, _ in pairs.values())
                found.append(Agreement(table, model, data, edits, tuple(pairs), tau, perfect))
    return found


def kendall(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Tau-b of pairs of values; None where all values of one side are equal."""
    signs = [(_sign(a[0] - b[0]), _sign(a[1] - b[1])) for a, b in combinations(pairs, 2)]
    norm = sqrt(sum(one != 0 for one, _ in signs) * sum(other != 0 for _, other in signs))
    return sum(one * other for one, other in signs) / norm if norm else None


def _pairs(rows: Sequence[Row], table: str) -> dict[str, tuple[float, float]]:
    """Method -> our average and the published one, our best first."""
    pairs: dict[str, tuple[float, float]] = {}
    for line in published.numbers([table]):
        measured = one_by_one([row for row in rows if published.like(row, [line])])
        own = (row.score("average", SCORER) for row in measured)
        ours, theirs = mean(value for value in own if value is not None), line.values.get("average")
        if ours is not None and theirs is not None:
            pairs[line.label.partition(f" ({line.source}:")[0]] = (ours, theirs)
    return dict(sorted(pairs.items(), key=lambda pair: -pair[1][0]))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
