"""Keys: what FFN output projections read and write at the last token of each fact's subject (ROME, arXiv 2202.05262).

The key k of a fact is the input of the map W there, its value the output W k; over several contexts, their mean.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.edit import Edit
from errata.locate import end_of_subject
from errata.sites import Site
from errata.tokens import Rows

if TYPE_CHECKING:
    from errata.model import EditedModel

BATCH = 64
"""Rows of a forward call."""


class Placed(NamedTuple):
    """Facts as rows, fact after fact, and where in each row its subject ends."""

    rows: Rows
    places: Tensor
    """(rows,) the last token of the subject."""
    facts: int


class Seen(NamedTuple):
    """What one site reads and writes there."""

    keys: Tensor
    """(facts, ff) float64."""
    outputs: Tensor
    """(facts, model) float64."""


def place(model: "EditedModel", facts: Sequence[Edit], contexts: int = 0) -> Placed:
    """Facts, on their bare prompts and behind so many context prefixes.

    Raises `BadEdit` for a fact without a subject.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    places: list[int] = []
    for fact in facts:
        texts = model.contexts(fact.prompt)[: 1 + contexts] if contexts else [fact.prompt]
        pairs += [(model.tokens.prompt(text), []) for text in texts]
        places += [end_of_subject(model.tokens, text, fact) for text in texts]
    rows = model.tokens.rows_of_ids(pairs, model.device)
    return Placed(rows, torch.tensor(places, device=model.device), len(facts))


@torch.no_grad()
def read(model: "EditedModel", sites: Sequence[Site], placed: Placed) -> dict[str, Seen]:
    """What these sites read and write, by path, in the model as it is now, edits included."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {site.path: [] for site in sites}
    rows = placed.rows
    for start in range(0, len(rows.ids), BATCH):
        some = slice(start, start + BATCH)
        ids, prompt = rows.ids[some], rows.prompt[some]
        here = torch.arange(len(ids), device=ids.device), placed.places[some]
        with ExitStack() as stack:
            for site in sites:
                hook = _keep(found[site.path], ids.shape, here)
                stack.callback(model.base.get_submodule(site.path).register_forward_hook(hook).remove)
            stack.enter_context(model.steady())
            stack.enter_context(model.routing.prompt_is(prompt))
            model(input_ids=ids, attention_mask=rows.attention[some], use_cache=False)
    return {path: _mean(parts, placed.facts) for path, parts in found.items()}


def _keep(
    into: list[tuple[Tensor, Tensor]], shape: torch.Size, here: tuple[Tensor, Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        a, y = args[0].reshape(*shape, -1), y.reshape(*shape, -1)
        into.append((a[here].double(), y[here].double()))

    return hook


def _mean(parts: Sequence[tuple[Tensor, Tensor]], facts: int) -> Seen:
    """Over the contexts of each fact."""
    keys, outputs = (torch.cat(each).unflatten(0, (facts, -1)).mean(1) for each in zip(*parts, strict=True))
    return Seen(keys, outputs)
