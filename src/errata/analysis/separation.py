"""Separation: how far the scores of edits, their rephrasings and irrelevant prompts lie apart, and from the threshold.

For WISE the score is the activation of the side memory against epsilon (arXiv 2405.14768, figure 3), for MEMOIR the
overlap of masks, corrected for chance, against tau (arXiv 2506.07899), for GRACE the distance to the nearest key against
its radius, with the sign turned (arXiv 2211.11031); whatever else a memory decides by is shown just so. Nothing is computed
a second time here: each prompt is put to the edited model, and the decision is read that it made.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from errata.edit import Edit
from errata.errors import BadOption
from errata.routing import Decision

if TYPE_CHECKING:
    from errata.model import EditedModel

BATCH = 64
"""Prompts of a forward call."""
EDITS, REPHRASINGS, IRRELEVANT, CALIBRATION = "edits", "rephrasings", "irrelevant", "calibration"


class Asked(NamedTuple):
    """A prompt, and the edit that should answer it, if one should."""

    prompt: str
    group: str
    """`edits`, `rephrasings`, `irrelevant` (the probes of edits, with their kind where they have one), or `calibration`:
    the irrelevant prompts that came with the model, on which thresholds are set."""
    edit: str | None = None
    """Id."""


class Answered(NamedTuple):
    """What one memory decided on many prompts."""

    score: Tensor
    """(prompts,)"""
    threshold: Tensor
    """(prompts,) that of each: a memory may have several."""
    passed: Tensor
    """(prompts,) bool: whether it answers."""
    nearest: tuple[str | None, ...]
    """The id of the edit that it would answer with, where it keeps edits apart."""


def questions(edits: Sequence[Edit], irrelevant: Sequence[str]) -> list[Asked]:
    """Edits, their rephrasings and probes, and irrelevant prompts, each prompt once and in the first of these groups.

    Raises `BadOption` where there is nothing to set the edits against.
    """
    found: dict[str, Asked] = {}
    asked = [Asked(edit.prompt, EDITS, edit.id) for edit in edits]
    asked += [Asked(text, REPHRASINGS, edit.id) for edit in edits for text in edit.rephrases]
    for edit in edits:
        asked += [Asked(p.prompt, f"{IRRELEVANT}: {p.kind}" if p.kind else IRRELEVANT) for p in edit.locality]
    asked += [Asked(text, CALIBRATION) for text in irrelevant]
    for one in asked:
        found.setdefault(one.prompt, one)
    if not any(one.edit is None for one in found.values()):
        raise BadOption("there is no irrelevant prompt to set the edits against: the edits have no locality probes")
    return list(found.values())


def memory_of(model: "EditedModel") -> str:
    """The name of the memory that decides; raises `BadOption` where none does, as in a method that is always on."""
    asked = [edit.prompt for edit in model.edits[:1]]
    found = [name for name, decision in _asked(model, asked).items() if decision.score is not None] if asked else []
    if not found:
        method = "the model" if model.editor is None else model.editor.name
        raise BadOption(
            f"{method} decides by no score after {len(model.edits)} edits; memoir, wise and grace do, after the first one"
        )
    return found[0]


def ask(model: "EditedModel", name: str, prompts: Sequence[str]) -> Answered:
    """What the memory called `name` decides on each prompt."""
    batches = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
    decisions = [_asked(model, batch)[name] for batch in batches]
    ids: list[str | None] = []
    for decision in decisions:
        if decision.near is None:
            ids += [None] * len(decision.rows)
        else:
            owners = torch.as_tensor(model.memories[name].owners)[decision.near[1][:, 0]]
            ids += [model.history[owner].id for owner in owners.tolist()]
    score, threshold, passed = (
        torch.cat([torch.as_tensor(getattr(d, field)).double().cpu() for d in decisions])
        for field in ("score", "threshold", "rows")
    )
    return Answered(score, threshold, passed.bool(), tuple(ids))


@torch.no_grad()
def _asked(model: "EditedModel", prompts: Sequence[str]) -> dict[str, Decision]:
    """The decisions of all memories on some prompts, by name."""
    ids, attention = model.tokens.prompts(prompts, "right", model.device)
    with model.steady():
        model(input_ids=ids, attention_mask=attention, use_cache=False)
    return model.routing.decisions


def separation(model: "EditedModel") -> dict[str, Any]:
    """Scores of all groups, shares that pass, and areas under the ROC curve, as numbers for a file."""
    asked = questions(model.edits, [probe.prompt for probe in model.sampling.irrelevant])
    name = memory_of(model)
    found = ask(model, name, [one.prompt for one in asked])
    groups: dict[str, Any] = {}
    for group in dict.fromkeys(one.group for one in asked):
        rows = [i for i, one in enumerate(asked) if one.group == group]
        own = [found.nearest[i] == asked[i].edit for i in rows if found.nearest[i] is not None and asked[i].edit]
        groups[group] = {
            "prompts": len(rows),
            "passed": float(found.passed[rows].double().mean()),
            "own_edit": sum(own) / len(own) if own else None,
            "score": _described(found.score[rows]),
            "margin": _described((found.score - found.threshold)[rows]),
            "scores": [round(value, 5) for value in found.score[rows].tolist()],
        }
    return {
        "memory": name,
        "edits": len(model.edits),
        "thresholds": sorted({round(value, 6) for value in found.threshold.tolist()})[:16],
        "groups": groups,
        "auc": _areas(asked, found.score),
        "auc_of_margin": _areas(asked, found.score - found.threshold),
    }


def area(positive: Tensor, negative: Tensor) -> float:
    """The area under the ROC curve: P(positive > negative) + P(equal) / 2."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, right=False)
    upto = torch.searchsorted(ordered, positive, right=True)
    return float((below + upto).double().mean() / 2 / len(negative))


def _areas(asked: Sequence[Asked], values: Tensor) -> dict[str, dict[str, float]]:
    """Of edits and rephrasings against each group that should not be answered, and against all probes."""
    rows: dict[str, list[int]] = {}
    for i, one in enumerate(asked):
        rows.setdefault(one.group, []).append(i)
        if one.group.startswith(IRRELEVANT) and one.group != IRRELEVANT:
            rows.setdefault(IRRELEVANT, []).append(i)
    against = [group for group in rows if group.startswith(IRRELEVANT) or group == CALIBRATION]
    return {
        group: {other: area(values[rows[group]], values[rows[other]]) for other in against}
        for group in (EDITS, REPHRASINGS)
        if group in rows
    }


def _described(values: Tensor) -> dict[str, float]:
    points = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=values.dtype)
    low, fifth, median, ninety_fifth, high = values.quantile(points).tolist()
    return {
        "mean": float(values.mean()), "least": low, "p5": fifth, "median": median, "p95": ninety_fifth, "most": high,
    }  # fmt: skip
