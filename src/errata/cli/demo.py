"""`errata demo`: what editing does, shown on the embedded model, offline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.bench import Request, draw, measured, show
from errata.cli.terminal import Json, emit, say
from errata.edit import Edit

if TYPE_CHECKING:
    from errata.bench import Plan

METHODS = ("memoir", "grace", "ft_l")
QUICK = ["memoir.lr=0.1", "memoir.loss=0.05", "grace.steps=100"]
"""Longer and fewer steps than by default, which a hundred edits do not suffer from."""
CORRECTION = Edit("The capital of Australia is", "Perth", subject="Australia")
ASKED = ("The capital of Australia is", "Which city is the capital of Australia?", "The capital of France is")
"""The correction itself, another wording of it, and something that must stay as it is."""


def demo(
    edits: Annotated[int, typer.Option(min=1, help="Corrections to make with each method: a hundred in all.")] = 34,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the figure and the rows go.")] = Path(
        "errata-demo"
    ),
    as_json: Json = False,
) -> None:
    """See it work: one correction, then a stream of them by each of three methods, scored. Offline, in a minute or two.

    \b
    Example:
      errata demo
      errata demo --edits 20 --output /tmp/demo
    """  # fmt: skip
    plans = Request("atlas", "atlas", METHODS, (edits,)).plans(QUICK)
    with one_thread():
        changes = before_and_after(plans[0])
    if as_json:
        for change in changes:
            emit(change)
    else:
        typer.echo(f"One correction by memoir: {CORRECTION.prompt} -> {CORRECTION.target}\n")
        for change in changes:
            typer.echo(f"  {change['prompt']:<42} {change['before']:<12} -> {change['after']}")
        typer.echo(f"\n{edits} corrections by each method (1.00 is best)\n")
    with one_thread():
        rows = measured(plans, output)
    show(rows, as_json=as_json)
    draw(rows, output)
    say(f"rows: {output / 'results.jsonl'}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Scope: torch computes on one core. Products this small take longer when they are shared out."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def before_and_after(plan: "Plan") -> list[dict[str, str]]:
    """What the model says to a few questions before one correction, and after it. The base is bare again on return."""
    from errata import loading
    from errata.model import EditedModel

    irrelevant = loading.irrelevant("atlas")
    model = EditedModel(plan.base, plan.tokenizer, plan.editor, irrelevant=irrelevant, base_name=plan.model)
    try:
        before = model.answer(ASKED, 6)
        model.edit(CORRECTION)
        after = model.answer(ASKED, 6)
    finally:
        model.detach()
    return [{"prompt": p, "before": b, "after": a} for p, b, a in zip(ASKED, before, after, strict=True)]
