"""Sweeps: the part of a report that shows how scores follow an option: a line over its values, a map over those of two.

Rows are of one sweep where they differ in nothing else. A method's own choice of layer is the one that its rows name.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from errata.bench.plots import CORNERS, FAINT, SOFT, STYLE, look, pyplot, save
from errata.bench.record import Row
from errata.bench.section import Figure
from errata.bench.tables import as_score
from errata.metrics import HEADLINE

LEAST = 3
"""Values of an option that make a sweep; of two that make a map, two each."""
FAR = 20
"""How many times the least value the greatest is, from which on a line has a log axis."""
Group = tuple[Any, ...]


class Sweep(NamedTuple):
    """Rows that differ in the values of one option, or of two."""

    method: str
    edits: int
    names: tuple[str, ...]
    rows: Mapping[tuple[float, ...], Row]
    """Values of these options -> the row."""

    @property
    def title(self) -> str:
        """What is swept."""
        return f"{self.method} after {self.edits:,} edits, by {' and '.join(self.names)}"


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """All sweeps among rows of one model and data set, by method and number of edits. A map stands for its lines."""
    alike: dict[Group, list[Row]] = {}
    for row in rows:
        key = (row.method, row.edits, row.stream, row.seed, row.batch_size, row.chunks, row.chat)
        alike.setdefault(key, []).append(row)
    found = []
    for (method, edits, *_), group in sorted(alike.items(), key=lambda item: item[0][:2]):
        names = sorted({name for row in group for name in row.options if _number(row, name) is not None})
        pairs = [_trimmed(sweep) for pair in combinations(names, 2) for sweep in _over(method, edits, group, pair)]
        maps = [sweep for sweep in pairs if _is_map(sweep)]
        inside = {name for sweep in maps for name in sweep.names}
        lines = [sweep for name in names if name not in inside for sweep in _over(method, edits, group, (name,))]
        found += maps + [sweep for sweep in lines if len(sweep.rows) >= LEAST]
    return found


def figures(rows: Sequence[Row]) -> list[Figure]:
    """A figure for each sweep among rows of one model and data set."""
    line, map_ = "a line each for the average and the three scores", "a map each of the average and the three scores"
    return [Figure(s.title, partial(draw, s), map_ if len(s.names) > 1 else line) for s in sweeps(rows)]


def draw(sweep: Sweep, path: Path, scorer: str = HEADLINE) -> None:
    """One sweep: PNG, SVG or PDF by the suffix of `path`. Raises `MissingExtra` without matplotlib."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure = (_map if len(sweep.names) > 1 else _line)(plt, sweep, scorer)
        row = next(iter(sweep.rows.values()))
        figure.suptitle(f"{sweep.title}: {row.data} on {row.model}, {scorer}", fontsize=11.5)
        figure.tight_layout()
        save(figure, path)
    plt.close(figure)


def _line(plt: Any, sweep: Sweep, scorer: str) -> Any:
    figure, axis = plt.subplots(figsize=(8, 3.8))
    values = sorted(sweep.rows)
    for i, name in enumerate(("average", *CORNERS)):
        there = [(x, score) for (x,) in values if (score := sweep.rows[x,].score(name, scorer)) is not None]
        colour, marker = look(i)
        axis.plot(
            [x for x, _ in there], [score for _, score in there], label=name, color=colour, marker=marker,
            lw=2.6 if name == "average" else 1.6, ms=6, mec="white", clip_on=False,
        )  # fmt: skip
    (low,), *_, (high,) = values
    if low > 0 and high / low >= FAR:
        axis.set_xscale("log")
    axis.set_xticks([x for (x,) in values], [f"{x:g}" for (x,) in values])
    axis.minorticks_off()
    axis.set(xlabel=sweep.names[0], ylim=(0, 1))
    axis.grid(axis="y", color=FAINT, lw=0.7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0, colors=SOFT)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _map(plt: Any, sweep: Sweep, scorer: str) -> Any:
    across, up = (sorted({values[i] for values in sweep.rows}) for i in (0, 1))
    figure, axes = plt.subplots(1, 4, figsize=(13, 1.6 + 0.5 * len(up)), sharey=True)
    for axis, name in zip(axes, ("average", *CORNERS), strict=True):
        cells = [
            [None if (row := sweep.rows.get((x, y))) is None else row.score(name, scorer) for x in across] for y in up
        ]
        shades = [[float("nan") if cell is None else cell for cell in line] for line in cells]
        axis.imshow(shades, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
        for y, line in enumerate(cells):
            for x, cell in enumerate(line):
                if cell is not None:
                    colour = "white" if cell > 0.6 else "black"
                    axis.text(x, y, as_score(cell), ha="center", va="center", color=colour, fontsize=9)
        axis.set_xticks(range(len(across)), [f"{x:g}" for x in across])
        axis.set_yticks(range(len(up)), [f"{y:g}" for y in up])
        axis.set_title(name, fontsize=11, loc="left")
        axis.set_xlabel(sweep.names[0])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(sweep.names[1])
    return figure


def _over(method: str, edits: int, rows: Sequence[Row], names: tuple[str, ...]) -> list[Sweep]:
    """The rows by their values of these options, for each setting of all others."""
    found: dict[Group, dict[tuple[float, ...], Row]] = {}
    for row in rows:
        values = tuple(value for name in names if (value := _number(row, name)) is not None)
        if len(values) == len(names):
            rest = tuple(sorted((name, repr(value)) for name, value in row.options.items() if name not in names))
            found.setdefault(rest, {})[values] = row
    return [Sweep(method, edits, names, there) for there in found.values()]


def _is_map(sweep: Sweep) -> bool:
    """Whether both options vary, and most of the cells are there."""
    sides = _sides(sweep)
    return min(map(len, sides)) > 1 and max(map(len, sides)) >= LEAST and _is_full(sweep)


def _is_full(sweep: Sweep) -> bool:
    """Whether more than three quarters of the cells are there."""
    across, up = _sides(sweep)
    return 4 * len(sweep.rows) > 3 * len(across) * len(up)


def _sides(sweep: Sweep) -> tuple[Counter[float], Counter[float]]:
    """Of each of two options, how many cells there are with each of its values."""
    across, up = (Counter(values[i] for values in sweep.rows) for i in (0, 1))
    return across, up


def _trimmed(sweep: Sweep) -> Sweep:
    """A sweep over two options without the values of which less than half of the cells are there, until most are."""
    while min(map(len, _sides(sweep))) > 1:
        sides = _sides(sweep)
        share, i, scarce = min(
            (count / len(other), i, value)
            for i, (side, other) in enumerate(zip(sides, sides[::-1], strict=True))
            for value, count in side.items()
        )
        if share >= 1 / 2 and _is_full(sweep):
            break
        sweep = sweep._replace(rows={values: row for values, row in sweep.rows.items() if values[i] != scarce})
    return sweep


def _number(row: Row, name: str) -> float | None:
    """The value of an option, where it is a number; the layer that a method chose by itself."""
    value = row.options.get(name)
    if name == "layer" and value is None:
        at = re.fullmatch(r".*?\.(\d+)\..*", str(row.provenance.get("site")))
        value = int(at[1]) if at and "," not in str(row.provenance.get("site")) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
