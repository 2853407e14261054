"""Tables: rows of results for people to read, on a terminal or in Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from errata.bench import published as papers
from errata.bench.record import PROPERTIES, Row, labels
from errata.errors import UnknownName
from errata.metrics import HEADLINE, SCORERS

COLUMNS = ("Method", "T", "Rel", "Gen", "Loc", "Avg", "s/edit", "MB")
"""MB is the memory that the edits have added."""
NOTHING = "–"
PUBLISHED_NOTE = (
    "Published numbers are those of other models, as their papers give them: teacher-forced token accuracy, GRACE and"
    " DEFER by generation. Compare them with the teacher_forced_token scores."
)


class Line(NamedTuple):
    """One line of a table."""

    edits: int
    method: str
    values: tuple[float | None, float | None, float | None, float | None]
    """Reliability, generalization, locality, average."""
    seconds: float | None = None
    megabytes: float | None = None

    def cells(self) -> list[str]:
        """As written: scores with two decimals."""
        cost = [NOTHING if value is None else f"{value:.3g}" for value in (self.seconds, self.megabytes)]
        return [self.method, f"{self.edits:,}", *map(as_score, self.values), *cost]


def table(rows: Sequence[Row], scorer: str = HEADLINE, *, published: bool = False) -> Table:
    """A table for the terminal: methods by number of edits, the best average first.

    With `published`, the papers' numbers for the same methods and numbers of edits on such data are set below.
    """
    made = Table(title=title(rows, scorer), caption=PUBLISHED_NOTE if published else None)
    for name in COLUMNS:
        made.add_column(name, justify="left" if name == "Method" else "right")
    before = None
    for line in lines(rows, scorer, published=published):
        if before not in (None, line.edits):
            made.add_section()
        before = line.edits
        made.add_row(*map(escape, line.cells()))
    return made


def markdown(
    rows: Sequence[Row], scorer: str = HEADLINE, *, published: bool = False, sources: Sequence[str] | None = None
) -> str:
    """The same table in Markdown, under its title. `sources`: published tables, by their ids (default: the main ones)."""
    head = [f"**{title(rows, scorer)}**", ""]
    rule = "|" + "|".join("---" if name == "Method" else "---:" for name in COLUMNS) + "|"
    body = [_bars(line.cells()) for line in lines(rows, scorer, published=published, sources=sources)]
    tail = ["", PUBLISHED_NOTE] if published else []
    return "\n".join([*head, _bars(COLUMNS), rule, *body, *tail]) + "\n"


def lines(
    rows: Sequence[Row], scorer: str = HEADLINE, *, published: bool = False, sources: Sequence[str] | None = None
) -> list[Line]:
    """The lines of a table, by number of edits and then from the best average down; published ones after ours."""
    check_scorer(scorer)
    ours = [_line(row, label, scorer) for row, label in zip(rows, labels(rows), strict=True)]
    theirs = published_lines(rows, sources) if published else []
    return [line for t in sorted({line.edits for line in ours}) for group in (ours, theirs) for line in _at(group, t)]


def title(rows: Sequence[Row], scorer: str) -> str:
    """What all rows have in common: model, data, whether they are of chats, scorer."""
    models, data = (", ".join(sorted({getattr(row, name) for row in rows})) for name in ("model", "data"))
    asked = ", in a chat" if all(row.chat for row in rows) else ""
    return f"{data} on {models}{asked}, {scorer}" if rows else f"no results, {scorer}"


def published_lines(rows: Sequence[Row], sources: Sequence[str] | None = None) -> list[Line]:
    """The papers' numbers for the methods of these rows."""
    return [Line(line.edits, line.label, line.properties) for line in papers.beside(rows, sources)]


def as_score(value: float | None) -> str:
    """A score in print."""
    return NOTHING if value is None else f"{value:.2f}"


def is_number(cell: str) -> bool:
    """Whether a cell is a number, or the sign that there is none."""
    return (
        cell == NOTHING
        or cell.replace(",", "").replace(".", "").replace("-", "").replace("e", "").replace("+", "").isdecimal()
    )


def check_scorer(scorer: str) -> None:
    """Raise `UnknownName` for a scorer that does not exist."""
    if scorer not in SCORERS:
        raise UnknownName("scorer", scorer, SCORERS)


def _line(row: Row, label: str, scorer: str) -> Line:
    reliability, generalization, locality, average = (row.score(name, scorer) for name in PROPERTIES)
    values = (reliability, generalization, locality, average)
    return Line(row.edits, label, values, row.seconds_per_edit, row.memory_bytes / 1e6)


def _at(group: Iterable[Line], edits: int) -> list[Line]:
    return sorted((line for line in group if line.edits == edits), key=lambda line: -(line.values[3] or 0.0))


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
