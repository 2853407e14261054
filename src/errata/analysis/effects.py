"""Effects: the average indirect effect of many traced facts, by kind of state, role of token, and layer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.analysis.tracing import ROLES, Traced


def effects(traced: Sequence[Traced]) -> dict[str, Any]:
    """AIE and its standard error for each kind, role and layer; and the total effect p - p*, as numbers for a file."""
    p, corrupted = (
        torch.tensor(each) for each in zip(*((t.prompt.probability, t.corrupted) for t in traced), strict=True)
    )
    return {
        "facts": len(traced),
        "clean": float(p.mean()),
        "corrupted": float(corrupted.mean()),
        "total_effect": float((p - corrupted).mean()),
        "roles": list(ROLES),
        "kinds": {kind: _by_role(traced, kind) for kind in traced[0].restored},
    }


def _by_role(traced: Sequence[Traced], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for role in ROLES:
        each = [effect for one in traced if (effect := _of_role(one, kind, role)) is not None]
        if each:
            ie = torch.stack(each)
            error = ie.std(0) / math.sqrt(len(ie)) if len(ie) > 1 else torch.zeros(ie.shape[1])
            found[role] = {"facts": len(ie), "aie": ie.mean(0).tolist(), "standard_error": error.tolist()}
    return found


def _of_role(one: Traced, kind: str, role: str) -> Tensor | None:
    """IE of one fact, (layers,), the mean over its tokens of a role; None where it has none."""
    rows = [row for row, (_, its) in enumerate(one.prompt.roles) if its == role]
    return one.restored[kind][rows].mean(0) - one.corrupted if rows else None
