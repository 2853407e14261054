"""Verdicts: what the founding papers claim, put to the test by rows of results and by findings of analyses.

`claims.json` holds each claim as comparisons of rows, "MEMOIR's average > WISE's average at T = 1000", or, where it is
about something else than scores, of numbers that an analysis finds. Where all comparisons of a claim hold it is reproduced,
where none does it is not, else it is in part; a claim of which a comparison has no rows, while none has failed, is not
measured. There is no verdict without rows or findings.
"""

import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from errata.bench import published
from errata.bench.analyses import Analysis, Look
from errata.bench.record import PROPERTIES, Row
from errata.metrics import mean

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_MEASURED = "reproduced", "partly reproduced", "not reproduced", "not measured"
IS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
OTHERS: dict[str, Callable[[Row], float | None]] = {
    "perplexity": lambda row: row.perplexity.get("mean"),
    "ood": lambda row: row.ood.get("per_example"),
    "memory": lambda row: row.memory_bytes,
    "seconds": lambda row: row.seconds_per_edit,
}
"""What can be compared beside the four properties."""
ALIKE = ("options", "batch_size", "chunks", "stream")
"""Rows that differ in one of these are other measurements, which are not averaged."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a property of a method."""

    method: str
    edits: int
    property: str = "average"
    options: Mapping[str, Any] | None = None
    """Of a variant."""

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in (self.options or {}).items())
        return f"{self.method}{f' ({told})' if told else ''} {self.property} at T={self.edits}"


@dataclass(frozen=True)
class Comparison:
    """left `is` right * times + by."""

    left: Side | Look
    is_: str
    right: Side | Look | float
    times: float = 1.0
    by: float = 0.0

    def after(self, edits: int) -> "Comparison":
        """The same after so many edits."""
        left, right = (
            replace(side, edits=edits) if isinstance(side, Side) else side for side in (self.left, self.right)
        )
        assert not isinstance(left, float)
        return replace(self, left=left, right=right)

    def holds(self, left: float, right: float) -> bool:
        """Whether it does, for these values."""
        return IS[self.is_](left, right * self.times + self.by)

    def __str__(self) -> str:
        factor = f"{self.times:g} x " if self.times != 1 else ""
        margin = f" {'+' if self.by > 0 else '-'} {abs(self.by):g}" if self.by else ""
        right = f"{self.right:g}" if isinstance(self.right, float) else str(self.right)
        return f"{self.left} {self.is_} {factor}{right}{margin}"


@dataclass(frozen=True)
class Claim:
    """What a paper claims."""

    id: str
    claim: str
    source: str
    place: str
    data: tuple[str, ...]
    """Kinds of data on which it can be put to the test."""
    tests: tuple[Comparison, ...] = ()
    tables: tuple[str, ...] = ()
    """Published tables that hold the numbers of its comparisons."""
    plan: str = ""
    """The plan that makes the rows."""
    fewer: int = 0
    """Edits after which a claim is put to the test where no rows have as many edits as the paper: one about what a part
    of a method is for, which a matrix that is a hundred times smaller tells earlier, or one that is nearly reached."""
    load: float = 0.0
    """Edits per million weights of the edited matrix in the paper, for a claim about how much a matrix holds: where no
    rows have as many edits as the paper, those count that have at least as many for their weights."""
    analysis: str = ""
    """The analysis whose findings are compared, rather than rows; `command` makes them."""
    method: str = ""
    """Whose edits it must have looked at."""
    command: str = ""
    scorer: str = "teacher_forced_token"


class Found(NamedTuple):
    """One comparison as it was found."""

    test: Comparison
    left: float | None
    right: float | None
    published: tuple[float | None, float | None]

    @property
    def holds(self) -> bool | None:
        """None where there are no rows."""
        return None if self.left is None or self.right is None else self.test.holds(self.left, self.right)

    def __str__(self) -> str:
        plain = isinstance(self.test.right, float)
        ours, theirs = (
            _figure(left) if plain else f"{_figure(left)} and {_figure(right)}"
            for left, right in ((self.left, self.right), self.published)
        )
        there = f"; published {theirs}" if any(value is not None for value in self.published) else ""
        said = {True: "holds", False: "fails", None: "no rows"}[self.holds]
        return f"{self.test}: {said}" + (f" ({ours}{there})" if self.holds is not None else "")


class Verdict(NamedTuple):
    """What rows of one model and data set say of a claim."""

    claim: Claim
    model: str
    """Empty, as the data, where nothing was measured anywhere."""
    data: str
    found: tuple[Found, ...]

    @property
    def status(self) -> str:
        """Reproduced, in part, not, or not measured."""
        held = [found.holds for found in self.found]
        if False in held:
            return PARTLY if True in held else NOT_REPRODUCED
        return REPRODUCED if held and None not in held else NOT_MEASURED

    @property
    def why(self) -> str:
        """The figures that decided, or what is missing."""
        measured = [found for found in self.found if found.holds is not None]
        missing = len(self.found) - len(measured)
        parts = [str(found) for found in measured]
        if missing:
            plan = f", see plans/{self.claim.plan}.toml" if self.claim.plan else ""
            plan = f", see `{self.claim.command}`" if self.claim.command else plan
            parts.append(
                f"{missing} of {len(self.found)} comparisons have no {'findings' if self.claim.analysis else 'rows'}{plan}"
            )
        return "; ".join(parts)


def verdicts(rows: Sequence[Row], analyses: Sequence[Analysis] = ()) -> list[Verdict]:
    """A verdict on every claim, for every model and data set that has rows for it, or else one that there are none.

    The papers ask plain texts: rows of chats say nothing of what they claim.
    """
    found = []
    rows = [row for row in rows if not row.chat]
    groups = dict.fromkeys((row.model, row.data) for row in rows)
    for claim in claims():
        if not claim.analysis:
            on = [_of_rows(claim, rows, *group) for group in groups if group[1].partition(":")[0] in claim.data]
        else:
            alike = [a for a in analyses if a.name == claim.analysis and claim.method in ("", a.method)]
            on = [Verdict(claim, a.model, a.data, tuple(_look(test, a.found) for test in claim.tests)) for a in alike]
        some = [verdict for verdict in on if any(f.holds is not None for f in verdict.found)]
        found += some or [Verdict(claim, "", "", tuple(_compare(claim, test, []) for test in claim.tests))]
    return found


@cache
def claims() -> tuple[Claim, ...]:
    """All claims."""
    text = files("errata.bench").joinpath("claims.json").read_text(encoding="utf-8")
    return tuple(_claim(told) for told in json.loads(text)["claims"])


def _claim(told: Mapping[str, Any]) -> Claim:
    lists: dict[str, Any] = {name: tuple(told.get(name, ())) for name in ("data", "tables")}
    tests = tuple(_comparison(test, told.get("edits", 0)) for test in told.get("tests", ()))
    plain = {name: value for name, value in told.items() if name not in ("edits", "tests", *lists)}
    return Claim(**plain, **lists, tests=tests)


def _comparison(told: Mapping[str, Any], edits: int) -> Comparison:
    left, right = (_side(told[name], edits) for name in ("left", "right"))
    assert not isinstance(left, float)
    return Comparison(left, told["is"], right, told.get("times", 1.0), told.get("by", 0.0))


def _side(told: Any, edits: int) -> Side | Look | float:
    if not isinstance(told, dict):
        return float(told)
    if "at" in told:
        return Look(**told | {"at": tuple(told["at"])})
    return Side(**{"edits": edits, **told})


def _look(test: Comparison, found: Mapping[str, Any]) -> Found:
    left, right = (side.value(found) if isinstance(side, Look) else side for side in (test.left, test.right))
    assert not isinstance(left, Side)
    assert not isinstance(right, Side)
    return Found(test, left, right, (None, None))


def _of_rows(claim: Claim, rows: Iterable[Row], model: str, data: str) -> Verdict:
    group = [row for row in rows if (row.model, row.data) == (model, data)]
    found = Verdict(claim, model, data, tuple(_compare(claim, test, group) for test in claim.tests))
    for edits in _instead(claim, group) if found.status == NOT_MEASURED else ():
        tests = {str(test): test for test in (test.after(edits) for test in claim.tests)}
        other = found._replace(found=tuple(_compare(claim, test, group) for test in tests.values()))
        if claim.fewer or other.status != NOT_MEASURED:
            return other
    return found


def _instead(claim: Claim, rows: Sequence[Row]) -> list[int]:
    """After how many edits these rows can put a claim to the test as well, the most first."""
    if not claim.load:
        return [claim.fewer] if claim.fewer else []
    methods = {side.method for test in claim.tests for side in (test.left, test.right) if isinstance(side, Side)}
    least: dict[int, float] = {}
    for row in rows:
        if row.method in methods and row.edits_per_million_weights is not None:
            least[row.edits] = min(row.edits_per_million_weights, least.get(row.edits, math.inf))
    return sorted((edits for edits, load in least.items() if load >= claim.load), reverse=True)


def _compare(claim: Claim, test: Comparison, rows: Sequence[Row]) -> Found:
    right = test.right
    if isinstance(test.left, Look) or isinstance(right, Look):
        return Found(test, None, None, (None, None))
    if isinstance(right, float):
        return Found(test, _value(test.left, rows, claim.scorer), right, (published_value(claim, test.left), None))
    pair = (published_value(claim, test.left), published_value(claim, right))
    rows = _of_both(rows, test.left, right)
    return Found(test, _value(test.left, rows, claim.scorer), _value(right, rows, claim.scorer), pair)


def _of_both(rows: Sequence[Row], left: Side, right: Side) -> Sequence[Row]:
    """Where a method is compared with itself after fewer edits, its rows of settings that were measured after both."""
    if left.edits == right.edits or (left.method, left.options or {}) != (right.method, right.options or {}):
        return rows

    def settings(row: Row) -> str:
        return json.dumps([row.options, row.batch_size], sort_keys=True)

    at_left, at_right = (
        {settings(row) for row in rows if (row.method, row.edits) == (side.method, side.edits)}
        for side in (left, right)
    )
    return [row for row in rows if settings(row) in at_left & at_right]


def published_value(claim: Claim, side: Side) -> float | None:
    """What the claim's tables say of one side; the first that says it counts."""
    for line in published.numbers(claim.tables):
        same = (line.method, line.edits) == (side.method, side.edits)
        wanted = side.options or {}
        if (
            same
            and published.agree(side.method, line.options, wanted, {*line.options, *wanted})
            and line.values.get(side.property) is not None
        ):
            return line.values[side.property]
    return None


def _value(side: Side, rows: Iterable[Row], scorer: str) -> float | None:
    """The mean over the seeds of one measurement of the side: that with default settings, or else the last."""
    wanted = side.options or {}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        same = (row.method, row.edits) == (side.method, side.edits)
        if same and published.agree(side.method, row.options, wanted, _variants(side.method)):
            groups.setdefault(json.dumps([getattr(row, name) for name in ALIKE], sort_keys=True), []).append(row)
    if not groups:
        return None
    options = published.defaults(side.method)
    plain = [group for group in groups.values() if published.agree(side.method, group[0].options, wanted, options)]
    chosen = (plain or list(groups.values()))[-1]
    values = (
        row.score(side.property, scorer) if side.property in PROPERTIES else OTHERS[side.property](row)
        for row in chosen
    )
    return mean(value for value in values if value is not None)


@cache
def _variants(method: str) -> frozenset[str]:
    """The options by which some claim tells variants of a method apart: elsewhere they are as by default."""
    sides = [
        side for claim in claims() for test in claim.tests for side in (test.left, test.right) if isinstance(side, Side)
    ]
    return frozenset({"layer", *(name for side in sides if side.method == method for name in side.options or ())})


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
