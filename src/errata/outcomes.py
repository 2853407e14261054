"""Outcomes: which edits failed, and how. Every edit is of one kind, by what is right of its answers.

Edits are `contested` where another one in force gives the same subject another target in the place of the same answer: both
ask the same in other words, so that they may not both be right on all rephrasings. Real data has such edits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from errata.answers import Question, Said
from errata.edit import Edit

KINDS = {
    "held": "right on the prompt and on all rephrasings",
    "rephrasing": "right on the prompt, wrong on a rephrasing",
    "prompt": "wrong on the prompt, right on a rephrasing",
    "part": "wrong, but for part of the tokens of the answer",
    "whole": "wrong, the whole answer",
}
"""What an edit can come to, in the order in which they are told."""
EXAMPLES = 5
"""Examples that are kept of each kind."""
LONG = 120
"""Characters that are kept of the beginning of an answer, and of the end of a prompt."""

Outcomes = Mapping[str, Mapping[str, Any]]
"""Kind -> how many `edits` it has, how many of these are `contested`, and some `examples`."""


class Answer(NamedTuple):
    """A wording of an edit's question, and what was said to it."""

    prompt: str
    question: Question
    said: Said

    @property
    def right(self) -> bool:
        """Whether greedy decoding gave the target, token by token."""
        return self.said.greedy == self.question.answer


def outcomes(edits: Sequence[Edit], own: Sequence[Answer], reworded: Sequence[Sequence[Answer]]) -> Outcomes:
    """Edits sorted by how they are answered: on their prompts and on their rephrasings, one entry an edit."""
    fought = contested(edits)
    found: dict[str, dict[str, Any]] = {}
    for edit, direct, others in zip(edits, own, reworded, strict=True):
        kind, shown = _kind(direct, others)
        told = found.setdefault(kind, {"edits": 0, "contested": 0, "examples": []})
        told["edits"] += 1
        told["contested"] += edit in fought
        if kind != "held" and len(told["examples"]) < EXAMPLES:
            told["examples"].append({
                "id": edit.id, "prompt": shown.prompt[-LONG:], "target": edit.target[:LONG],
                "said": shown.said.text[:LONG],
            })  # fmt: skip
    return {kind: found[kind] for kind in KINDS if kind in found}


def contested(edits: Iterable[Edit]) -> set[Edit]:
    """Those whose subject another of them gives another target, and the same `target_old` or, like this one, none."""
    edits = [edit for edit in edits if edit.subject]
    targets: dict[tuple[str, ...], set[str]] = {}
    for edit in edits:
        targets.setdefault(_matter(edit), set()).add(edit.target.strip().casefold())
    return {edit for edit in edits if len(targets[_matter(edit)]) > 1}


def together(each: Iterable[Outcomes]) -> Outcomes:
    """The outcomes of several streams as one."""
    found: dict[str, dict[str, Any]] = {}
    for kind, told in ((kind, told) for one in each for kind, told in one.items()):
        sum_ = found.setdefault(kind, {"edits": 0, "contested": 0, "examples": []})
        sum_["edits"] += told["edits"]
        sum_["contested"] += told["contested"]
        sum_["examples"] = [*sum_["examples"], *told["examples"]][:EXAMPLES]
    return {kind: found[kind] for kind in KINDS if kind in found}


def _matter(edit: Edit) -> tuple[str, ...]:
    """What an edit is about, as far as its data say."""
    return tuple((told or "").strip().casefold() for told in (edit.subject, edit.target_old))


def _kind(direct: Answer, others: Sequence[Answer]) -> tuple[str, Answer]:
    """The kind of an edit, and the answer that shows it."""
    wrong = [answer for answer in others if not answer.right]
    if direct.right:
        return ("rephrasing", wrong[0]) if wrong else ("held", direct)
    if len(wrong) < len(others):
        return "prompt", direct
    some = any(said == wanted for said, wanted in zip(direct.said.greedy, direct.question.answer, strict=False))
    return ("part" if some else "whole"), direct
