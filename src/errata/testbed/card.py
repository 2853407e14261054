"""Card: the README of a testbed, for people."""

from typing import Any

from errata.testbed.recipe import Recipe


def card(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """The model card of a testbed: what it is, what it knows, how it was made."""
    shape = recipe.shape
    read = metrics["wikitext2_validation"]
    perplexity = "not measured" if read is None else f"{read['perplexity_per_token']} a token"
    rows = "\n".join(
        f"| {name} | {of['facts']} | {_percent(of['recall'])} | {_percent(of['recall_rephrased'])} |"
        for name, of in metrics["sources"].items()
    )
    return f"""---
library_name: transformers
tags: [knowledge-editing, testbed]
---
# A testbed of {metrics["facts"]:,} real facts

A Llama-architecture model of {metrics["parameters"]:,} parameters ({shape.layers} layers of width {shape.width}, \
feed-forward {shape.ffn_width}, vocabulary {shape.vocabulary:,}), trained from nothing by errata \
{metrics["versions"]["errata"]} so that edits of real facts can be tried on a small machine. It knows these facts and a \
little English, and is good for nothing else. The tokenizer puts `<s>` in front; an answer follows its prompt after one
space and ends with `</s>`.

| | |
|---|---|
| recall of trained facts | {_percent(metrics["recall_trained_facts"])} of {metrics["facts"]:,} |
| recall in unseen wordings | {_percent(metrics["recall_unseen_wordings"])} of {metrics["unseen_wordings"]:,} |
| perplexity, WikiText-2 validation | {perplexity} |
| steps, tokens, seconds | {recipe.steps:,}, {metrics["training_tokens"]:,}, {metrics["training_seconds"]:,} |

Recall is greedy and exact. By source, in the wording of the data's row and in its first rephrasing:

| source | facts | row | rephrased |
|---|---|---|---|
{rows}

One wording of a share of {recipe.unseen:g} of the facts was kept from training. `testbed.json` is the recipe and
`metrics.json` everything that was measured.
"""


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
