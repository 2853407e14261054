"""Terminal: data to stdout, everything else to stderr, and a progress bar where somebody looks."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from errata.bench import Step

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


class Meter:
    """How far a stream of edits is."""

    def __init__(self, progress: Any = None, task: Any = None) -> None:
        self._progress, self._task = progress, task

    def step(self, what: str = "", count: int = 1) -> None:
        """So many more are done."""
        if self._progress is not None:
            self._progress.update(self._task, advance=count, what=what)

    def reach(self, done: int, total: int, what: str = "") -> None:
        """So many of so many are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, what=what)

    def follow(self, step: "Step") -> None:
        """What a benchmark's stream tells of itself."""
        if step.failed:
            self.note(f"not made: {step.failed}")
        if step.stage == "measure":
            self.step("scoring", 0)
        else:
            self.step("", len(step.edits))

    def note(self, message: str) -> None:
        """A message that does not disturb the bar."""
        if self._progress is None:
            say(message)
        else:
            self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def meter(total: int, what: str) -> Iterator[Meter]:
    """Scope: a bar with the time left on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield Meter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.fields[what]}"), console=Console(stderr=True), transient=True
    ) as progress:
        yield Meter(progress, progress.add_task(what, total=total, what=""))
