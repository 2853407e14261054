"""Answers: what a model says to questions, read in two ways: under teacher forcing, and in greedy decoding.

Both are batched by like length and routed as in use: the prompt alone decides which memories answer it. Asking never
writes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from errata.model import EditedModel
from errata.objective import target_log_probability
from errata.tokens import Rows, Tokens

BATCH = 64
"""Rows a forward call."""
SPARE = 8
"""Tokens beyond the length of the answer within which a natural answer must end."""


class Question(NamedTuple):
    """A prompt and the answer to look for."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    """The answer as it is written."""


class Said(NamedTuple):
    """What a model says to a question."""

    forced: tuple[int, ...]
    """The most probable token at each place of the answer, under teacher forcing."""
    nll: float
    """-log P(answer | prompt) a token."""
    greedy: tuple[int, ...]
    """Greedy decoding: at most as many tokens as the answer has, fewer only where the text ends."""
    text: str
    """Greedy decoding up to the end of text or line, at most `SPARE` tokens longer than the answer."""
    ended: bool
    """Whether that text ended by itself."""


def question(tokens: Tokens, prompt: str, answer: str) -> Question:
    """A question from texts. Raises `BadEdit` when the answer has no tokens."""
    head, tail = tokens.pair(prompt, answer)
    return Question(tuple(head), tuple(tail), answer)


def ask(
    model: EditedModel, questions: Iterable[Question], batch_size: int = BATCH, spare: int = SPARE
) -> dict[Question, Said]:
    """What the model says to each question, routed as in use; each is asked once, in batches of like length."""
    asked = list(dict.fromkeys(questions))
    forced = teacher_force(model, asked, batch_size)
    rows = generate(model, asked, spare, batch_size)
    return {q: _said(model, q, forced[q], rows[q]) for q in asked}


@torch.no_grad()
def teacher_force(
    model: EditedModel, questions: Sequence[Question], batch_size: int = BATCH
) -> dict[Question, tuple[tuple[int, ...], float]]:
    """The most probable tokens where the answer stands, and -log P(answer | prompt) a token."""
    found = {}
    for batch in _batches(questions, batch_size):
        rows, logits = _forced(model, batch)
        best = logits.argmax(-1).split([len(q.answer) for q in batch])
        log_p = target_log_probability(logits, rows.labels, rows.row_of_label).tolist()
        for q, tokens, value in zip(batch, best, log_p, strict=True):
            found[q] = (tuple(tokens.tolist()), -value / len(q.answer))
    return found


@torch.no_grad()
def surprisals(
    model: EditedModel, questions: Sequence[Question], batch_size: int = BATCH
) -> dict[Question, tuple[float, ...]]:
    """-log P(token | all before it) of each token of each answer."""
    found: dict[Question, tuple[float, ...]] = {}
    for batch in _batches(questions, batch_size):
        rows, logits = _forced(model, batch)
        nll = F.cross_entropy(logits.float(), rows.labels, reduction="none")
        each = nll.split([len(q.answer) for q in batch])
        found |= {q: tuple(values.tolist()) for q, values in zip(batch, each, strict=True)}
    return found


def _forced(model: EditedModel, batch: Sequence[Question]) -> tuple[Rows, Tensor]:
    """The rows of questions with their answers, and the logits where the answers stand: (answer tokens, vocabulary)."""
    rows = model.tokens.rows_of_ids([(list(q.prompt), list(q.answer)) for q in batch], model.device)
    with model.steady(), model.routing.prompt_is(rows.prompt):
        return rows, model(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits[rows.wanted]


@torch.no_grad()
def generate(
    model: EditedModel, questions: Sequence[Question], spare: int, batch_size: int = BATCH
) -> dict[Question, tuple[int, ...]]:
    """Greedy decoding: `spare` tokens more than the answer has, or up to the end of text, that token included."""
    found = {}
    ends = model.ends
    for batch in _batches(questions, batch_size):
        ids, attention = _left_padded(model, [q.prompt for q in batch])
        with model.steady():
            out = model.generate(
                ids, attention_mask=attention, max_new_tokens=max(len(q.answer) for q in batch) + spare,
                do_sample=False, num_beams=1, repetition_penalty=1.0,
                pad_token_id=model.tokens.filler, eos_token_id=sorted(ends) or None,
            )  # fmt: skip
        for q, row in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            found[q] = _up_to(row[: len(q.answer) + spare], ends)
    return found


def _said(model: EditedModel, question: Question, forced: tuple[tuple[int, ...], float], row: tuple[int, ...]) -> Said:
    """What was said, from the results of teacher forcing and of decoding."""
    line, newline, _ = model.tokens.decode(row).partition("\n")
    ended = bool(newline) or (bool(row) and row[-1] in model.ends)
    return Said(*forced, row[: len(question.answer)], line.strip(), ended)


def _up_to(row: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    first = next((i for i, token in enumerate(row) if token in ends), len(row))
    return tuple(row[: first + 1])


def _batches(questions: Sequence[Question], size: int) -> Iterable[list[Question]]:
    """Batches of questions of like length, so that little is padding."""
    ordered = sorted(questions, key=lambda q: (len(q.answer), len(q.prompt)))
    return (ordered[i : i + size] for i in range(0, len(ordered), size))


def _left_padded(model: EditedModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (batch, seq) each, padded on the left."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    padded = pad_sequence(ids, batch_first=True, padding_value=model.tokens.filler, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return padded.to(model.device), mask.to(model.device)
