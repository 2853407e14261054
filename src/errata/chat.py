"""Chat: prompts as the user's turns of a model's chat template, and targets as what the assistant says to them.

A chat model is asked through its template: headers around what the user says, and the header of the answer behind it. An
edit that was learnt from the bare prompt is learnt from a text that nobody will send. So here a prompt is encoded just as
`apply_chat_template` does it for anybody, the target stands where the template puts the assistant's words, and the end
that is learnt is the end of its turn.

A request is what the user said last. A system prompt or earlier turns change every state above them, and no gate would
know an edit behind them; so it decides on the last turn alone, as if it were the first, and the model answers with all
that it was told.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from torch import Tensor

from errata.errors import BadEdit, BadOption
from errata.tokens import Tokens

ASKED, SAID, THEN = "Who is it?", "Nobody", "At what time do we begin"
"""A chat in which the places are looked for where turns begin and end."""
NEXT = "\ufdd0"
"""Between the turns of a context, the user's and the assistant's by turns; the last is the prompt. A noncharacter of
Unicode, which is for use within a program and stands in no text."""
DAY = date(2024, 7, 26)
"""Today, to templates that tell it (Llama 3.1): an edit is to be known by the same ids on every day."""
TOLD = "".join(
    f" | replace('{code}', '{DAY.strftime(code)}')" for code in "%A %a %B %b %d %e %j %m %Y %y %F %D".split()
)
CLOCK = f"{{% macro strftime_now(format) %}}{{{{ format{TOLD} }}}}{{% endmacro %}}{{{{ '' }}}}"
"""What templates ask for the day, in front of one: it takes no functions from us."""


class ChatTokens(Tokens):
    """A tokenizer whose prompts are turns of a chat, the first of a conversation and without a system prompt of ours."""

    def __init__(self, tokenizer: Any, positions: int | None = None) -> None:
        """Raises `BadOption` for a tokenizer without a chat template, or with one that cannot be filled in."""
        super().__init__(tokenizer, positions)
        if not getattr(tokenizer, "chat_template", None):
            raise BadOption("chat: the tokenizer of this model has no chat template, so leave chat out")
        if self._place(ASKED) < 0:
            raise BadOption("chat: the chat template of this model does not say what the user says, so leave chat out")

    def prompt(self, text: str, system: str | None = None) -> list[int]:
        """Token ids of a prompt as the user's turn, up to where the assistant begins to speak; behind a system prompt."""
        return self._alone(self._turn(text, system))

    def check(self, prompt: str) -> None:
        """Raises `BadEdit` for a prompt of an edit that would be taken for a system prompt and a question."""
        before, behind = self.around_system or ("", "")
        if behind and not before.strip() and behind in prompt.strip():
            raise BadEdit(
                f"the chat template of this model has {behind!r} between a system prompt and a question, so the prompt"
                f" {prompt!r} would be taken for both: leave that out"
            )

    def contexts(self, prompts: Sequence[str], prefixes: Sequence[str]) -> list[str]:
        """Prompts, each behind its prefix: half of these begin its turn, and half are an earlier one."""
        said = [prefixes[i - 1] for i in range(len(prefixes))]
        return [
            NEXT.join((prefix, answer, prompt)) if i % 4 in (1, 2) else f"{prefix} {prompt}"
            for i, (prefix, answer, prompt) in enumerate(zip(prefixes, said, prompts, strict=True))
        ]

    def until(self, prompt: str, end: int) -> int:
        """Index of the token of the encoded prompt in which its first `end` characters end."""
        place = self._place(prompt)
        if place < 0:
            raise BadEdit(f"the chat template does not keep the prompt {prompt!r} as it is")
        last = prompt.rpartition(NEXT)[-1]
        skipped = len(prompt) - len(last.lstrip())
        return len(self._alone(self._turn(prompt)[: place + end - skipped])) - 1

    def pair(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt's turn, and of the target as the assistant says it. Raises `BadEdit` as `Tokens.pair`."""
        asked, said = self._turn(prompt), target.strip()
        before, _ = self._around(asked, prompt, said)
        return self._split(self._alone(asked), self._alone(asked + before + said), before + said, prompt, target)

    @cached_property
    def end(self) -> list[int]:
        """The id that ends the assistant's turn, alone in a list; where the template names none, the end of a text."""
        _, after = self._around(self._turn(ASKED), ASKED, SAID)
        return [token for token in self._alone(after) if token in self._special][:1] or super().end

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids that no text has."""
        return frozenset(token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special)

    @cached_property
    def around_system(self) -> tuple[str, str] | None:
        """What a template that puts a system prompt into the user's turn has before it there, and behind it; else None.

        Llama 2 has tags around it. Gemma 3 and Mistral have nothing before and an empty line behind, and then a turn does
        not say whether it begins with a system prompt.
        """
        plain = self._turn(ASKED)
        header = plain[: plain.rfind(ASKED)]
        try:
            ruled = self._turn(ASKED, THEN)
        except BadOption:  # no system prompts
            return None
        before, _, rest = ruled.removeprefix(header).partition(THEN)
        behind = rest[: rest.rfind(ASKED)]
        return (before, behind) if ruled.startswith(header) and behind else None

    @cached_property
    def first(self) -> list[int]:
        """The ids before what the user says in the first turn; empty where they depend on what that is."""
        one, *others = (self.prompt(said) for said in (ASKED, THEN, THEN.lower()))
        return one[: min(_same(one, other) for other in others)]

    @cached_property
    def last(self) -> list[int]:
        """The ids behind what the user says, up to where the assistant begins to speak."""
        one, *others = (self.prompt(said)[::-1] for said in (ASKED, THEN, THEN.lower()))
        return one[: min(_same(one, other) for other in others)][::-1]

    @cached_property
    def header(self) -> list[int]:
        """Those of them that are there in whichever turn; empty where a template has none."""
        chat = [("user", ASKED), ("assistant", SAID), ("user", THEN)]
        turns = self._alone(self._filled([{"role": role, "content": said} for role, said in chat]))
        headers = (self.first[start:] for start in range(len(self.first)))
        return next((header for header in headers if len(list(_places(turns, header))) > 1), [])

    def alone(self, ids: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor] | None:
        """The user's last turn of each row as the first of a chat, and its attention mask: (batch, seq) each, as given.

        A row in which no turn of a user begins is left as it is. None where this changes no row.
        """
        rows = [row[mask].tolist() for row, mask in zip(ids, prompt, strict=True)]
        bare = [self._last_turn(row) for row in rows]
        return None if bare == rows else self._pad(bare, "right", ids.device)

    def _last_turn(self, row: list[int]) -> list[int]:
        begins = list(_places(row, self.header)) if self.header else []
        return self.first + self._request(row[begins[-1] + len(self.header) :]) if begins else row

    def _request(self, turn: list[int]) -> list[int]:
        """What the user says in a turn, and what ends it: without a system prompt before, or thoughts or tools behind."""
        ends = list(_places(turn, self.last)) if self.last else []
        if not ends:
            return turn
        said = turn[: ends[0] if self._special.intersection(self.last) else ends[-1]]
        asked = self._below_system(said)
        return self.prompt(asked)[len(self.first) :] if asked else said + self.last

    def _below_system(self, said: list[int]) -> str:
        """What the user says below a system prompt in the same turn; empty where the template puts none there, or none is.

        Where nothing is before it, it is taken to end at the last place where it could.
        """
        if self.around_system is None:
            return ""
        before, behind = self.around_system
        text = self.tokenizer.decode(said, clean_up_tokenization_spaces=False).strip()
        if before.strip():
            return text.partition(behind.strip() or behind)[2].strip() if text.startswith(before.strip()) else ""
        return text.rpartition(behind)[2].strip() if behind in text else ""

    def _turn(self, prompt: str, system: str | None = None) -> str:
        """The text of a chat in which the user has said this, and the assistant is about to speak."""
        before = [] if system is None else [{"role": "system", "content": system}]
        return self._filled(before + _turns(prompt), add_generation_prompt=True)

    def _place(self, prompt: str) -> int:
        """Where its last turn begins; -1 where the template does not keep it."""
        return self._turn(prompt).rfind(prompt.rpartition(NEXT)[-1].strip())

    def _around(self, asked: str, prompt: str, said: str) -> tuple[str, str]:
        """What the template puts between the turn of a prompt and what the assistant says, and behind that.

        Between them is space or nothing: thoughts, which some templates put there, are no part of a target.
        """
        both = self._filled([*_turns(prompt), {"role": "assistant", "content": said}])
        before, found, after = both.removeprefix(asked).partition(said)
        stands = both.startswith(asked) and found and not before.strip()
        return (before, after) if stands else ("", after)

    def _filled(self, chat: list[dict[str, str]], **how: bool) -> str:
        from jinja2 import TemplateError

        try:
            template = CLOCK + self.tokenizer.get_chat_template()
            text: str = self.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **how)
        except (TemplateError, ValueError, TypeError) as error:
            raise BadOption(f"chat: the chat template of this model cannot be filled in: {error}") from error
        return text


def _turns(prompt: str) -> list[dict[str, str]]:
    """The turns of a prompt, with those before it."""
    return [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(prompt.split(NEXT))]


def _same(one: list[int], other: list[int]) -> int:
    """How many ids two lists begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _places(ids: list[int], part: list[int]) -> Iterator[int]:
    """Where a part begins in a list of ids, each time."""
    return (i for i in range(len(ids) - len(part) + 1) if ids[i : i + len(part)] == part)
