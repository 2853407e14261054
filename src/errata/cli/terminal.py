"""Terminal: data to stdout, everything else to stderr, and a progress bar where somebody looks."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from errata.bench import Step

EVERY = 60.0
"""Seconds between two lines of a log that say how far something is."""

Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, one object per line.")]
Irrelevant = Annotated[
    str | None,
    typer.Option(metavar="FILE|KIND:PATH", help="What edits must leave alone: texts, one a line, or probes of data."),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute: cpu, cuda, cuda:1; auto: over all; a GPU by default, if there is one."),
]
Dtype = Annotated[str, typer.Option(help="Precision of the model: auto, float32, bfloat16 or float16.")]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat", help="All prompts are what a user says in the model's chat template, in edits as in scores."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An option of the method; see `errata methods NAME`."),
]


Author = Annotated[
    str | None, typer.Option(help="Who asks for this; ERRATA_AUTHOR, or else the name of the user, by default.")
]
Reason = Annotated[str | None, typer.Option(help="Why.")]


def say(message: str) -> None:
    """A message for a person."""
    typer.echo(message, err=True)


def tell_notes(notes: Iterable[str]) -> None:
    """What a person should know of damage that was made good."""
    for note in notes:
        say(f"warning: {note}")


def emit(value: dict[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Meter:
    """How far something is, in a line a minute: what a log shows."""

    def __init__(self, total: int, name: str) -> None:
        self._name, self._total, self._done = name, total, 0
        self._told = time.monotonic()
        self._first: tuple[int, float] | None = None  # how far it was when first heard of, and when

    def step(self, what: str = "", count: int = 1) -> None:
        """So many more are done."""
        self.reach(self._done + count, self._total, what)

    def reach(self, done: int, total: int, what: str = "") -> None:
        """So many of so many are done."""
        self._done, self._total, now = done, total, time.monotonic()
        before, begun = self._first = self._first or (done, now)
        if now - self._told >= EVERY and before < done < total:
            self._told = now
            left = duration((now - begun) / (done - before) * (total - done))
            self.note(f"{self._name}: {done} of {total}{what and f', {what}'}; about {left} left")

    def follow(self, step: "Step") -> None:
        """What a benchmark's stream tells of itself."""
        if step.failed:
            self.note(f"not made: {step.failed}")
        self.reach(step.done, step.total, "scoring" if step.stage == "measure" else "")

    def note(self, message: str) -> None:
        """A message beside that."""
        say(message)


class Bar(Meter):
    """The same as a bar, where somebody looks."""

    def __init__(self, progress: Any, total: int, name: str) -> None:
        super().__init__(total, name)
        self._progress, self._task = progress, progress.add_task(name, total=total, what="")

    def reach(self, done: int, total: int, what: str = "") -> None:
        """So many of so many are done."""
        self._done, self._total = done, total
        self._progress.update(self._task, completed=done, total=total, what=what)

    def note(self, message: str) -> None:
        """A message that does not disturb the bar."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def meter(total: int, what: str) -> Iterator[Meter]:
    """Scope: on stderr, how far something is and how long it will take: a bar on a terminal, else a line a minute."""
    if not sys.stderr.isatty():
        yield Meter(total, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.fields[what]}"), console=Console(stderr=True), transient=True
    ) as progress:
        yield Bar(progress, total, what)
