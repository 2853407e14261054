"""`errata ask` and `errata explain`: looking at what an edited model says, and why."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli.terminal import Device, Json, emit, tell_notes

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A directory that `errata edit` has written.")]
System = Annotated[str | None, typer.Option(help="Of edits of a chat: ask behind this system prompt.")]
Model = Annotated[str | None, typer.Option(help="Where the base model is now, if it is no longer where it was.")]


def ask(
    directory: Directory,
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="Questions, or beginnings of sentences.")
    ],
    unedited: Annotated[bool, typer.Option("--unedited", help="Ask the base model, without the edits.")] = False,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 16,
    system: System = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask an edited model.

    \b
    Example:
      errata ask acme "Acme is led by" "The CEO of Acme is"
      errata ask acme "Acme is led by" --unedited
    """
    from errata.model import EditedModel

    _not_empty(questions)
    edited = EditedModel.from_pretrained(directory, base_name=model, device=device)
    tell_notes(edited.notes)
    with edited.lifted() if unedited else nullcontext():
        answers = edited.answer(questions, max_new_tokens, system=system)
    for question, answer in zip(questions, answers, strict=True):
        if as_json:
            emit({"prompt": question, "answer": answer, "edited": not unedited})
        else:
            typer.echo(answer if len(questions) == 1 else f"{question} -> {answer}")


def explain(
    directory: Directory,
    question: Annotated[str, typer.Argument(help="A question, or the beginning of a sentence.")],
    model: Model = None,
    system: System = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say why an edited model answers as it does: which memory, how near, and which edit.

    \b
    Example:
      errata explain acme "Acme is led by"
    """
    from errata.model import EditedModel

    _not_empty([question])
    edited = EditedModel.from_pretrained(directory, base_name=model, device=device)
    tell_notes(edited.notes)
    found = edited.explain(question, system=system)
    _add_receipts(found, directory)
    if as_json:
        emit(found)
    else:
        typer.echo(card(found))


def card(found: dict[str, Any]) -> str:
    """What `EditedModel.explain` found, for a person."""
    lines = [f"question  {found['prompt']}", f"answer    {found['answer']}", f"unedited  {found['unedited']}"]
    for told in found["memories"]:
        lines += ["", f"{told['memory']} at {told['site']}: {'answers' if told['answers'] else 'is silent'}"]
        if "why" in told:
            lines.append(f"  {told['why']}")
        if "score" in told:
            sign = ">=" if told["answers"] else "<"
            lines.append(
                f"  score {round(told['score'], 3) + 0.0} {sign} threshold {round(told['threshold'], 3) + 0.0}"
            )
        for near in told.get("nearest", ()):
            lines.append(f"  {near['score']:7.3f}  edit {near['id']}: {near['prompt']} -> {near['target']}")
            if "revision" in near:
                lines.append(f"           made at revision {near['revision']} on {near['time'][:19]}{_by(near)}")
    return "\n".join(lines)


def _add_receipts(found: dict[str, Any], directory: Path) -> None:
    """Say of the nearest edits when it was made, by whom and why, and what its receipt says, where that is recorded."""
    from errata import ledger, replay
    from errata.who import WHO

    if not ledger.exists(directory):
        return
    timeline = replay.timeline_of(directory)
    for near in (near for told in found["memories"] for near in told.get("nearest", ())):
        request = timeline.request_of(near["id"])
        if request is not None:
            event, said = timeline.applied[request], timeline.requests[request].said
            near |= {name: said[name] for name in WHO if name in said}
            near |= {"revision": event.body["revision"], "time": event.time, "receipt": event.body["receipt"]}


def _by(near: dict[str, Any]) -> str:
    receipt = near["receipt"] or {}
    p, q = receipt.get("probability_before"), receipt.get("probability_after")
    moved = "" if p is None or q is None else f": P(target) {p:.3f} -> {q:.3f}"
    author = f" by {near['author']}" if "author" in near else ""
    return author + moved + (f" ({near['reason']})" if "reason" in near else "")


def _not_empty(questions: list[str]) -> None:
    if not all(question.strip() for question in questions):
        raise typer.BadParameter("a question is empty")
