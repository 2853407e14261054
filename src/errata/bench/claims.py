"""Claims: what the founding papers say, as comparisons of rows of results or of findings of analyses.

`claims.json` holds each as "MEMOIR's average > WISE's average at T = 1000", or, where it is about something else than
scores, of numbers that an analysis finds. It also says where a method as errata has it by default is not that of its paper.
"""

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from errata.bench.agreement import CEILING, kendall
from errata.bench.analyses import Look
from errata.bench.record import PROPERTIES

IS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
WORSE = "worse of generalization and locality"
AS_PUBLISHED, BY_DEFAULT = "as published", "as errata has it by default"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a property of a method."""

    method: str
    edits: int
    property: str = "average"
    options: Mapping[str, Any] | None = None
    """Of a variant."""

    def __str__(self) -> str:
        told = pairs(self.options or {})
        return f"{self.method}{f' ({told})' if told else ''} {self.property} at T={self.edits}"


@dataclass(frozen=True)
class Trend:
    """How a number in findings goes along a list: Kendall's tau against its place, 1 where it rises all the way."""

    along: str
    at: tuple[str, ...]

    def value(self, found: Mapping[str, Any]) -> float | None:
        """The tau, or None where the findings have no such list."""
        values = [Look(self.at).value(each) for each in found.get(self.along, ())]
        return kendall([(i, value) for i, value in enumerate(values) if value is not None])

    def __str__(self) -> str:
        return f"tau of {' '.join(self.at)} along {self.along}"


@dataclass(frozen=True)
class Comparison:
    """left `is` right * times + by."""

    left: Side | Look | Trend
    is_: str
    right: Side | Look | Trend | float
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

    def at_ceiling(self, left: float, right: float) -> bool:
        """Whether this asks which of two scores is the better one, by however little, where both are as good as perfect."""
        asks = _is_score(self.left) and _is_score(self.right) and (self.times, self.by) == (1.0, 0.0)
        return asks and min(left, right) >= CEILING

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
    every: bool = False
    """Whether it says that something is never so: one comparison that fails then refutes it."""

    @property
    def sides(self) -> list[Side]:
        """All that rows are asked for."""
        return [side for test in self.tests for side in (test.left, test.right) if isinstance(side, Side)]

    @property
    def subjects(self) -> frozenset[str]:
        """The methods that it is about: those on the left of its comparisons, or whose edits are looked at."""
        about = {test.left.method for test in self.tests if isinstance(test.left, Side)}
        return frozenset(about | ({self.method} if self.method else set()))

    @property
    def is_as_published(self) -> bool:
        """Whether its comparisons themselves set a method as its paper has it, as those of its ablations do."""
        return any(set(side.options or {}) & set(as_published(side.method)) for side in self.sides)


@cache
def claims() -> tuple[Claim, ...]:
    """All claims."""
    return tuple(_claim(told) for told in _content()["claims"])


@cache
def _content() -> Any:
    return json.loads(files("errata.bench").joinpath("claims.json").read_text(encoding="utf-8"))


def all_settings() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Name of a way to set methods -> method -> the options in which it is not as by default."""
    found: Mapping[str, Mapping[str, Mapping[str, Any]]] = _content()["settings"]
    return found


def as_published(method: str) -> Mapping[str, Any]:
    """The options by which a method is without what errata has added to it; none where nothing is added."""
    return all_settings()[AS_PUBLISHED].get(method, {})


def as_in_paper(method: str) -> dict[str, Any]:
    """The options of a method whose values in its paper are not errata's default: what makes it another method first."""
    return {**as_published(method), **_content()["details"].get(method, {})}


def _claim(told: Mapping[str, Any]) -> Claim:
    lists: dict[str, Any] = {name: tuple(told.get(name, ())) for name in ("data", "tables")}
    tests = tuple(_comparison(test, told.get("edits", 0)) for test in told.get("tests", ()))
    plain = {name: value for name, value in told.items() if name not in ("edits", "tests", *lists)}
    return Claim(**plain, **lists, tests=tests)


def _comparison(told: Mapping[str, Any], edits: int) -> Comparison:
    left, right = (_side(told[name], edits) for name in ("left", "right"))
    assert not isinstance(left, float)
    return Comparison(left, told["is"], right, told.get("times", 1.0), told.get("by", 0.0))


def _side(told: Any, edits: int) -> Side | Look | Trend | float:
    if not isinstance(told, dict):
        return float(told)
    if "along" in told:
        return Trend(told["along"], tuple(told["at"]))
    if "at" in told:
        return Look(**told | {"at": tuple(told["at"])})
    return Side(**{"edits": edits, **told})


def _is_score(side: Side | Look | Trend | float) -> bool:
    name = side.property if isinstance(side, Side) else side.at[-1] if isinstance(side, Look) else ""
    return name in (*PROPERTIES, WORSE)


def pairs(options: Mapping[str, Any]) -> str:
    """Options as they are told in a line."""
    return ", ".join(f"{name}={value}" for name, value in options.items())
