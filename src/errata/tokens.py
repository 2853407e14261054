"""Tokens: from texts to tensors. The only place where anything is tokenised."""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.edit import absent
from errata.errors import BadEdit, BadOption, TooLong

TABLE = re.compile(r"(^|\.)(wpe|\w*position\w*)(\.|$)")
"""Names of tables that a model looks positions up in."""
BEGINNING = 30
"""Characters of a text that a message quotes."""


class Rows(NamedTuple):
    """Texts "prompt target", one a row, padded on the right; (rows, seq) each."""

    ids: Tensor
    attention: Tensor
    prompt: Tensor
    """bool: the prompt's tokens."""
    target: Tensor
    """bool: the target's tokens."""

    @property
    def wanted(self) -> Tensor:
        """(rows, seq) bool: the positions whose next token belongs to the target."""
        return torch.cat([self.target[:, 1:], torch.zeros_like(self.target[:, :1])], dim=1)

    @property
    def labels(self) -> Tensor:
        """(wanted,) the target tokens, row after row: what the logits at `wanted` should say."""
        return self.ids[self.target]

    @property
    def row_of_label(self) -> Tensor:
        """(wanted,) the row that each label belongs to."""
        return self.target.nonzero()[:, 0]


class Tokens:
    """A tokenizer, and what errata needs of it. A prompt is encoded just as the tokenizer does it for anybody."""

    def __init__(self, tokenizer: Any, positions: int | None = None) -> None:
        """`positions`: the tokens of the longest text that the model can read, where it cannot read any."""
        self.tokenizer, self.positions = tokenizer, positions

    @property
    def filler(self) -> int:
        """The id that fills padding: the tokenizer's, or else the end of text, or 0. Always masked, so any will do."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(pad if pad is not None else end if end is not None else 0)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer puts in front of any text.

        Not `verbose`: a tokenizer warns of the length it knows, and how long a text may be, `rows` and `room` say.
        """
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
            ids = ids[:-1]
        return ids

    def prompt(self, text: str, system: str | None = None) -> list[int]:
        """Token ids of a prompt, as the model is asked it. Raises `BadOption` for a system prompt outside a chat."""
        if system is not None:
            raise BadOption("a system prompt belongs to a chat, and these prompts are plain text (chat=True, --chat)")
        return self.encode(text)

    def check(self, prompt: str) -> None:
        """Raises `BadEdit` for a prompt that an edit cannot have; a plain prompt can be any. See `ChatTokens`."""

    def contexts(self, prompts: Sequence[str], prefixes: Sequence[str]) -> list[str]:
        """Prompts, each behind its prefix."""
        return [f"{prefix} {prompt}" for prefix, prompt in zip(prefixes, prompts, strict=True)]

    def alone(self, ids: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor] | None:
        """The requests of prompts that hold more: None, for a plain prompt is its request. See `ChatTokens`."""
        return None

    def until(self, prompt: str, end: int) -> int:
        """Index of the token of the encoded prompt in which its first `end` characters end.

        Found by encoding the text up to there, not by searching token lists, which byte-pair merges across a space would
        break.
        """
        return len(self.encode(prompt[:end])) - 1

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def pair(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of the target that follows it after one space.

        The two are encoded together where the tokenizer keeps the prompt as a prefix, which is right for every kind of
        tokenizer, and apart where it does not. Raises `BadEdit` when the target has no tokens of its own.
        """
        said = f" {target.strip()}"
        return self._split(self.prompt(prompt), self.encode(prompt.rstrip() + said), said, prompt, target)

    def _split(
        self, head: list[int], both: list[int], said: str, prompt: str, target: str
    ) -> tuple[list[int], list[int]]:
        """Head and tail of what was encoded together, or apart."""
        tail = both[len(head) :] if both[: len(head)] == head else self._alone(said)
        if not tail:
            raise BadEdit(f"the target {target!r} tokenises to nothing after the prompt {prompt!r}")
        return head, tail

    def _alone(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @property
    def end(self) -> list[int]:
        """The id that ends a text, alone in a list; an empty list where the tokenizer has none."""
        end = self.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def rows(self, pairs: Sequence[tuple[str, str]], device: torch.device | str = "cpu", end: bool = False) -> Rows:
        """Rows "prompt target" from (prompt, target) texts; with `end`, the end of the text belongs to the target."""
        last = self.end if end else []
        found = [self.pair(*pair) for pair in pairs]
        return self.rows_of_ids([(head, tail + last) for head, tail in found], device)

    def rows_of_ids(self, pairs: Sequence[tuple[list[int], list[int]]], device: torch.device | str = "cpu") -> Rows:
        """Rows from (prompt ids, target ids)."""
        ids, attention = self._pad([head + tail for head, tail in pairs], "right", device)
        place = torch.arange(ids.shape[1], device=device)
        heads = torch.tensor([len(head) for head, _ in pairs], device=device)[:, None]
        ends = torch.tensor([len(head) + len(tail) for head, tail in pairs], device=device)[:, None]
        return Rows(ids, attention, place < heads, (place >= heads) & (place < ends))

    def prompts(
        self, texts: Sequence[str], side: str = "left", device: torch.device | str = "cpu", system: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, seq) of prompts alone; padded on the left, as generation wants it.

        Raises `TooLong`, as `rows` does, where the model does not have that many positions.
        """
        return self._pad([self.prompt(text, system) for text in texts], side, device)

    def _pad(self, rows: list[list[int]], side: str, device: torch.device | str) -> tuple[Tensor, Tensor]:
        filler = self.filler
        longest = max(map(len, rows))
        if self.positions is not None and longest > self.positions:
            text = self.decode(max(rows, key=len))[:BEGINNING]
            raise TooLong(
                f"the text that begins {text!r} has {longest} tokens, and the model has positions for {self.positions}:"
                " shorten it"
            )
        gaps = [longest - len(row) for row in rows]
        if side == "left":
            ids = [[filler] * gap + row for row, gap in zip(rows, gaps, strict=True)]
            mask = [[0] * gap + [1] * len(row) for row, gap in zip(rows, gaps, strict=True)]
        else:
            ids = [row + [filler] * gap for row, gap in zip(rows, gaps, strict=True)]
            mask = [[1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)]
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def room(self, held: int, wanted: int) -> int:
        """How many of `wanted` tokens the model can say after a text of `held`; raises `TooLong` as `rows` does."""
        if self.positions is None:
            return wanted
        if held > self.positions:
            raise TooLong(f"a text of {held} tokens, and the model has positions for {self.positions}: shorten it")
        return min(wanted, self.positions - held + 1)

    def subject_last(self, prompt: str, subject: str) -> int:
        """Index of the subject's last token in the encoded prompt. Raises `BadEdit` when it is not in the prompt."""
        place = prompt.find(subject)
        if place < 0:
            raise BadEdit(f"the subject {absent(subject, prompt)}")
        return self.until(prompt, place + len(subject))


def positions(base: nn.Module) -> int | None:
    """How many tokens a model can read that looks positions up in a table (GPT-2, GPT-J, OPT); None for all others."""
    most = getattr(getattr(base, "config", None), "max_position_embeddings", None)
    tensors = chain(base.named_parameters(), base.named_buffers())
    looked_up = any(
        TABLE.search(name) and len(tensor.shape) == 2 and len(tensor) >= (most or 0) for name, tensor in tensors
    )
    return most if looked_up else None
