"""Trial: the first two edits, or batches of edits, of a plan, made and scored for what they take. Nothing is kept."""

import time
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from errata.bench.plan import Plan
from errata.bench.stream import Step, run
from errata.errors import EditFailed
from errata.metrics import Reference


class Pace(NamedTuple):
    """What a plan takes on this machine, at the beginning of its stream."""

    setting_up: float
    """Seconds that a stream's first edit takes beyond another one; 0 where there is but one to make."""
    editing: float
    """Seconds an edit."""
    scoring: float
    """Seconds to score an edit, with all that is asked of it."""
    peak_memory_mb: float | None
    """Of the CUDA allocator on a GPU, else of the process."""


def tried(plan: Plan, reference: Reference | None = None) -> Pace:
    """Make and score the first edits of a plan. Raises `EditFailed` where one of them could not be made.

    Plans on one base model may share a `reference`, as in `run`: the first one asks the unedited model for all.
    """
    count = min(2 * plan.batch_size, len(plan.edits))
    ends: list[float] = []
    failed: list[str] = []

    def follow(step: Step) -> None:
        ends.append(time.perf_counter())
        if step.failed:
            failed.append(step.failed)

    begun = time.perf_counter()
    few = replace(plan, edits=plan.edits[:count], checkpoints=(count,), chunks=1)
    (row,) = run(few, progress=follow, reference=reference)
    if failed:
        raise EditFailed(failed[0])
    *edits, scoring = [after - before for before, after in pairwise([begun, *ends[:-1], time.perf_counter()])]
    each = edits[-1] / (count - (len(edits) - 1) * plan.batch_size)
    return Pace(max(sum(edits) - each * count, 0.0), each, scoring / count, row.peak_memory_mb)
