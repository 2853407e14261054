"""Chat: whether edits of a chat are found again behind a system prompt and in later turns.

    python -m errata.atlas.chatting --output atlas-chat
    python benchmarks/chat.py benchmarks/results/diagnoses --model atlas-chat

Edits are made with `chat=True`, each as the first turn of a chat. Then each is asked again in several chats, in none of
which the model was taught to chat. Counted are the edits that are answered with their targets, asked as they were made and
in another wording, and those to which the gate opens, by the last turn alone as it does and, for comparison, by the whole
chat; and of irrelevant prompts those to which it opens. Beside them: how many of its answers to irrelevant prompts the
unedited model keeps in such a chat. `chat.json` is written after each method; methods that it holds are not measured again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, load
from errata.analysis.findings import Findings, found_before, made_on
from errata.atlas.chatting import TEMPLATE
from errata.data import load as read
from errata.errors import EditFailed, ErrataError

METHODS = ("memoir", "grace", "lemoe", "wise")
RULES = "You are a helpful assistant who answers in a few words."
MORE = (
    " Be polite. The user is a customer of our shop, and the shop is open from nine to five. Never speak of prices. Never"
    " make promises. If you do not know an answer, say so."
)
TURNS = (("user", "What is the capital of France?"), ("assistant", "Paris"))
CHATS: dict[str, tuple[tuple[str, str], ...]] = {
    "first turn": (),
    "system prompt": (("system", RULES),),
    "long system prompt": (("system", RULES + MORE),),
    "second turn": TURNS,
    "third turn": (*TURNS, ("user", "Who wrote Hamlet?"), ("assistant", "William Shakespeare")),
}
LENGTH = 12
"""Tokens of an answer."""


def ids_of(tokenizer: Any, before: Sequence[tuple[str, str]], prompt: str) -> torch.Tensor:
    """A chat that ends with a prompt, as anybody encodes it: (1, seq)."""
    chat = [{"role": role, "content": said} for role, said in (*before, ("user", prompt))]
    found: torch.Tensor = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    return found


@torch.no_grad()
def answer(model: EditedModel, ids: torch.Tensor) -> str:
    """The greedy answer to a chat."""
    out = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, pad_token_id=model.tokens.filler)
    return model.tokens.decode(out[0, ids.shape[1] :]).partition("\n")[0].strip()


def right(model: EditedModel, chats: Sequence[torch.Tensor]) -> float:
    """The share of edits, each asked in its own chat, that are answered with their targets."""
    said = [answer(model, ids).startswith(edit.target) for ids, edit in zip(chats, model.edits, strict=True)]
    return sum(said) / len(said)


@torch.no_grad()
def opens(model: EditedModel, chats: Sequence[torch.Tensor]) -> float:
    """The share of chats to which the gate opens."""
    found = []
    for ids in chats:
        model(input_ids=ids)
        found += [any(bool(decision.rows[0]) for decision in model.routing.decisions.values())]
    return sum(found) / len(found)


def shares(model: EditedModel, prompts: Sequence[str], before: Sequence[tuple[str, str]]) -> dict[str, float]:
    """What becomes of all edits and of these irrelevant prompts in a chat."""
    asked = [ids_of(model.tokens.tokenizer, before, edit.prompt) for edit in model.edits]
    far = [ids_of(model.tokens.tokenizer, before, prompt) for prompt in prompts]
    other = [ids_of(model.tokens.tokenizer, before, edit.rephrases[0]) for edit in model.edits]
    found = {"answered": right(model, asked), "rephrased": right(model, other)}
    found |= {"opens": opens(model, asked), "opens to irrelevant": opens(model, far)}
    alone, model.routing.alone = model.routing.alone, None
    found["opens by the whole chat"] = opens(model, asked)
    model.routing.alone = alone
    return found


def kept(model: EditedModel, prompts: Sequence[str], before: Sequence[tuple[str, str]]) -> float:
    """The share of these prompts that a model without edits answers in a chat as it does in its first turn."""
    pairs = [[ids_of(model.tokens.tokenizer, turns, prompt) for turns in ((), before)] for prompt in prompts]
    same = [answer(model, one) == answer(model, other) for one, other in pairs]
    return sum(same) / len(same)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--model", help="a chat model that knows the atlas; by default the embedded one, behind a template"
    )
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--methods", default=",".join(METHODS), help="some of: " + ", ".join(METHODS))
    told = parser.parse_args()
    unknown = set(told.methods.split(",")) - set(METHODS)
    if unknown:
        parser.error(f"no method here is called {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    if told.edits < 1:
        parser.error(f"--edits {told.edits}: at least 1")
    torch.set_num_threads(1)
    try:
        base, tokenizer = load(told.model or "atlas")
    except ErrataError as error:
        parser.error(str(error))
    if told.model is None:
        tokenizer.chat_template = TEMPLATE
    edits, irrelevant = read("atlas").stream(told.edits)
    prompts = [probe.prompt for probe in irrelevant[:40]]
    settings = {
        "model": Path(told.model or "atlas").name, "edits": told.edits, "irrelevant": len(prompts),
        "chats": {name: list(c) for name, c in CHATS.items()},
    }  # fmt: skip
    try:
        found = found_before(told.output, "chat", settings)
    except ErrataError as error:
        parser.error(str(error))
    if not found:
        model = EditedModel(base, tokenizer, irrelevant=irrelevant, chat=True)
        found["unedited"] = {name: {"kept": kept(model, prompts, chat)} for name, chat in CHATS.items()}
        model.detach()
    for method in [name for name in told.methods.split(",") if name not in found]:
        model = EditedModel(base, tokenizer, method, irrelevant=irrelevant, expected=told.edits, chat=True)
        failed = 0
        for edit in edits:
            try:
                model.edit(edit)
            except EditFailed:
                failed += 1
        found[method] = {"failed": failed} | {name: shares(model, prompts, chat) for name, chat in CHATS.items()}
        sys.stderr.write(f"{method} {found[method]}\n")
        model.detach()
        Findings("chat", settings, found, made_on(base, edits)).write(told.output)


if __name__ == "__main__":
    main()
