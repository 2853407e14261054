"""Plots: rows of results as pictures. Nothing is computed here; what is drawn is what the rows say.

They need matplotlib: `pip install 'errata[plots]'`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, cos, log10, pi, sin
from pathlib import Path
from typing import Any

from errata.bench.record import Row, labels
from errata.bench.tables import as_score, check_scorer
from errata.errors import BadOption, MissingExtra
from errata.metrics import HEADLINE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6F4E37", "#444444")
"""Okabe and Ito's palette, told apart under every common colour blindness; its yellow and black replaced."""
INK, SOFT, GHOST, FAINT = "#222222", "#666666", "#B5B5B5", "#DDDDDD"
CORNERS = {"reliability": pi / 2, "generalization": pi / 2 + 4 * pi / 3, "locality": pi / 2 + 2 * pi / 3}
"""Direction of each axis: reliability up, generalization to the right, locality to the left."""
LABELS = {
    "reliability": (0.0, 1.28, "center"),
    "generalization": (1.24, -0.65, "right"),
    "locality": (-1.24, -0.65, "left"),
}
"""Where the value of each is written, and how it is aligned."""
MARKERS = "osD^vP*X"
APART = 0.15
"""Decades by which two ticks of a log axis differ at least."""
NUDGED = 0.3
"""Decades over which the markers of one place are spread at most."""
FAR = 10
"""How many times the least number of a panel the greatest is, from which on it has a log axis."""
KEYS = 6
"""Methods on a line of the key, at most."""
WIDTH, LETTER = 13, 0.08
"""Inches: of panels side by side, and of a letter in the key, about."""
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "text.color": INK, "axes.edgecolor": GHOST, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "svg.fonttype": "none", "svg.hashsalt": "errata",
    "figure.facecolor": "white",
}  # fmt: skip


def triangle(rows: Sequence[Row], path: Path, scorer: str = HEADLINE, edits: int | None = None) -> None:
    """One triangle a method: reliability, generalization and locality from 0 in the middle to 1 at the corners.

    The fuller the triangle, the better the editor. Rows after `edits` edits are drawn, by default the largest number
    that all methods have. PNG, SVG or PDF by the suffix of `path`.
    Raises `MissingExtra` without matplotlib, `BadOption` when there is nothing to draw.
    """
    chosen = at_edits(rows, edits)
    names = labels(chosen)
    plt = _pyplot(scorer)
    columns = min(4, len(chosen))
    lines = ceil(len(chosen) / columns)
    with plt.rc_context(STYLE):
        height = 3.05 * lines + 0.45
        figure, axes = plt.subplots(lines, columns, figsize=(2.8 * columns, height), squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i, (axis, row, name) in enumerate(zip(axes.flat, chosen, names, strict=False)):
            _radar(axis, row, name, COLOURS[i % len(COLOURS)], scorer)
        figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.45 / height, wspace=0.06, hspace=0.06)
        _headline(figure, chosen, f"after {chosen[0].edits:,} edit{'s' * (chosen[0].edits > 1)}, {scorer}")
        save(figure, path)
    plt.close(figure)


def curve(rows: Sequence[Row], path: Path, scorer: str = HEADLINE) -> None:
    """The average and the three scores against the number of edits (log axis), a line a method.

    Markers of methods are set a little apart from left to right, so that equal scores do not hide one another.
    Raises `MissingExtra` without matplotlib, `BadOption` when there is nothing to draw.
    """
    line_panels(rows, path, _scored(scorer), f"as edits accumulate, {scorer}", shares=True)


def capacity(rows: Sequence[Row], path: Path, scorer: str = HEADLINE) -> None:
    """The same against the edits a million weights of the edited matrix: how full a memory may be, a line a memory."""
    dense = [row for row in rows if row.edits_per_million_weights is not None]
    line_panels(
        dense, path, _scored(scorer), f"as the memory fills, {scorer}", shares=True,
        over=lambda row: row.edits_per_million_weights or 0.0, label="edits a million weights",
    )  # fmt: skip


def has_capacity(rows: Sequence[Row]) -> bool:
    """Whether one method was measured after as many edits of memories of several sizes."""
    sizes: dict[tuple[str, int], set[float | None]] = {}
    for row in rows:
        sizes.setdefault((row.method, row.edits), set()).add(row.edits_per_million_weights)
    return any(len(each - {None}) > 1 for each in sizes.values())


def line_panels(
    rows: Sequence[Row], path: Path, panels: Mapping[str, Callable[[Row], float | None]], what: str, *,
    shares: bool = False, over: Callable[[Row], float] = lambda row: float(row.edits),
    label: str = "edits made, one after another",
) -> None:  # fmt: skip
    """A panel for each number of rows, against the number of edits or what else they are put `over` (log axis).

    A number that no row has, as generalization where the data have no rephrasings, has no panel.
    `shares` lie in [0, 1]; other numbers have an axis from 0, or a log axis where they are far apart. Raises
    `MissingExtra` without matplotlib, `BadOption` when there is nothing to draw.
    """
    if not rows:
        raise BadOption("there are no results to draw")
    panels = {name: of for name, of in panels.items() if any(of(row) is not None for row in rows)} or panels
    lines = _by_label(rows)
    nudges = _nudges(len(lines), [over(row) for row in rows])
    plt = pyplot()
    with plt.rc_context(STYLE):
        beside = max(1, min(KEYS, len(lines), int(WIDTH / (0.6 + LETTER * max(map(len, lines))))))
        key = 0.22 * (ceil(len(lines) / beside) - 1)  # inches that the key takes beyond one line
        height = 3.9 + key
        figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, height), sharey=shares, squeeze=False)
        for axis, (name, value_of) in zip(axes[0], panels.items(), strict=True):
            _panel(axis, name, sorted({over(row) for row in rows}), label)
            for i, (method, points) in enumerate(lines.items()):
                there = [
                    (over(row) * nudges[i], value)
                    for row in sorted(points, key=over)
                    if (value := value_of(row)) is not None
                ]
                colour, marker = look(i)
                axis.plot(
                    [t for t, _ in there], [value for _, value in there], label=method, color=colour,
                    marker=marker, lw=2.2, ms=6.5, mec="white", mew=0.8, clip_on=False, zorder=3,
                )  # fmt: skip
            _upright(axis, [value for row in rows if (value := value_of(row)) is not None], shares=shares)
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=beside, frameon=False)
        _headline(figure, rows, what)
        top, bottom = 1 - 0.78 / height, (0.975 + key) / height
        figure.subplots_adjust(left=0.05, right=0.985, top=top, bottom=bottom, wspace=0.12 if shares else 0.2)
        save(figure, path)
    plt.close(figure)


def look(i: int) -> tuple[str, str]:
    """Colour and marker of a line, by its number: all differ up to 64."""
    return COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def at_edits(rows: Sequence[Row], edits: int | None = None) -> list[Row]:
    """The rows after `edits` edits: by default the largest number that all methods have, or else the largest."""
    if not rows:
        raise BadOption("there are no results to draw")
    each = [{row.edits for row in points} for points in _by_label(rows).values()]
    shared = set.intersection(*each) or set.union(*each)
    edits = max(shared) if edits is None else edits
    chosen = [row for row in rows if row.edits == edits]
    if not chosen:
        raise BadOption(f"no results after {edits} edits; there are some after {sorted(set.union(*each))}")
    return chosen


def _by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for label, row in zip(labels(rows), rows, strict=True):
        found.setdefault(label, []).append(row)
    return {label: sorted(points, key=lambda row: row.edits) for label, points in found.items()}


def _radar(axis: Any, row: Row, name: str, colour: str, scorer: str) -> None:
    axis.set(xlim=(-1.3, 1.3), ylim=(-0.98, 1.9), aspect="equal")
    for level in (0.25, 0.5, 0.75, 1.0):
        axis.fill(*_outline([level] * 3), fill=False, ec=GHOST if level == 1 else FAINT, lw=1.2 if level == 1 else 0.7)
    for angle in CORNERS.values():
        axis.plot([0, cos(angle)], [0, sin(angle)], color=FAINT, lw=0.7, zorder=1)
    x, y = _outline([row.score(property_, scorer) or 0.0 for property_ in CORNERS])
    axis.fill(x, y, fc=colour, alpha=0.25, ec="none", zorder=3)
    axis.fill(x, y, fill=False, ec=colour, lw=2.4, joinstyle="round", zorder=4)
    axis.scatter(x, y, s=30, color=colour, ec="white", lw=0.9, zorder=5)
    for property_, (dx, dy, side) in LABELS.items():
        _corner(axis, dx, dy, side, property_, as_score(row.score(property_, scorer)))
    method, _, told = name.partition(" (")
    axis.text(-1.24, 1.78, method, ha="left", va="center", color=colour, fontsize=14, fontweight="bold")
    axis.text(-1.24, 1.57, f"average {as_score(row.score('average', scorer))}", ha="left", va="center", fontsize=10)
    if told:  # a line each, as one line would run over the name of the next triangle
        lines = told.removesuffix(")").replace(", ", "\n")
        axis.text(-1.24, 1.44, lines, ha="left", va="top", fontsize=7.5, color=SOFT)


def _corner(axis: Any, x: float, y: float, side: str, property_: str, value: str) -> None:
    """The value outside a corner, and the name of the property under it."""
    axis.text(x, y, value, ha=side, va="center", fontsize=12, fontweight="bold")
    axis.text(x, y - 0.16, property_, ha=side, va="center", fontsize=9, color=SOFT)


def _outline(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Corners of the triangle with these values on its axes."""
    points = list(zip(values, CORNERS.values(), strict=True))
    return [value * cos(angle) for value, angle in points], [value * sin(angle) for value, angle in points]


def _nudges(lines: int, places: Sequence[float]) -> list[float]:
    """Factors that set the markers of each line apart on the log axis."""
    step = min(0.03 * max(log10(max(places) / min(places)), 0.3), NUDGED / lines)
    return [10 ** (step * (i - (lines - 1) / 2)) for i in range(lines)]


def _scored(scorer: str) -> dict[str, Callable[[Row], float | None]]:
    """The average and the three scores of a row. Raises `UnknownName` for a scorer that does not exist."""
    check_scorer(scorer)
    return {name: partial(Row.score, property_=name, scorer=scorer) for name in ("average", *CORNERS)}


def _panel(axis: Any, name: str, places: Sequence[float], label: str) -> None:
    axis.set_xscale("log")
    ticks: list[float] = []
    for place in places:
        if not ticks or log10(place / ticks[-1]) > APART:
            ticks.append(place)
    axis.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
    axis.minorticks_off()
    axis.set_title(name, fontsize=11.5, fontweight="bold" if name == "average" else "normal", loc="left", pad=8)
    axis.set_xlabel(label)
    axis.grid(axis="y", color=FAINT, lw=0.7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0, which="both")


def _upright(axis: Any, values: Sequence[float], *, shares: bool) -> None:
    """The axis of what is drawn, when it is: of few decades, some numbers between their ends are written as well."""
    if shares:
        axis.set_ylim(0, 1)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    elif values and min(values) > 0 and max(values) / min(values) >= FAR:
        axis.set_yscale("log", subs=(2, 5))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if max(values) / min(values) < FAR**2 else "")
    else:
        axis.set_ylim(bottom=0)


def _headline(figure: Any, rows: Sequence[Row], what: str) -> None:
    models, data = (", ".join(sorted({getattr(row, name) for row in rows})) for name in ("model", "data"))
    figure.suptitle(f"{data} on {models}, {what}", fontsize=11.5, x=0.5, y=0.985)


def save(figure: Any, path: Path) -> None:
    """Write a figure: PNG, SVG or PDF by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=200, bbox_inches="tight", pad_inches=0.12, metadata=metadata)


def _pyplot(scorer: str) -> Any:
    check_scorer(scorer)
    return pyplot()


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files. Raises `MissingExtra` without it."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingExtra("matplotlib", "plots", "drawing") from None
    mpl.use("agg", force=False)
    import matplotlib.pyplot as plt

    return plt
