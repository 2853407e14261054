"""Given: what an analysis on the command line is given: facts, a model, or a model on which edits were made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from errata.cli.terminal import meter, say
from errata.errors import EditFailed

if TYPE_CHECKING:
    from errata.analysis.subjects import Subjects
    from errata.model import EditedModel


def subjects(facts: str, limit: int, least: int, on_error: Literal["stop", "skip"]) -> "Subjects":
    """Facts with subjects; what is left out is told."""
    from errata.analysis import subjects as found
    from errata.data import load

    dataset = load(facts, on_error=on_error)
    chosen = found.subjects(dataset.edits, limit=limit, least=least, skip=on_error == "skip")
    if chosen.left_out or dataset.skipped:
        say(f"left out: {chosen.left_out} facts without a subject, {len(dataset.skipped)} bad records")
    return chosen


def bare(model: str, seed: int, device: str | None, dtype: str) -> "EditedModel":
    """A model without edits."""
    from errata import loading
    from errata.model import EditedModel

    base, tokenizer = loading.load(model, dtype=dtype, device=device)
    return EditedModel(base, tokenizer, irrelevant=loading.irrelevant(model), seed=seed, base_name=model)


def made(
    model: str, method: str, data: str, count: int, pairs: Sequence[str], seed: int, device: str | None, dtype: str,
    on_error: Literal["stop", "skip"],
) -> "tuple[EditedModel, int]":  # fmt: skip
    """A model with edits, and how many failed."""
    from errata import loading, methods
    from errata.cli import settings
    from errata.data import load
    from errata.model import EditedModel

    editor = methods.make(method, **settings.parse(pairs, method))
    dataset = load(data, on_error=on_error)
    stream, irrelevant = dataset.stream(count)
    base, tokenizer = loading.load(model, dtype=dtype, device=device)
    edited = EditedModel(base, tokenizer, editor, irrelevant=irrelevant, expected=count, seed=seed, base_name=model)
    failed = 0
    with meter(count, method) as bar:
        for edit in stream:
            try:
                edited.edit(edit)
            except EditFailed as error:
                failed += 1
                bar.note(f"failed: {edit.prompt}: {error}")
            bar.step()
    return edited, failed
