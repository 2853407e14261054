"""`errata ability`: what a model can do besides what was edited."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from errata.cli.terminal import Device, Json, emit, tell_notes


def ability(
    name: Annotated[
        str, typer.Argument(metavar="DIR-or-MODEL", help="A directory that `errata edit` has written, or any model.")
    ],
    tasks: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A directory of lm-eval tasks; two of the atlas by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="No more documents of each task.")] = None,
    unedited: Annotated[bool, typer.Option("--unedited", help="Measure the base model, without the edits.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the base model is now, if it is no longer there.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure general ability with lm-eval, on the edited model in memory, with local tasks: nothing is downloaded.

    Needs errata[eval]. A task may name Python functions of its own, which are run: give only tasks that you trust.

    \b
    Example:
      errata ability acme --tasks my-tasks --limit 200
      errata ability atlas --json
    """  # fmt: skip
    from errata import loading
    from errata.ability import evaluate
    from errata.cli import session
    from errata.model import EditedModel

    if session.is_store(Path(name)):
        edited = EditedModel.from_pretrained(Path(name), base_name=model, device=device)
        tell_notes(edited.notes)
    else:
        edited = EditedModel(*loading.load(name, device=device))
    with edited.lifted() if unedited else nullcontext():
        found = evaluate(edited, tasks, limit=limit)
    for task, metrics in found.items():
        if as_json:
            emit({"task": task, "edited": bool(edited.edits) and not unedited, **metrics})
        else:
            typer.echo(f"{task}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items()))
