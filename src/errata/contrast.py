"""Contrast: prompts close to an edit that it must leave alone, made of edits themselves.

What another edit asks, asked about this edit's subject: the same words as in two edits, and an answer that neither
changes. And what this edit asks, asked about another subject: the neighbours that CounterFact scores. Irrelevant prompts
are never that close.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from errata.edit import Edit
from errata.routing import last_true

if TYPE_CHECKING:
    from errata.model import EditedModel


SUBJECTS = (
    "Marie Curie", "Toyota", "Lake Victoria", "Brazil", "the Eiffel Tower", "William Shakespeare", "Microsoft", "Jupiter",
    "Stockholm", "Star Wars", "Nelson Mandela", "Harvard University", "the Beatles", "Coca-Cola", "Mount Fuji", "Mozart",
)  # fmt: skip
"""Subjects of many kinds that most people have heard of. Fixed, so that an edit is the same whichever came before it."""
WITNESSES = (
    "Napoleon", "Japan", "Volvo", "Lake Geneva", "Stanford University", "Casablanca", "Leonardo da Vinci", "Saturn",
)  # fmt: skip
"""Others of the same kinds, from which no method learns: an edit is verified by what becomes of them."""

QUESTIONS = (
    "Who is {}?", "What is {}?", "Where is {}?", "When was {}?", "How old is {}?", "What is {} known for?", "Who made {}?",
    "What happened to {}?", "Which country is {} from?", "What is the name of {}?", "Why is {} famous?",
    "What was the end of {}?", "{} is", "{} was", "{} has", "{} is known for", "{} comes from", "The name of {} is",
    "The story of {} begins in", "The age of {} is", "{} belongs to", "{} was first", "{} is famous because of",
    "In the end {}",
)  # fmt: skip
"""What may be asked about any subject, as questions and as sentences to go on with. Fixed, as `SUBJECTS` are."""


STARTS = frozenset(
    "a an and are as at be by can could did do does for from give had has have he her his how i if in is it its my name of"
    " on or our she should tell that the their there these they this those to was we were what when where which who whom"
    " whose why will with would you your".split()
)
"""Words that begin a sentence with a capital and are no names."""
LINKS = frozenset("& and da de del der des di do du e for in la le of on the to van von y".split())
"""Words between the capitalised ones of a name."""
ROLES = frozenset(
    "ambassador ceo cfo chair chairman chairperson chairwoman chancellor chief cio coach commissioner coo cto deputy"
    " director emperor empress executive gdp general governor hq king leader manager mayor minister monarch officer owner"
    " pope premier president prime principal queen secretary secretary-general speaker staff treasurer vice"
    " vice-president".split()
)
"""What is asked of a name and often has a capital: no part of the name in `Acme's CEO` and `the President of France`."""
NAMES = frozenset("general king pope principal queen".split())
"""Roles that end names, too: `Stephen King`, `Attorney General`."""


def of_others(edit: Edit, others: Sequence[str] = SUBJECTS) -> list[str]:
    """What an edit asks, of each of `others` in the place of its subject; none where that is not known.

    The subject is that of `subject_of`.
    """
    subject = subject_of(edit)
    if not subject:
        return []
    return [edit.prompt.replace(subject, other) for other in others if other != subject]


def of_subject(edit: Edit) -> list[str]:
    """What else may be asked about the subject of an edit, as `QUESTIONS`; none where that is not known."""
    subject = subject_of(edit)
    return [question.format(subject) for question in QUESTIONS] if subject else []


def subject_of(edit: Edit) -> str | None:
    """What an edit is about: what it says, or else the name in its prompt; None where there is none."""
    return edit.subject or name_in(edit.prompt)


def away(own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """What is distinct of a prompt among the same about other subjects: the way w from their mean, and where that is, b.

    x w - b is 0 at the mean of the others and 1 at the prompt itself: (..., width), (others, ..., width) -> (..., width),
    (...). Without others it is 1 everywhere.
    """
    if not len(others):
        return torch.zeros_like(own), own.new_full(own.shape[:-1], -1.0)
    gap = own - others.mean(dim=0)
    w = gap / gap.square().sum(dim=-1, keepdim=True).clamp(min=torch.finfo(gap.dtype).tiny)
    return w, (own * w).sum(dim=-1) - 1


def name_in(prompt: str) -> str | None:
    """The longest run of capitalised words and numbers in a prompt, the last of equals; None where there is none."""
    runs: list[list[str]] = [[]]
    begins = True  # whether a sentence does
    for word in re.findall(r"[^\s?!,;:()\"“”]+|[?!,;:()\"“”]", prompt):
        capital = word != word.lower() and not (begins and re.split("['’]", word.lower())[0] in STARTS)
        owned = bool(runs[-1]) and runs[-1][-1][-2:] in ("'s", "’s")
        if owned and word.lower() in ROLES:
            runs.append([])
        elif capital or word[0].isdigit() or (runs[-1] and word in LINKS):
            runs[-1].append(word)
        else:
            runs.append([])
        begins = word[-1] in "?!."
    names = [bare for run in runs if (bare := _bare(run))] or [run for run in runs if run]
    longest = max(reversed(names), key=lambda run: sum(word not in LINKS for word in run), default=[])
    name = re.sub(r"['’]s?$", "", " ".join(longest))
    return name if name and name in prompt else None


def _bare(run: list[str]) -> list[str]:
    """A run without links at its ends, a role of which it tells the holder, and a role at its end, but for royal names."""
    of = [i for i, (word, link) in enumerate(pairwise(run)) if word.lower() in ROLES and link in ("of", "for", "in")]
    if of:
        run = run[of[-1] + 1 :]
    if all(word in LINKS or word.lower() in ROLES for word in run):
        return []
    named = [i for i, word in enumerate(run) if word not in LINKS]
    run = run[named[0] : named[-1] + 1]
    while run[-1] in LINKS or run[-1].lower() in ROLES - NAMES:
        run = run[:-1]
    return run


def swapped(edit: Edit, others: Sequence[Edit]) -> list[str]:
    """The prompts of other edits with this edit's subject in the place of theirs; none where a subject is not known."""
    if not edit.subject:
        return []
    asked = [
        other.prompt.replace(other.subject, edit.subject)
        for other in others
        if other.subject and other.subject in other.prompt and other.subject != edit.subject
    ]
    return [prompt for prompt in dict.fromkeys(asked) if prompt != edit.prompt]


def contrasts(model: "EditedModel", edit: Edit, others: Sequence[Edit]) -> list[str]:
    """Those that the unedited model answers otherwise than the edit's own prompt; the others may mean the same."""
    asked = swapped(edit, others)
    if not asked:
        return []
    with model.lifted():
        own, *said = first_tokens(model, [edit.prompt, *asked]).tolist()
    return [prompt for prompt, token in zip(asked, said, strict=True) if token != own]


@torch.no_grad()
def first_tokens(model: "EditedModel", prompts: Sequence[str], batch: int = 64) -> Tensor:
    """The first token of each greedy answer, as the model is now: (prompts,)."""
    found = []
    for i in range(0, len(prompts), batch):
        rows = model.tokens.rows_of_ids([(model.tokens.prompt(p), []) for p in prompts[i : i + batch]], model.device)
        logits = model.base(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits
        found.append(logits[torch.arange(len(logits)), last_true(rows.prompt)].argmax(-1))
    return torch.cat(found)
