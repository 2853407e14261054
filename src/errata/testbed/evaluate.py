"""Evaluate: which facts a model says, and how well it reads text."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from errata.loading import quiet
from errata.pretraining.recall import Question, recall
from errata.testbed import record
from errata.testbed.corpus import SHARES, Corpus
from errata.testbed.facts import Fact, chosen, questions, trained_questions, unseen_questions
from errata.testbed.recipe import Recipe

WINDOW = 128
"""Tokens that are read at once for the perplexity, `<s>` included."""
WINDOWS = 400
"""Windows that are read, evenly spread over the text, where there are more."""


def evaluate(
    model: Any, tokenizer: Any, corpus: Corpus, *, directory: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Greedy recall of the facts of every source, and the perplexity on WikiText-2's validation text.

    Of each source, `limit` facts are asked for, evenly spread. For a testbed, `directory` is where it lies: the recall of
    the facts that it was trained on, and of the wordings that were kept from it, is then measured as well.
    """
    measured: dict[str, Any] = {}
    recipe = None if directory is None else record.recipe_of(directory, corpus)
    sources = {name: spread(corpus.of(name), limit) for name in SHARES}
    with quiet():
        if recipe is not None:
            measured |= trained(model, tokenizer, chosen(corpus.facts, recipe.facts, SHARES), recipe)
        measured["sources"] = {name: by_wording(model, tokenizer, facts) for name, facts in sources.items() if facts}
        measured["wikitext2_validation"] = perplexity(model, tokenizer, corpus.validation)
    return measured


def trained(model: Any, tokenizer: Any, facts: Sequence[Fact], recipe: Recipe) -> dict[str, Any]:
    """The recall of facts that a recipe shows, in wordings that it shows and in those that it does not."""
    unseen = unseen_questions(facts, recipe.seed, recipe.unseen)
    return {
        "facts": len(facts),
        "recall_trained_facts": asked(model, tokenizer, trained_questions(facts, recipe.seed, recipe.unseen)),
        "unseen_wordings": len(unseen),
        "recall_unseen_wordings": asked(model, tokenizer, unseen),
    }


def by_wording(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> dict[str, Any]:
    """The recall in the first wording, that of the data's own row, and in the second, its first rephrasing."""
    return {
        "facts": len(facts),
        "recall": asked(model, tokenizer, questions(facts)),
        "recall_rephrased": asked(model, tokenizer, questions(facts, 1)),
    }


def asked(model: Any, tokenizer: Any, these: Sequence[Question]) -> float | None:
    """The recall, to four digits; nothing where nothing is asked."""
    return round(recall(model, tokenizer, these), 4) if these else None


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most so many of the items, evenly spread, the first among them."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str) -> dict[str, Any] | None:
    """exp(mean negative log-likelihood) of a text a token, and a word: models of different vocabularies compare by words.

    The text is read in disjoint windows; a word is what stands between blanks. Nothing where there is no text.
    """
    ids = _ids(tokenizer, text)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    width = WINDOW - len(bos)
    windows = spread([ids[i : i + width] for i in range(0, len(ids) - width + 1, width)], WINDOWS)
    if not windows:
        return None
    total, count = 0.0, 0
    for start in range(0, len(windows), 16):
        rows = torch.tensor([bos + window for window in windows[start : start + 16]], device=model.device)
        logits: Tensor = model(input_ids=rows).logits[:, :-1].float()
        total += float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
        count += rows[:, 1:].numel()
    mean, words = total / count, len(text.split())
    return {
        "perplexity_per_token": round(math.exp(mean), 3),
        "perplexity_per_word": round(math.exp(mean * len(ids) / words), 3),
        "tokens": len(ids),
        "words": words,
        "windows": len(windows),
        "window": WINDOW,
    }


def beginning(tokenizer: Any) -> None:
    """Let a tokenizer put its token for the beginning of a text in front of every text; some do so only if told."""
    from tokenizers.processors import Sequence as Both
    from tokenizers.processors import TemplateProcessing

    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return
    begin = tokenizer.bos_token
    template = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)])
    rust = tokenizer.backend_tokenizer
    rust.post_processor = template if rust.post_processor is None else Both([rust.post_processor, template])


def _ids(tokenizer: Any, text: str) -> list[int]:
    lines = text.splitlines(keepends=True)
    if not lines:
        return []
    return [i for line in tokenizer(lines, add_special_tokens=False)["input_ids"] for i in line]
