"""Subjects: the facts of a data set that can be analysed where they are stored, one fact a subject."""

from collections.abc import Iterable
from typing import NamedTuple

from errata.edit import Edit, absent
from errata.errors import BadEdit, BadOption


class Subjects(NamedTuple):
    """Facts whose subjects stand in their prompts, no two about one subject."""

    facts: tuple[Edit, ...]
    left_out: int
    """Facts that were left out because they have no subject."""


def subjects(edits: Iterable[Edit], *, limit: int, least: int, skip: bool = False) -> Subjects:
    """The first fact about each subject, `limit` of them at most.

    A fact without a subject raises `BadEdit`, or is left out with `skip`. Raises `BadOption` where fewer than `least`
    facts remain.
    """
    found: dict[str, Edit] = {}
    left_out = 0
    for number, edit in enumerate(edits, start=1):
        if len(found) == limit:
            break
        if edit.subject is None:
            if not skip:
                raise BadEdit(f"fact {number} cannot be placed: {_why(edit)}; --on-error skip leaves such facts out")
            left_out += 1
        else:
            found.setdefault(edit.subject, edit)
    if len(found) < least:
        raise BadOption(f"{len(found)} facts about different subjects are too few: at least {least} are needed")
    return Subjects(tuple(found.values()), left_out)


def _why(edit: Edit) -> str:
    named = edit.meta.get("subject_missing")
    if named is None:
        return f"no subject is named for the prompt {edit.prompt!r}"
    return f"the subject {absent(named, edit.prompt)}"
