"""Cost: the part of a report that says what edits take as they accumulate: memory, time of an edit, time of an answer."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from errata.bench.plots import line_panels
from errata.bench.record import Row, labels
from errata.bench.section import Figure, Grid
from errata.bench.tables import NOTHING


def slower(row: Row) -> float | None:
    """How many times as long a token of an answer takes with the edits."""
    edited, unedited = row.answering.get("edited"), row.answering.get("unedited")
    return edited / unedited if edited and unedited else None


PANELS: dict[str, Callable[[Row], float | None]] = {
    "memory that is added, MB": lambda row: row.memory_bytes / 1e6 or None,
    "seconds an edit": lambda row: row.seconds_per_edit,
    "time of an answer, edited over unedited": slower,
}


def cost(rows: Sequence[Row]) -> tuple[list[Grid], list[Figure]]:
    """A table and a figure of rows of one model and data set that were measured after several numbers of edits."""
    timed = [(row, label) for row, label in zip(rows, labels(rows), strict=True) if slower(row) is not None]
    lines = [
        (
            label, f"{row.edits:,}", f"{row.memory_bytes / 1e6:.3g}",
            NOTHING if row.seconds_per_edit is None else f"{row.seconds_per_edit:.3g}", f"{slower(row):.2f}",
        )
        for row, label in sorted(timed, key=lambda pair: (pair[0].edits, slower(pair[0]) or 0.0))
    ]  # fmt: skip
    head = ("Method", "T", "MB added", "s/edit", "Answer, edited over unedited")
    grids = [Grid("What edits take", head, lines)] if lines else []
    edited = [row for row in rows if row.seconds_per_edit is not None]
    several = len({row.edits for row in edited}) > 1
    title, shows = "Cost against the number of edits", f"{'; '.join(_panels(edited))}; a line a method"
    return grids, [Figure(title, partial(draw, edited), shows)] if several else []


def draw(rows: Sequence[Row], path: Path) -> None:
    """Memory, seconds an edit and time of an answer against the number of edits, a line a method."""
    line_panels(rows, path, _panels(rows), "what edits cost")


def _panels(rows: Sequence[Row]) -> dict[str, Callable[[Row], float | None]]:
    """What was measured after several numbers of edits. After one alone there is no line, and a table says as much."""
    return {name: of for name, of in PANELS.items() if len({row.edits for row in rows if of(row) is not None}) > 1}
