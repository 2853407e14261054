"""`errata revert`: make a directory one that never had some edits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.log import Directory
from errata.cli.terminal import Device, Json, Reason, emit, say, tell_notes
from errata.errors import UsageError

if TYPE_CHECKING:
    from errata.store import Reverted
    from errata.timeline import Timeline


def revert(
    directory: Directory,
    edit_id: Annotated[
        str | None, typer.Argument(metavar="[EDIT_ID]", help="The edit; the beginning of its id is enough.")
    ] = None,
    to: Annotated[int | None, typer.Option(metavar="REVISION", help="All changes since this revision.")] = None,
    author: Annotated[str | None, typer.Option(help="All edits of this author.")] = None,
    tag: Annotated[str | None, typer.Option(help="All edits with this tag.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and how.")] = False,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who reverts; ERRATA_AUTHOR or the user by default.")
    ] = None,
    reason: Reason = None,
    model: Annotated[str | None, typer.Option(help="Where the base model is now, if it has moved.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Revert edits: afterwards the directory is, bit for bit, one that never had them. Their history is kept.

    \b
    Example:
      errata revert acme 3f2a --dry-run
      errata revert acme --to 17 --reason "the source was wrong"
    """
    from errata.store import Store
    from errata.who import Who

    chosen = {"EDIT_ID": edit_id, "--to": to, "--author": author, "--tag": tag}
    if sum(value is not None for value in chosen.values()) != 1:
        raise UsageError(f"say what to revert: one of {', '.join(chosen)}")
    if dry_run:
        told = _foreseen(directory, edit_id, to, author, tag)
    else:
        with Store.open(directory, base_name=model, device=device) as store:
            drop, restore = _chosen(store.timeline, edit_id, to, author, tag)
            told = store.revert(drop, restore, Who(by, reason=reason))
            store.checkpoint()
            tell_notes(store.notes)
    _tell(told, dry_run=dry_run, as_json=as_json)


def _chosen(
    timeline: "Timeline", edit_id: str | None, to: int | None, author: str | None, tag: str | None
) -> tuple[set[int], set[int]]:
    """The requests to drop, and those that come back."""
    if edit_id is not None:
        return timeline.find(edit_id), set()
    if to is not None:
        return timeline.back_to(to)
    return (timeline.by("tags", tag) if author is None else timeline.by("author", author)), set()  # type: ignore[arg-type]


def _foreseen(directory: Path, edit_id: str | None, to: int | None, author: str | None, tag: str | None) -> "Reverted":
    """What a revert would do, from the ledger alone: no model is loaded and nothing is written."""
    from errata import replay
    from errata.cli.log import opened
    from errata.store import Reverted

    opened(directory).close()
    timeline = replay.timeline_of(directory)
    drop, restore = _chosen(timeline, edit_id, to, author, tag)
    how = replay.foresee(directory, timeline, timeline.stream((timeline.live - drop) | restore))
    edits = [tuple(timeline.requests[seq].edit for seq in sorted(each)) for each in (drop, restore)]
    return Reverted(edits[0], edits[1], timeline.revision + 1, how)


def _tell(told: "Reverted", *, dry_run: bool, as_json: bool) -> None:
    for event, edits in (("reverted", told.dropped), ("restored", told.restored)):
        for edit in edits:
            if as_json:
                how = {"way": told.how.way, "from": told.how.revision, "replayed": told.how.replayed}
                line = {"event": event, "edit_id": edit.id, "prompt": edit.prompt, "target": edit.target}
                emit(line | {"revision": told.revision, "dry_run": dry_run} | how)
            else:
                typer.echo(f"{'would be ' * dry_run}{event}  {edit.id}  {edit.prompt} -> {edit.target}")
    if as_json:
        return
    typer.echo(str(told.how))
    if told.holding is not None:
        held, asked = told.holding
        say(f"revision {told.revision}: {held} of {asked} edits in force are answered with their target")
