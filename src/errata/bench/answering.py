"""Answering: how long an edited model takes to answer, beside the same model without its edits."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from errata.answers import Question, generate, question
from errata.edit import Edit
from errata.model import EditedModel

ASKED = 8
"""Prompts that are asked, from all over the stream; again, where there are fewer."""


def answering(model: EditedModel, edits: Sequence[Edit]) -> Mapping[str, float]:
    """Seconds a token of answers to prompts of these edits, reading the prompt included, each asked by itself: medians.

    `edited`, and `unedited` with the edits lifted off. Each prompt is asked both ways in turn, after one that is not timed.
    An answer is as long as the target, or ends before.
    """
    few = [edits[i * len(edits) // ASKED] for i in range(ASKED)]
    asked = [question(model.tokens, edit.prompt, edit.target) for edit in few]
    pairs = [(_seconds(model, q, lifted=False), _seconds(model, q, lifted=True)) for q in (asked[0], *asked)][1:]
    edited, unedited = zip(*pairs, strict=True)
    return {"edited": statistics.median(edited), "unedited": statistics.median(unedited)}


def _seconds(model: EditedModel, asked: Question, *, lifted: bool) -> float:
    with model.lifted() if lifted else nullcontext():
        start = time.perf_counter()
        said = generate(model, [asked], 0)[asked]
        return (time.perf_counter() - start) / len(said)
