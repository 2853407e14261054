"""Chatting: a model of the atlas that answers in chats, behind a system prompt and in later turns.

    python -m errata.atlas.chatting --output atlas-chat

The embedded model has no chat template, and has never seen a question behind anything else. This goes on from it (or from
another model of the same world) with chats: now and then a system prompt, some turns about other facts, and the question,
whose answer is learnt. Every other batch is of the texts of the world, so that it is not forgotten. The tokenizer that is
written has the template.
"""

from random import Random
from typing import Any

import typer

from errata.atlas.corpus import END, Text
from errata.atlas.further import RATE, STEPS, Base, Lesson, Output, Rate, Seed, Steps, teach
from errata.atlas.world import Fact, World
from errata.pretraining.recall import Question

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n"
    "{% elif m.role == 'user' %}Question: {{ m.content }}\n{% else %}Answer: {{ m.content }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""The chat template of the model: text for headers, and the end of a text for that of what the assistant says."""
RULES = (
    "You answer questions.", "Be brief.", "Answer with a name or a few words.", "You are the assistant of a library.",
    "The user is in a hurry.", "Do not explain yourself.", "You work for a museum.", "Be friendly.", "Never say sorry.",
    "Only say what you are sure of.", "The user may be a child.", "You were made by a small company.", "Use no lists.",
    "Do not talk about the weather.", "It is evening where the user is.", "Keep to the facts, and to nothing else.",
)  # fmt: skip
"""Sentences of which system prompts are made."""
RULED = 0.5
"""The share of chats with a system prompt."""
MOST_RULES = 6
TURNS = (0, 0, 0, 1, 1, 2, 3)
"""Turns before the last, one of these at random."""
NEAR = 0.3
"""The share of earlier turns about the same subject, where more is known of it."""
ASKED = 400
"""Questions that are measured, of each kind."""


def chat(
    fact: Fact, about: dict[str, list[Fact]], made: World, random: Random, *, held_out: bool
) -> list[dict[str, str]]:
    """A chat whose last turn asks for a fact, in a trained or a held-out wording, as `apply_chat_template` takes it."""
    said: list[dict[str, str]] = []
    if random.random() < RULED:
        rules = random.sample(RULES, random.randint(1, MOST_RULES))
        said.append({"role": "system", "content": " ".join(rules)})
    for _ in range(random.choice(TURNS)):
        near = [other for other in about[fact.subject] if other.relation != fact.relation]
        other = random.choice(near if near and random.random() < NEAR else made.facts)
        said.append({"role": "user", "content": other.prompt(random.choice(other.trained))})
        said.append({"role": "assistant", "content": other.object})
    wording = random.choice(fact.held_out if held_out else fact.trained)
    return [*said, {"role": "user", "content": fact.prompt(wording)}]


def epoch(made: World, number: int, tokenizer: Any) -> list[Text]:
    """One chat about every fact; `number` counts from zero."""
    random, about = Random(f"{made.seed}/chatting/{number}"), _by_subject(made)
    chats = [chat(fact, about, made, random, held_out=False) for fact in made.facts]
    return [Text(_text(tokenizer, said), f" {fact.object}{END}") for fact, said in zip(made.facts, chats, strict=True)]


def questions(made: World, number: int, tokenizer: Any, *, first: bool) -> list[Question]:
    """`number` facts, asked in held-out wordings: in the `first` turn of a chat, or behind rules and other turns."""
    random, about = Random(f"{made.seed}/chatting/questions"), _by_subject(made)
    asked = []
    for fact in random.sample(made.facts, number):
        said = chat(fact, about, made, random, held_out=True)
        asked.append(Question(_text(tokenizer, said[-1:] if first else said), fact.object))
    return asked


def _by_subject(made: World) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in made.facts:
        found.setdefault(fact.subject, []).append(fact)
    return found


def _text(tokenizer: Any, said: list[dict[str, str]]) -> str:
    """A chat up to where the assistant is about to speak, without the begin of a text, which encoding puts there."""
    text: str = tokenizer.apply_chat_template(said, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token)


LESSON = Lesson(
    texts=epoch,
    questions=lambda made, tokenizer: {
        "recall_first_turn": questions(made, ASKED, tokenizer, first=True),
        "recall_in_chats": questions(made, ASKED, tokenizer, first=False),
    },
    chat_template=TEMPLATE,
)


def main(output: Output, base: Base = None, seed: Seed = 0, steps: Steps = STEPS, rate: Rate = RATE) -> None:
    """Teach a model of the atlas to answer in chats."""
    teach(LESSON, output, base, seed, steps, rate)


if __name__ == "__main__":
    typer.run(main)
