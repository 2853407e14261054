"""Diagnoses: what a mixture of experts suffers from in lifelong editing, measured (LEMoE, arXiv 2406.20030, section 2).

Forgetting         how many edits hold right after their batch was made, and how many after the last one
Routing            which share of prompts is sent, in use, to the expert that was trained with them
Order sensitivity  the same for batches that are planned, as they come, shuffled, and as unlike as possible
Batch and lifelong all edits at once in one expert, batch by batch, and one by one through a buffer
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from errata.anchors import Anchors
from errata.edit import Edit
from errata.errors import BadOption
from errata.methods.lemoe import ANCHORS, Lemoe
from errata.metrics import HEADLINE, Reference, immediate, mean, measure
from errata.model import EditedModel
from errata.ordering import Order, dealt, measured

Make = Callable[[Lemoe], EditedModel]
"""A fresh edited model with an editor."""


class Routes(NamedTuple):
    """Where prompts are sent in use, as shares of them."""

    own: float
    """To the expert that was trained with the edit that they are about."""
    other: float
    none: float
    """To the pretrained model."""


def routes(model: EditedModel, prompts: Sequence[str], owners: Sequence[int]) -> Routes:
    """Where these prompts are sent; `owners` are the experts that they belong to, -1 for those that belong to none."""
    anchors, wanted = _anchors(model), torch.tensor(owners)
    decisions = [anchors.decide(a, y) for a, y, _ in model.read(anchors, prompts)]
    rows = torch.cat([decision.rows for decision in decisions]).cpu()
    picks = torch.cat([d.rows.long() - 1 if d.pick is None else d.pick for d in decisions]).cpu()
    own = rows & (picks == wanted)
    return Routes(*(float(share.float().mean()) for share in (own, rows & ~own, ~rows)))


def orders(model: EditedModel, edits: Sequence[Edit], size: int, shuffles: int = 2) -> dict[str, Order]:
    """Ways to put edits into batches of at most `size`: as given, planned, dealt out, and shuffled so many times."""
    if not isinstance(model.editor, Lemoe):
        raise BadOption("orders are planned by lemoe: diagnose a model that it edits")
    points = model.editor.points(model, edits).flatten(1)
    planned = replace(model.editor, batch=size).order(model, edits)
    found = {"as given": _cut(points, list(range(len(edits))), size), "planned": planned}
    found["dealt"] = dealt(points, planned)
    for seed in range(shuffles):
        line = torch.randperm(len(edits), generator=model.sampling.generator("diagnoses/order", seed)).tolist()
        found[f"shuffled {seed}"] = _cut(points, line, size)
    return found


def lifelong(
    model: EditedModel, edits: Sequence[Edit], batches: Sequence[Sequence[int]], reference: Reference
) -> dict[str, Any]:
    """Make the edits batch by batch, in this order: what held at once, what holds at the end, and where prompts go."""
    start, made, first = time.process_time(), [edits[i] for batch in batches for i in batch], []
    for batch in batches:
        model.edit_batch([edits[i] for i in batch])
        first.append(_held(model, [edits[i] for i in batch]))
    seconds = (time.process_time() - start) / len(made)
    last = [_held(model, [edits[i] for i in batch]) for batch in batches]
    at_once, at_end = (sum(map(sum, held)) / len(made) for held in (first, last))
    owners, scores = _anchors(model).owners.tolist(), measure(model, made, reference).scores
    return {
        "experts": len(_anchors(model).keys),
        "forgetting": {
            "immediate": at_once, "final": at_end, "forgotten": at_once - at_end,
            "first_batch": [mean(first[0]), mean(last[0])],
        },
        "routing": _routing(model, made, owners),
        "scores": {name: scores[name]._asdict() | {"average": scores[name].average} for name in scores},
        "cpu_seconds_per_edit": round(seconds, 3),
    }  # fmt: skip


def diagnose(
    make: Make, editor: Lemoe, edits: Sequence[Edit], shuffles: int = 2, runs: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """All diagnoses of an editor on these edits, for JSON. `keep` is given what is known after each run; of `runs` that
    were made before, none is made again.
    """
    reference = Reference()
    found: dict[str, Any] = {"edits": len(edits), "batch": editor.batch, "runs": runs or {}}

    def run(name: str, editor: Lemoe, batches: Sequence[Sequence[int]], **more: float) -> None:
        if name in found["runs"]:
            return
        model = make(editor)
        try:
            found["runs"][name] = lifelong(model, edits, batches, reference) | more
        finally:
            model.detach()
        found["order_sensitivity"] = _spread(found["runs"], [way for way in ways if way in found["runs"]])
        keep(found)

    model = make(editor)
    try:
        ways = orders(model, edits, editor.batch, shuffles)
    finally:
        model.detach()
    for name, order in ways.items():
        run(name, editor, order.batches, within=order.within, between=order.between)
    run("one batch", replace(editor, batch=len(edits)), [range(len(edits))])
    run("one by one", editor, [[i] for i in range(len(edits))])
    return found


def _anchors(model: EditedModel) -> Anchors:
    found = model.memories.get(ANCHORS)
    if not isinstance(found, Anchors):
        raise BadOption("this model has no experts that prompts are sent to: diagnose one that lemoe edits")
    return found


def _cut(points: torch.Tensor, line: Sequence[int], size: int) -> Order:
    return measured(points, [line[i : i + size] for i in range(0, len(line), size)])


def _held(model: EditedModel, edits: Sequence[Edit]) -> list[float]:
    return [hit[HEADLINE] for hit in immediate(model, edits)]


def _routing(model: EditedModel, made: Sequence[Edit], owners: Sequence[int]) -> dict[str, dict[str, float]]:
    """Where prompts of each kind go; each is of an edit, or of none."""
    behind = [(text, owner) for e, owner in zip(made, owners, strict=True) for text in model.contexts(e.prompt)[1:]]
    asked = {
        "prompts": [(edit.prompt, owner) for edit, owner in zip(made, owners, strict=True)],
        "prefixed": behind,
        "rephrasings": [(text, owner) for e, owner in zip(made, owners, strict=True) for text in e.rephrases],
        "locality": [(probe.prompt, -1) for edit in made for probe in edit.locality],
        "irrelevant": [(probe.prompt, -1) for probe in model.sampling.irrelevant],
    }
    return {kind: routes(model, *zip(*pairs, strict=True))._asdict() for kind, pairs in asked.items() if pairs}


def _spread(runs: Mapping[str, Mapping[str, Any]], ways: Sequence[str]) -> dict[str, Any]:
    """The best and the worst order by average, and how far they are apart."""
    average = {name: runs[name]["scores"][HEADLINE]["average"] for name in ways}
    best, worst = max(average, key=lambda name: average[name]), min(average, key=lambda name: average[name])
    return {"best": best, "worst": worst, "spread": average[best] - average[worst]}
