"""Wordings: other wordings of an edit's prompt, made without a model, from which it is learnt as well.

What a rephrasing shares with a prompt is its subject and the words that carry meaning; the small words around them differ,
and the order. So some of the small words are left out at random, and now and then the subject is said first: "What is the
name of the publisher of Street Rod 2?" becomes "Street Rod 2 What is of publisher?".
"""

import re
from collections.abc import Callable
from random import Random

from errata.contrast import STARTS, subject_of
from errata.edit import Edit

FIRST = 0.3
"""How often the subject is said first."""
PLACE = "\0"
"""Where the subject is, which is one word here, whatever it is made of."""


def wordings(edit: Edit, share: float, seed: int) -> Callable[[], str] | None:
    """Says a wording of an edit at every call, as `reworded`: the same ones for the same edit. None at a share of 0."""
    random = Random(f"{seed}/wording/{edit.prompt}")
    return (lambda: reworded(edit, share, random)) if share else None


def reworded(edit: Edit, share: float, random: Random) -> str:
    """The prompt of an edit without about this `share` of its small words (`errata.contrast.STARTS`).

    Its subject is whole, as `subject_of` has it. Where no mark ends the prompt its last word stays, for there the answer
    begins. A prompt without small words, as in most languages but English, changes its order alone.
    """
    body = edit.prompt.rstrip(" ?.!")
    mark = edit.prompt[len(body) :].strip()
    subject = subject_of(edit) or ""
    words = re.split(" +", body.replace(subject, PLACE, 1) if subject else body)
    end = [] if mark else words[-1:]
    words = [word for word in words[: len(words) - len(end)] if word.lower() not in STARTS or random.random() >= share]
    if random.random() < FIRST:
        words.sort(key=lambda word: PLACE not in word)
    text = " ".join(words + end).replace(PLACE, subject)
    return text + mark if re.search(r"\w", text) else edit.prompt
