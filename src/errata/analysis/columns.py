"""Columns: how edits spread over the columns of MEMOIR's residual memory (arXiv 2506.07899).

A column is an input feature; an edit may write to the columns of its mask, N of D. Were masks random, each column would
be in T N / D of the masks of T edits, give or take sqrt(T N / D (1 - N / D)). Columns that many edits share are where they
overwrite one another. The permutation of TopHash says which columns these are, not how many: it is the same for all edits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from errata.masks import unpack
from errata.residual_memory import ResidualMemory

TOP = 0.1
"""The share of the columns whose part of the memory is told."""


def columns(memory: ResidualMemory) -> dict[str, Any]:
    """How many edits use each column, against chance, and how the weight is spread, as numbers for a file.

    Of the W_m that is written now, and the edits in it.
    """
    masks = memory.masks[0, memory.here()]
    T, D = len(masks), memory.width
    used = sum((unpack(some, D).sum(0) for some in masks.split(256)), torch.zeros(D, dtype=torch.long))
    p = memory.active / D
    norms = memory.weight.double().norm(dim=0).cpu()
    return {
        "edits": T,
        "columns": D,
        "active": memory.active,
        "uses": {
            "mean": float(used.double().mean()),
            "sd": float(used.double().std(correction=0)),
            "least": int(used.min()),
            "most": int(used.max()),
            "sd_by_chance": math.sqrt(T * p * (1 - p)),
            "unused": int((used == 0).sum()),
            "top_share": _top(used.double()),
        },
        "norms": {"top_share_of_squares": _top(norms.square()), "written": int((norms > 0).sum())},
        "histogram": torch.bincount(used.cpu(), minlength=T + 1).tolist(),
    }


def _top(values: Tensor) -> float:
    """The part of a sum that the largest `TOP` of its terms make up."""
    count = max(1, round(TOP * len(values)))
    total = float(values.sum())
    return float(values.topk(count).values.sum()) / total if total else 0.0
