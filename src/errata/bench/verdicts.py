"""Verdicts: what the founding papers claim, put to the test by rows of results and by findings of analyses.

Where all comparisons of a claim (`errata.bench.claims`) hold it is reproduced, where none does it is not, else it is in
part; a claim of which a comparison has no rows, while none has failed, is not measured. There is no verdict without rows or
findings.

A claim about a method that is by default not that of its paper has a verdict on the rows that are as published, or one that
there are none, beside that on the default; and a verdict names what is not the paper's in the rows that it rests on. One
that was found after far fewer edits than the claim is about says that it is at a smaller scale, and two scores that are
both as good as perfect tell nothing.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from errata import methods
from errata.bench import published
from errata.bench.analyses import Analysis, Look
from errata.bench.claims import (
    AS_PUBLISHED,
    BY_DEFAULT,
    WORSE,
    Claim,
    Comparison,
    Side,
    Trend,
    all_settings,
    as_in_paper,
    claims,
    pairs,
)
from errata.bench.record import PROPERTIES, Row, one_by_one
from errata.metrics import mean

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_MEASURED = "reproduced", "partly reproduced", "not reproduced", "not measured"
CANNOT_TELL = "cannot tell: both at the ceiling"
SMALLER = "at a smaller scale"
"""Stands behind a verdict that was found after far fewer edits than the claim is about."""
NEARLY = 0.9
"""Of a claim's edits: with fewer, the scale is a smaller one."""
OTHERS: dict[str, Callable[[Row], float | None]] = {
    "perplexity": lambda row: row.perplexity.get("mean"),
    "ood": lambda row: row.ood.get("per_example"),
    "memory": lambda row: row.memory_bytes,
    "seconds": lambda row: row.seconds_per_edit,
    "slowdown": lambda row: _ratio(row.answering.get("edited"), row.answering.get("unedited")),
}
"""What can be compared beside the four properties and the worse of two: `slowdown` is that of an answer by the edits."""
ALIKE = ("options", "batch_size", "chunks", "stream")
"""Rows that differ in one of these are other measurements, which are not averaged."""


class Found(NamedTuple):
    """One comparison as it was found."""

    test: Comparison
    left: float | None
    right: float | None
    published: tuple[float | None, float | None]
    departures: tuple[tuple[str, str], ...] = ()
    """Methods, and the options of their rows that are not the paper's, each with the paper's in brackets."""

    @property
    def measured(self) -> bool:
        """Whether there are rows for both sides."""
        return self.left is not None and self.right is not None

    @property
    def holds(self) -> bool | None:
        """None where there are no rows, or where they cannot tell."""
        if self.left is None or self.right is None or self.test.at_ceiling(self.left, self.right):
            return None
        return self.test.holds(self.left, self.right)

    def __str__(self) -> str:
        plain = isinstance(self.test.right, float)
        ours, theirs = (
            _figure(left) if plain else f"{_figure(left)} and {_figure(right)}"
            for left, right in ((self.left, self.right), self.published)
        )
        there = f"; published {theirs}" if any(value is not None for value in self.published) else ""
        if not self.measured:
            return f"{self.test}: no rows"
        said = {True: "holds", False: "fails", None: "cannot tell"}[self.holds]
        return f"{self.test}: {said} ({ours}{there})"


class Verdict(NamedTuple):
    """What rows of one model and data set say of a claim."""

    claim: Claim
    model: str
    """Empty, as the data, where nothing was measured anywhere."""
    data: str
    found: tuple[Found, ...]
    settings: str = BY_DEFAULT
    """Which rows of the methods that it is about were taken: the default ones, or a key of `settings`."""
    instead: int = 0
    """After how many edits it was put to the test, where that is not what the claim says."""
    note: str = ""

    @property
    def on(self) -> tuple[str, str]:
        """Model and data."""
        return self.model, self.data

    @property
    def status(self) -> str:
        """Reproduced, in part, not, or not measured; at a smaller scale where it is; or that the scores cannot tell."""
        held = [found.holds for found in self.found]
        if False in held:
            status = PARTLY if True in held and not self.claim.every else NOT_REPRODUCED
        elif not held or not all(found.measured for found in self.found):
            return NOT_MEASURED
        elif True not in held:
            return CANNOT_TELL
        else:
            status = PARTLY if None in held else REPRODUCED
        return f"{status} {SMALLER}" if self.smaller else status

    @property
    def smaller(self) -> bool:
        """Whether it was put to the test after far fewer edits than the claim is about."""
        return 0 < self.instead < NEARLY * max((side.edits for side in self.claim.sides), default=0)

    @property
    def why(self) -> str:
        """The figures that decided, or what is missing; and what is not the paper's in the rows that they are of."""
        parts = [str(found) for found in self.found if found.measured]
        missing = len(self.found) - len(parts)
        if missing:
            parts.append(f"{missing} of {len(self.found)} comparisons have no {self._what_makes_them()}")
        apart: dict[str, dict[str, None]] = {}
        for method, told in (each for found in self.found for each in found.departures):
            apart.setdefault(method, {})[told] = None
        if apart:
            told_of = "; ".join(f"{method} {', '.join(told)}" for method, told in apart.items())
            parts.append(f"not the paper's, whose stands in brackets: {told_of}")
        return "; ".join([*parts, *([self.note] if self.note else [])])

    def _what_makes_them(self) -> str:
        """Rows or findings, and where they would come from."""
        what = "findings" if self.claim.analysis else "rows"
        if self.settings != BY_DEFAULT:
            sets = ((method, all_settings()[self.settings].get(method)) for method in sorted(self.claim.subjects))
            told = "; ".join(f"{method} with {pairs(options)}" for method, options in sets if options)
            plan = self.claim.plan if self.settings == AS_PUBLISHED else ""
            return f"{what} of {told}" + (f", see plans/{plan}.toml --as-published" if plan else "")
        if self.claim.command:
            return f"{what}, see `{self.claim.command}`"
        return f"{what}, see plans/{self.claim.plan}.toml" if self.claim.plan else what


def verdicts(rows: Sequence[Row], analyses: Sequence[Analysis] = ()) -> list[Verdict]:
    """A verdict on every claim, for every model and data set that has rows for it, or else one that there are none.

    A claim about a method that errata has in a way of its own has more: on rows as published, on those of other settings
    that `claims.json` names, and on the default. The papers ask plain texts: rows of chats say nothing of what they claim.
    """
    rows = [row for row in rows if not row.chat]
    return [verdict for claim in claims() for verdict in _all_of(claim, rows, analyses)]


def _all_of(claim: Claim, rows: Sequence[Row], analyses: Sequence[Analysis]) -> list[Verdict]:
    """The verdicts on one claim, as published first; of other settings those that differ from the one on the default."""
    ways = [name for name, settings in all_settings().items() if claim.subjects & set(settings)]
    last = () if claim.is_as_published else (BY_DEFAULT,)
    by_way = {way: _measured(claim, rows, analyses, way) for way in (*ways, *last)}
    if not any(by_way.values()):
        return [_open(claim, BY_DEFAULT)]
    if not ways:
        return by_way[BY_DEFAULT]
    published_on = {verdict.on for verdict in by_way[AS_PUBLISHED]}
    default = {verdict.on: verdict.status for verdict in by_way.get(BY_DEFAULT, ())}
    note = f"no {'findings' if claim.analysis else 'rows'} {AS_PUBLISHED}"
    found = by_way.pop(AS_PUBLISHED) or [_open(claim, AS_PUBLISHED)]
    for verdict in (verdict for some in by_way.values() for verdict in some):
        if verdict.settings == BY_DEFAULT:
            found.append(verdict if verdict.on in published_on else verdict._replace(note=note))
        elif verdict.on in default and verdict.status != default[verdict.on]:
            found.append(verdict)
    return [_labelled(verdict) for verdict in found]


def _measured(claim: Claim, rows: Sequence[Row], analyses: Sequence[Analysis], way: str) -> list[Verdict]:
    """The verdicts of one way to set the methods, where there are rows or findings for some of it."""
    if claim.analysis:
        alike = [a for a in analyses if a.name == claim.analysis and claim.method in ("", a.method)]
        on = [_of_findings(claim, a) for a in alike if _way_of(a) == way]
    else:
        groups = dict.fromkeys((row.model, row.data) for row in rows)
        kinds = [group for group in groups if group[1].partition(":")[0] in claim.data]
        on = [_of_rows(claim, rows, *group, way) for group in kinds]
    return [verdict for verdict in on if any(found.measured for found in verdict.found)]


def _open(claim: Claim, way: str) -> Verdict:
    return Verdict(claim, "", "", tuple(_compare(claim, test, [], way) for test in claim.tests), way)


def _labelled(verdict: Verdict) -> Verdict:
    """The same, whose claim says what settings it was put to."""
    way = verdict.settings[0].upper() + verdict.settings[1:]
    return verdict._replace(claim=replace(verdict.claim, claim=f"{verdict.claim.claim} {way}."))


def _way_of(analysis: Analysis) -> str:
    """The settings under which these edits were made: as published, or else the default ones."""
    wanted = all_settings()[AS_PUBLISHED].get(analysis.method)
    as_in_it = wanted and published.agree(analysis.method, _options_of(analysis), wanted, wanted)
    return AS_PUBLISHED if as_in_it else BY_DEFAULT


def _options_of(analysis: Analysis) -> Mapping[str, Any]:
    """The options of the method whose edits were looked at, those that it did not have then as it was; by default where it
    does not say.
    """
    told = analysis.settings.get("options")
    return methods.recorded(analysis.method, told) if told else published.defaults(analysis.method)


def _of_findings(claim: Claim, analysis: Analysis) -> Verdict:
    """What an analysis says."""
    apart = _departures(analysis.method, _options_of(analysis), {})
    found = []
    for test in claim.tests:
        left, right = (
            side.value(analysis.found) if isinstance(side, Look | Trend) else side for side in (test.left, test.right)
        )
        assert not isinstance(left, Side)
        assert not isinstance(right, Side)
        found.append(Found(test, left, right, (None, None), apart))
    return Verdict(claim, analysis.model, analysis.data, tuple(found), _way_of(analysis))


def _of_rows(claim: Claim, rows: Iterable[Row], model: str, data: str, way: str) -> Verdict:
    group = [row for row in rows if (row.model, row.data) == (model, data)]
    found = Verdict(claim, model, data, tuple(_compare(claim, test, group, way) for test in claim.tests), way)
    for edits in _instead(claim, group) if found.status == NOT_MEASURED else ():
        tests = {str(test): test for test in (test.after(edits) for test in claim.tests)}
        alike = tuple(_compare(claim, test, group, way) for test in tests.values())
        other = found._replace(found=alike, instead=edits)
        if claim.fewer or other.status != NOT_MEASURED:
            return other
    return found


def _instead(claim: Claim, rows: Sequence[Row]) -> list[int]:
    """After how many edits these rows can put a claim to the test as well, the most first."""
    if not claim.load:
        return [claim.fewer] if claim.fewer else []
    compared = {side.method for side in claim.sides}
    least: dict[int, float] = {}
    for row in rows:
        if row.method in compared and row.edits_per_million_weights is not None:
            least[row.edits] = min(row.edits_per_million_weights, least.get(row.edits, math.inf))
    return sorted((edits for edits, load in least.items() if load >= claim.load), reverse=True)


def _compare(claim: Claim, test: Comparison, rows: Sequence[Row], way: str) -> Found:
    left, right = test.left, test.right
    if not isinstance(left, Side) or isinstance(right, Look | Trend):
        return Found(test, None, None, (None, None))
    there = published_value(claim, left)
    if isinstance(right, float):
        taken = _taken(claim, left, rows, way)
        return Found(test, _value(left, taken, claim.scorer), right, (there, None), _apart(left, taken))
    rows = _of_both(rows, left, right)
    for alike in (*_by_stream(rows, left, right), rows):
        one, other = (_taken(claim, side, alike, way) for side in (left, right))
        if one and other:
            break
    ours, theirs = _value(left, one, claim.scorer), _value(right, other, claim.scorer)
    apart = (*_apart(left, one), *_apart(right, other)) if one and other else ()
    return Found(test, ours, theirs, (there, published_value(claim, right)), apart)


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


def _by_stream(rows: Sequence[Row], left: Side, right: Side) -> Iterator[Sequence[Row]]:
    """Where both sides are after as many edits, the rows of streams of one length, those that end there first.

    What a method was told to expect decides how it shares out its room, so that a checkpoint is no like of an end.
    """
    if left.edits == right.edits:
        for length in sorted({row.stream for row in rows if row.edits == left.edits}):
            yield [row for row in rows if row.stream == length]


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


def _taken(claim: Claim, side: Side, rows: Iterable[Row], way: str) -> Sequence[Row]:
    """The rows that stand for a side: of a method that the claim is about those that are set this way, and no others; of
    one that it is compared with, those if there are any, else those by default. Edits made one by one go before batches.
    """
    chosen = all_settings().get(way, {}).get(side.method, {})
    there = [row for row in rows if (row.method, row.edits) == (side.method, side.edits)]
    known = one_by_one([row for row in there if _property(row, side.property, claim.scorer) is not None])
    found = _measurement(side, known, chosen)
    return found if found or side.method in claim.subjects else _measurement(side, known, {})


def _measurement(side: Side, rows: Iterable[Row], set_to: Mapping[str, Any]) -> Sequence[Row]:
    """All seeds of one measurement of the side: that whose other settings are the default ones, or else the last."""
    wanted = {**set_to, **(side.options or {})}
    told = _variants(side.method).union(*(settings.get(side.method, {}) for settings in all_settings().values()))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if published.agree(side.method, row.options, wanted, told):
            groups.setdefault(json.dumps([getattr(row, name) for name in ALIKE], sort_keys=True), []).append(row)
    options = published.defaults(side.method)
    plain = [group for group in groups.values() if published.agree(side.method, group[0].options, wanted, options)]
    return (plain or list(groups.values()) or [[]])[-1]


def _value(side: Side, rows: Iterable[Row], scorer: str) -> float | None:
    """The mean over these rows."""
    return mean(value for value in (_property(row, side.property, scorer) for row in rows) if value is not None)


def _property(row: Row, name: str, scorer: str) -> float | None:
    if name == WORSE:
        both = [row.score(each, scorer) for each in ("generalization", "locality")]
        return None if None in both else min(value for value in both if value is not None)
    return row.score(name, scorer) if name in PROPERTIES else OTHERS[name](row)


def _apart(side: Side, rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    """What is not the paper's in the settings of these rows, but for what the comparison itself varies."""
    return _departures(side.method, rows[0].options, side.options or {}) if rows else ()


def _departures(method: str, options: Mapping[str, Any], varied: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    default = published.defaults(method)
    found = []
    for name, paper in as_in_paper(method).items():
        ours = options.get(name, default.get(name))
        if name not in varied and ours != paper:
            found.append((method, f"{name}={ours} ({paper})"))
    return tuple(found)


@cache
def _variants(method: str) -> frozenset[str]:
    """The options by which some claim tells variants of a method apart: elsewhere they are as by default."""
    sides = [side for claim in claims() for side in claim.sides if side.method == method]
    return frozenset({"layer", *(name for side in sides for name in side.options or ())})


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
