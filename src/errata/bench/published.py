"""Published: the numbers of the founding papers, by table, for setting beside ours.

They stand in `published.json`: tables with an id (`wise-10` is WISE's table 10), the model and the data they were measured
on, and rows of method, options that tell a variant from the method as it is, number of edits, and values.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from errata import methods
from errata.bench.record import PROPERTIES, Row
from errata.errors import UnknownName

QUESTIONS = "zsre"
"""Data whose published numbers are shown beside those on data that no paper used, such as the atlas: short answers."""


class Published(NamedTuple):
    """One line of one table of one paper."""

    table: str
    """Id of the table."""
    source: str
    """The paper, in short."""
    data: str
    model: str
    method: str
    options: Mapping[str, Any]
    """What differs from the method as it is."""
    edits: int
    values: Mapping[str, float | None]
    """`reliability`, `generalization`, `locality` and `average`, `perplexity`, or `ood`: those that the table has."""

    @property
    def label(self) -> str:
        """Method, variant, paper and model: `wise (merge=ties) (WISE: LLaMA-2-7B)`."""
        told = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method}{f' ({told})' if told else ''} ({self.source}: {self.model})"

    @property
    def properties(self) -> tuple[float | None, float | None, float | None, float | None]:
        """Reliability, generalization, locality, average; None for what the table does not have."""
        one, two, three, four = (self.values.get(name) for name in PROPERTIES)
        return one, two, three, four


def numbers(tables: Sequence[str] | None = None) -> list[Published]:
    """The lines of these tables; by default of the main tables, which compare methods as they are.

    Raises `UnknownName` for a table that does not exist.
    """
    known = _tables()
    for name in tables or ():
        if name not in known:
            raise UnknownName("published table", name, known)
    chosen = [name for name, table in known.items() if table.get("main")] if tables is None else tables
    return [line for name in chosen for line in _lines(known[name])]


def names() -> tuple[str, ...]:
    """The ids of all tables."""
    return tuple(_tables())


def place(table: str) -> str:
    """A table in few words: `WISE, table 10, LLaMA-2-7B`."""
    found = _tables()[table]
    return f"{found['source']}, {found['place']}, {found['model']}"


def title(table: str) -> str:
    """A table in words: `WISE (arXiv 2405.14768), table 10, LLaMA-2-7B`."""
    found = _tables()[table]
    return f"{_content()['sources'][found['source']]}, {found['place']}, {found['model']}"


def beside(rows: Iterable[Row], tables: Sequence[str] | None = None) -> list[Published]:
    """The published lines of the methods of these rows, on their data, at any number of edits.

    Chats have none: the papers ask plain texts.
    """
    rows = [row for row in rows if not row.chat]
    methods, data = {row.method for row in rows}, {data_of(row) for row in rows}
    return [line for line in numbers(tables) if line.method in methods and line.data in data]


def like(row: Row, lines: Iterable[Published]) -> list[Published]:
    """Those of some published lines that were measured as this row was, but for the model: method, variant, T."""
    varied = variants(row.method)
    return [
        line
        for line in lines
        if not row.chat
        and (line.method, line.edits, line.data) == (row.method, row.edits, data_of(row))
        and agree(row.method, row.options, line.options, varied)
    ]


def agree(method: str, one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether these options of a method are the same on both sides; what a side does not say is as by default."""
    default = defaults(method)
    return all(one.get(name, default.get(name)) == other.get(name, default.get(name)) for name in names)


@cache
def variants(method: str) -> frozenset[str]:
    """The options by which the papers tell variants of a method apart."""
    return frozenset(name for line in numbers(names()) if line.method == method for name in line.options)


@cache
def defaults(method: str) -> Mapping[str, Any]:
    """The default options of a method; none for the unedited model and for methods that errata does not have."""
    return {f.name: f.default for f in fields(methods.find(method))} if method in methods.names() else {}


def data_of(row: Row) -> str:
    """The published data that a row's are to be compared with: of its kind, or else short answers to questions."""
    kind = row.data.partition(":")[0]
    return kind if any(table["data"] == kind for table in _tables().values()) else QUESTIONS


def _lines(table: Mapping[str, Any]) -> list[Published]:
    columns = table["columns"]
    return [
        Published(
            table["id"], table["source"], table["data"], table["model"], method, options, edits,
            dict(zip(columns, values, strict=True)),
        )
        for method, options, edits, *values in table["rows"]
    ]  # fmt: skip


def _tables() -> dict[str, Any]:
    return {table["id"]: table for table in _content()["tables"]}


@cache
def _content() -> Any:
    return json.loads(files("errata.bench").joinpath("published.json").read_text(encoding="utf-8"))
