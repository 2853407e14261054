"""Failures: the part of a report that says how edits fail: sorted by what is wrong with their answers, with examples."""

from collections.abc import Sequence

from errata.bench.record import Row, labels
from errata.bench.section import Grid
from errata.bench.tables import NOTHING, as_score
from errata.outcomes import KINDS

SHOWN = 2
"""Examples of each kind of failure, of each method after the most edits."""
HEADS = {
    "held": "Held", "rephrasing": "Rephrasing wrong", "prompt": "Prompt wrong", "part": "Partly wrong", "whole": "All wrong"
}  # fmt: skip
"""Column heads of the kinds."""
TEXT = (
    "Every edit is of one kind, by greedy decoding: "
    + "; ".join(f"{HEADS[kind]}: {what}" for kind, what in KINDS.items())
    + ". Contested are edits that another edit contradicts: it gives the same subject another target in the place of the"
    " same answer, so that not all of them may be able to hold. The last columns are the shares that hold of these and of"
    " the others."
)


def failures(rows: Sequence[Row]) -> tuple[list[str], list[Grid]]:
    """Paragraphs and tables about rows of one model and data set; nothing where no row says how its edits fail."""
    told = [(row, label) for row, label in zip(rows, labels(rows), strict=True) if row.outcomes]
    if not told:
        return [], []
    told.sort(key=lambda pair: (pair[0].edits, -_held(pair[0])))
    return [TEXT], [_counts(told), *_examples(told)]


def _counts(told: Sequence[tuple[Row, str]]) -> Grid:
    lines = [
        (
            label, f"{row.edits:,}", *(f"{_number(row, kind):,}" for kind in KINDS),
            f"{sum(_number(row, kind, 'contested') for kind in KINDS):,}", *_shares(row),
        )
        for row, label in told
    ]  # fmt: skip
    head = ("Method", "T", *HEADS.values(), "Contested", "Held of these", "Held of others")
    return Grid("How edits fail", head, lines)


def _examples(told: Sequence[tuple[Row, str]]) -> list[Grid]:
    """Some failures of each kind after the most edits."""
    most = max(row.edits for row, _ in told)
    lines = [
        (label, HEADS[kind], example["prompt"], example["target"], example["said"])
        for row, label in told
        for kind in KINDS
        for example in row.outcomes.get(kind, {}).get("examples", ())[:SHOWN]
        if row.edits == most
    ]
    head = ("Method", "Kind", "Prompt", "Target", "Said")
    return [Grid(f"Examples of failures after {most:,} edits", head, lines, folded=True)] if lines else []


def _number(row: Row, kind: str, of: str = "edits") -> int:
    return int(row.outcomes.get(kind, {}).get(of, 0))


def _held(row: Row) -> float:
    return _number(row, "held") / max(1, sum(_number(row, kind) for kind in KINDS))


def _shares(row: Row) -> tuple[str, str]:
    """The shares of contested and of other edits that hold."""
    fought = sum(_number(row, kind, "contested") for kind in KINDS)
    others = sum(_number(row, kind) for kind in KINDS) - fought
    held = _number(row, "held", "contested")
    return (
        as_score(held / fought) if fought else NOTHING,
        as_score((_number(row, "held") - held) / others) if others else NOTHING,
    )
