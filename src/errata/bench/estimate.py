"""Estimate: what a plan costs, before it is run: streams, edits, memory from the model's sizes, time from earlier rows.

Or time from a trial of each case (`errata.bench.trial`), which also tells what scoring takes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from errata.bench.plan import Plan, Run
from errata.bench.record import Row
from errata.bench.trial import Pace
from errata.metrics import mean
from errata.sites import find_sites

COPIES = 4
"""Float32 copies of a site's matrix that an edit is counted with: what is learned, its gradient, two moments of Adam."""


class Estimate(NamedTuple):
    """What is still to be done, and what it takes."""

    plans: int
    streams: int
    """Streams from the unedited model, of those plans that have rows to find ..."""
    edits: int
    """... and the edits in them."""
    found: int
    """Rows that are there already ..."""
    rows: int
    """... of so many."""
    weights_bytes: int
    """The largest model."""
    editing_bytes: int
    """The most that a method adds to it. Activations, which depend on the length of the texts, are not counted."""
    seconds: float
    """Editing alone, where a trial or earlier rows tell how long an edit takes ..."""
    unknown: tuple[str, ...]
    """... and the methods for which none does."""
    scoring: float | None = None
    """Seconds of scoring, as far as it was tried; None without trials."""
    peak_memory_mb: float | None = None
    """The most that a trial took."""


def estimate(
    plans: Sequence[Plan], earlier: Iterable[Row] = (), bytes_per_weight: int | None = None,
    paces: Sequence[Pace | None] = (),
) -> Estimate:  # fmt: skip
    """The cost of plans, of which the bases may be outlines on `meta`.

    `earlier` rows are those of the output: what they hold is not measured again, and their seconds per edit are taken
    where no trial was made of a plan. `paces` are trials, one a plan.
    """
    earlier = list(earlier)
    streams = edits = missed = rows = 0
    seconds, scoring, unknown = 0.0, 0.0, set()
    for plan, pace in zip(plans, paces or [None] * len(plans), strict=True):
        rows += sum(len(run.checkpoints) for run in plan.runs())
        for run, missing in to_do(plan, earlier):
            count = missing[-1] * len(run.starts)
            streams += len(run.starts)
            edits += count
            missed += len(missing)
            each = _seconds(plan, earlier) if pace is None else pace.editing
            if each is None:
                unknown.add(plan.method)
            else:
                seconds += each * count
            if pace is not None:
                seconds += pace.setting_up * len(run.starts)
                scoring += pace.scoring * sum(missing) * len(run.starts)
    peaks = [pace.peak_memory_mb for pace in paces if pace is not None and pace.peak_memory_mb is not None]
    return Estimate(
        len(plans), streams, edits, rows - missed, rows,
        max((_weights(plan.base, bytes_per_weight) for plan in plans), default=0),
        max((_editing(plan) for plan in plans), default=0), seconds, tuple(sorted(unknown)),
        scoring if paces else None, max(peaks, default=None),
    )  # fmt: skip


def to_do(plan: Plan, earlier: Sequence[Row]) -> list[tuple[Run, list[int]]]:
    """The runs of a plan that have rows to find, and after how many edits."""
    missing = [
        (run, [t for t in run.checkpoints if not any(_is(row, plan, run, t) for row in earlier)]) for run in plan.runs()
    ]
    return [(run, points) for run, points in missing if points]


def _is(row: Row, plan: Plan, run: Run, t: int) -> bool:
    """Whether a row is that of one checkpoint, as far as it can be known without the weights."""
    options = plan.editor.options() if plan.editor is not None else {}
    stream = (t, run.length, plan.seed, plan.batch_size, len(run.starts), plan.chat)
    return (plan.method, plan.model, plan.data, *stream, options) == (
        row.method, row.model, row.data, row.edits, row.stream, row.seed, row.batch_size, row.chunks, row.chat,
        dict(row.options),
    )  # fmt: skip


def _seconds(plan: Plan, earlier: Iterable[Row]) -> float | None:
    """Seconds an edit, from rows of the same method on the same model; 0 for the unedited model."""
    if plan.editor is None:
        return 0.0
    alike = (row for row in earlier if (row.method, row.model) == (plan.method, plan.model))
    return mean(row.seconds_per_edit for row in alike if row.seconds_per_edit is not None)


def _weights(base: nn.Module, bytes_per_weight: int | None) -> int:
    return sum(weight.numel() * (bytes_per_weight or weight.element_size()) for weight in base.parameters())


def _editing(plan: Plan) -> int:
    """Bytes that a method takes beside the weights: copies of a matrix, or second moments."""
    if plan.editor is None:
        return 0
    site = max(find_sites(plan.base), key=lambda site: site.weights)
    edits = max((run.length for run in plan.runs()), default=0)
    return plan.editor.bytes_beside(site.in_features, site.weights, edits) + COPIES * 4 * site.weights
