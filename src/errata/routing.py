"""Routing: which tokens of a call are prompt, and what each row decided.

A memory answers a *request*, not a forward call. Whether it does is decided once per row, from the prompt tokens alone,
when the prompt is read (prefill), and the decision is held while the answer is decoded. Teacher-forced scoring says
which tokens are prompt with `prompt_is`; generation says how many columns are with `first_columns`; a plain call on an
empty cache takes every real token as prompt. In a chat the request is the user's last turn, and memories decide on that
by itself, in a call of its own where the prompt holds more (`errata.chat`). What cannot be known is refused with
`RoutingError`, never guessed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.errors import RoutingError


class Decision(NamedTuple):
    """What one memory decided for the rows of a batch."""

    rows: Tensor
    """(batch,) bool: the rows that this memory answers."""
    pick: Tensor | None = None
    """(batch,) long: which of its stored edits answers each row; None where a memory holds no separate edits."""
    score: Tensor | None = None
    """(batch,) the score that was compared ..."""
    threshold: Tensor | None = None
    """(batch,) ... with this threshold."""
    anywhere: bool = True
    """False when no row is answered, so that the correction need not be computed at all."""
    held: Tensor | None = None
    """(batch, ...) what a memory worked out from the prompt and needs again while decoding."""
    near: tuple[Tensor, Tensor] | None = None
    """(batch, few) twice: the best scores of stored edits, and which edits these are; best first."""
    other: Tensor | None = None
    """(batch,) bool: the rows that ask what the nearest edit does, but about another subject."""


NEAR = 3
"""How many of the nearest stored edits a decision remembers."""


def decide(score: Tensor, threshold: Tensor, pick: Tensor | None = None) -> Decision:
    """The decision "score >= threshold" for every row; (batch,) each."""
    rows = score >= threshold
    anywhere = True if torch.compiler.is_compiling() else bool(rows.any())
    return Decision(rows, pick, score, threshold.expand_as(score), anywhere)


def decide_nearest(scores: Tensor, threshold: Tensor) -> Decision:
    """The decision "best score >= threshold", which picks the best: (batch, stored), () or (stored,) one a stored edit."""
    best = scores.topk(min(NEAR, scores.shape[1]), dim=1)
    own = threshold if threshold.dim() == 0 else threshold[best.indices[:, 0]]
    return decide_best(best.values, best.indices, own)


def decide_best(scores: Tensor, picks: Tensor, threshold: Tensor) -> Decision:
    """The same, from the best scores and which edits they are of: (batch, few) each, best first, and () or (batch,)."""
    return decide(scores[:, 0], threshold, picks[:, 0])._replace(near=(scores, picks))


def kept_out(decision: Decision, without: Decision) -> Decision:
    """A decision by cosines that tells subjects apart, which says so of the rows that `without` it would be answered.

    Their scores and nearest edits are those of `without`; at a threshold of 1, the cosine of the edit's own prompt alone.
    """
    other = without.rows & ~decision.rows
    assert decision.score is not None
    assert decision.threshold is not None
    assert without.score is not None
    score, threshold = without.score.where(other, decision.score), decision.threshold.where(~other, 1.0)
    told = decision._replace(score=score, threshold=threshold, other=other)
    if decision.near is None or without.near is None:
        return told
    scores, picks = (new.where(other[:, None], old) for new, old in zip(without.near, decision.near, strict=True))
    return told._replace(near=(scores, picks), pick=picks[:, 0])


class Routing:
    """The routing state of one model. Fed by `observe`, a forward pre-hook on the model's root."""

    def __init__(self, alone: Callable[[Tensor, Tensor], tuple[Tensor, Tensor] | None] | None = None) -> None:
        """`alone` makes requests of prompts that hold more: token ids and which are prompt to ids and attention, or None
        where they hold nothing else; (batch, seq) each. Memories then decide on these.
        """
        self.alone = alone
        """How requests are found in prompts that hold more; None where prompts are requests."""
        self._foreseen: dict[str, Decision] = {}  # what memories decided on requests by themselves
        self.batch = 1
        """Rows of this call."""
        self._prompt: Tensor | None = None  # (batch, seq) bool: the prompt tokens of this call
        self._said = 0  # calls that continue rows that have decided, since they have
        self._decisions: dict[str, Decision] = {}
        self._given: Tensor | None = None  # scope of prompt_is
        self._columns: int | None = None  # scope of first_columns

    # -- what a request says -----------------------------------------------------------------------------------------

    @contextmanager
    def prompt_is(self, mask: Tensor) -> Iterator[None]:
        """Scope: in the calls inside, the prompt tokens are those where `mask` (batch, seq; bool) holds."""
        before, self._given = self._given, mask.bool()
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def first_columns(self, count: int) -> Iterator[None]:
        """Scope: the first `count` positions of every row are prompt, cached ones of earlier turns included."""
        before, self._columns = self._columns, count
        try:
            yield
        finally:
            self._columns = before
            self._decisions = {}

    @contextmanager
    def reading(self, prompt: Tensor) -> Iterator[None]:
        """Scope: features are taken of recorded states whose prompt tokens are `prompt`, outside any forward call."""
        before = self._prompt, self._said
        self._prompt, self._said = prompt.bool(), 0
        try:
            yield
        finally:
            self._prompt, self._said = before

    # -- what a call brings ------------------------------------------------------------------------------------------

    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model's root: works out which tokens of this call are prompt."""
        tokens = kwargs.get("input_ids")
        if tokens is None:
            tokens = args[0] if args else kwargs.get("inputs_embeds")
        if tokens is None:
            raise RoutingError("the call has neither input_ids nor inputs_embeds, so no prompt can be seen")
        batch, seq = tokens.shape[:2]
        self.batch = batch
        cached = _cached_length(kwargs.get("past_key_values"))
        if self._given is not None:
            if self._given.shape != (batch, seq):
                raise RoutingError(
                    f"the prompt mask has shape {tuple(self._given.shape)}, the call {(batch, seq)}: one entry a token"
                )
            return self._fresh(self._given)
        columns = self._columns
        if columns is None and cached == 0:
            columns = seq
        if columns is not None and cached < columns:
            if cached + seq < columns:
                raise RoutingError(
                    f"chunked prefill is not supported: the prompt has {columns} tokens and this call ends at"
                    f" {cached + seq}; pass the prompt in one call (prefill_chunk_size=None)"
                )
            prompt = self._prompt_columns(tokens, kwargs.get("attention_mask"), columns - cached)
            return self._fresh(prompt, self._foresee(module, tokens, prompt))
        if seq > 1:
            raise RoutingError(
                f"{seq} tokens at once after a prompt of {cached}: speculative decoding is not supported; for a second"
                " turn of a chat, say which tokens are prompt with `model.routing.prompt_is(mask)` or use"
                " `EditedModel.generate`"
            )
        self._said, self._prompt = self._said + 1, None
        return None

    def _fresh(self, prompt: Tensor, foreseen: dict[str, Decision] | None = None) -> None:
        self._prompt, self._said, self._decisions, self._foreseen = prompt, 0, {}, foreseen or {}

    def _foresee(self, module: nn.Module, tokens: Tensor, prompt: Tensor) -> dict[str, Decision]:
        """What memories decide on these rows' requests alone; nothing where a row is its request."""
        alone = self.alone(tokens, prompt) if self.alone and tokens.dim() == 2 else None
        if alone is None:
            return {}
        ids, attention = alone
        with torch.no_grad(), self.prompt_is(attention):
            module(input_ids=ids, attention_mask=attention, use_cache=False)
        self.batch = len(tokens)
        return self.decisions

    @staticmethod
    def _prompt_columns(tokens: Tensor, attention: Any, columns: int) -> Tensor:
        batch, seq = tokens.shape[:2]
        early = (torch.arange(seq, device=tokens.device) < columns).expand(batch, seq)
        if isinstance(attention, Tensor) and attention.dim() == 2:
            return early & attention[:, -seq:].bool()
        return early

    # -- what a memory asks ------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Tensor:
        """(batch, seq) bool: the prompt tokens of this call. Raises `RoutingError` while decoding or before any call."""
        if self._prompt is None:
            raise RoutingError("no prompt has been seen: call the model on a prompt first")
        return self._prompt

    @property
    def decoding(self) -> bool:
        """Whether this call continues rows whose prompt was read in an earlier call."""
        return self._said > 0

    @property
    def said(self) -> int:
        """Which token of the answer this call reads: the first is 1; 0 in a call that reads the prompt."""
        return self._said

    def over_prompt(self, values: Tensor) -> Tensor:
        """Mean over the prompt tokens of each row: (batch, seq, ...) -> (batch, ...)."""
        weights = self.prompt.to(values.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("bs,bs...->b...", weights, values)

    def last_of_prompt(self, values: Tensor) -> Tensor:
        """The last prompt token of each row: (batch, seq, ...) -> (batch, ...)."""
        return values[torch.arange(values.shape[0], device=values.device), last_true(self.prompt)]

    def decision(self, name: str, make: Callable[[], Decision]) -> Decision:
        """The decision of the memory called `name`: made on a prompt, held while decoding."""
        if not self.decoding:
            self._decisions[name] = self._foreseen[name] if name in self._foreseen else make()
        elif name not in self._decisions:
            raise RoutingError("decoding goes on, but this memory has seen no prompt: the edit landed in between")
        return self._decisions[name]

    @property
    def decisions(self) -> dict[str, Decision]:
        """The decisions in force, by memory name."""
        return dict(self._decisions)


def last_true(mask: Tensor) -> Tensor:
    """Index of the last True of each row: (batch, seq) -> (batch,)."""
    seq = mask.shape[1]
    return (torch.arange(seq, device=mask.device) * mask).amax(dim=1)


def _cached_length(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())
