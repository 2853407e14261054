"""Row: one measurement, with the protocol it followed; and the file of such rows, one JSON object a line."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from errata import methods
from errata.errors import BadRecord, DamagedFile, NewerFormat, StoreError, UsageError
from errata.metrics import HEADLINE

PROTOCOL = 1
"""Grows when the same measurement would give other numbers; rows of another protocol are not taken for this one's."""
FILE = "results.jsonl"
PROPERTIES = ("reliability", "generalization", "locality", "average")
UNROUNDED = frozenset({"options", "provenance"})
"""Fields that hold what was asked for rather than what was measured."""

Scores = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Row:
    """The scores of one method on one model after `edits` edits of one data set."""

    method: str
    model: str
    data: str
    edits: int
    """T: how many edits were asked for, one after another, before the scores were taken over all of them."""
    stream: int
    """Length of the stream that this is a checkpoint of; what the method was told to expect."""
    seed: int
    batch_size: int
    """Edits that were made at once."""
    chunks: int
    """Disjoint chunks of T edits, each from the unedited model, that all numbers are averaged over."""
    options: Mapping[str, Any]
    """All hyper-parameters of the method."""
    scores: Scores
    """Scorer (see `errata.metrics`) -> reliability, generalization, locality and their average; null without data."""
    locality_by_kind: Mapping[str, float | None]
    """Under the headline scorer; null for kinds of probe that the data does not have."""
    perplexity: Mapping[str, float | None]
    """Of the targets given their prompts: mean, mean clipped at 100, median."""
    immediate: Mapping[str, float | None]
    """Scorer -> reliability of each edit right after it was made, averaged."""
    seconds_per_edit: float | None
    """Editing alone, without evaluation: the sum of the receipts' seconds over the edits. They include finding the
    target's probability before and after the edit, and whatever the method draws when first used."""
    peak_memory_mb: float | None
    """As `provenance.peak_memory_of` says."""
    memory_bytes: float
    """What the edits have added, in bytes."""
    edits_per_million_weights: float | None
    """T by the millions of weights of the matrices that are edited; null for a model without memories."""
    scored: int
    superseded: int
    """Edits not scored because a later one gives their prompt another target."""
    failed: int
    failed_ids: Sequence[str]
    """Edits that could not be made. They are scored all the same."""
    provenance: Mapping[str, Any]
    """Versions and machine, what the model, the edits and the irrelevant prompts are known by, the site, the time."""
    protocol: int = PROTOCOL
    ood: Mapping[str, float | None] = field(default_factory=dict)
    """Natural text about what was edited, where the data has it: `per_example` and `per_token` (see `errata.metrics`)."""
    portability: Mapping[str, float | None] = field(default_factory=dict)
    """Scorer -> how many of the answers that follow from the edits are given, where the data has such questions."""
    nulls: Mapping[str, str] = field(default_factory=dict)
    """Numbers that were not finite: where, and what they were."""
    outcomes: Mapping[str, Any] = field(default_factory=dict)
    """Kind of outcome -> how many edits came to it, how many of these are contested, and examples (`errata.outcomes`)."""
    answering: Mapping[str, float | None] = field(default_factory=dict)
    """Seconds a token of an answer, `edited` and `unedited` (`errata.bench.answering`)."""
    chat: bool = False
    """Whether all prompts were what a user says in the model's chat template."""

    @property
    def key(self) -> str:
        """What makes two rows the same measurement: the protocol in full, without when and where it was run."""
        names = (
            "method", "options", "model", "data", "edits", "stream", "seed", "batch_size", "chunks", "protocol", "chat",
        )  # fmt: skip
        identity: dict[str, Any] = {name: getattr(self, name) for name in names}
        made_of = ("base_fingerprint", "dtype", "data_sha256", "irrelevant_sha256")
        identity |= {name: self.provenance.get(name) for name in made_of}
        content = json.dumps(_finite(identity, "", {}, digits=None), sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def score(self, property_: str, scorer: str = HEADLINE) -> float | None:
        """One score; None where there is none."""
        return self.scores.get(scorer, {}).get(property_)

    def to_record(self) -> dict[str, Any]:
        """A JSON object. Measured numbers have four decimals; what is not finite is null, and told in `nulls`."""
        nulls = dict(self.nulls)
        record = {
            name: _finite(value, name, nulls, digits=None if name in UNROUNDED else 4)
            for name, value in asdict(self).items()
        }
        return record | {"nulls": nulls}


def from_record(record: Mapping[str, Any], path: Path = Path("<record>"), line: int = 1) -> Row:
    """The row that a JSON object describes. Raises `BadRecord` for a missing, unknown or mistyped field.

    Options that the method did not have then are added as it was then, so that the row is known as the same measurement.
    """
    known = {f.name: f for f in fields(Row)}
    for name in record:
        if name not in known:
            raise BadRecord(path, line, name, "is not a field of a result; was it written by a newer errata?")
    for name, f in known.items():
        if name not in record:
            if f.default is MISSING and f.default_factory is MISSING:
                raise BadRecord(path, line, name, "is missing")
        elif not _fits(name, record[name]):
            raise BadRecord(path, line, name, f"cannot be {record[name]!r}")
    return Row(**{**record, "options": methods.recorded(record["method"], record["options"])})


def read(path: Path) -> list[Row]:
    """The rows of a results file, or of the one in a directory. What was being written when a machine stopped is no row.

    Raises `UsageError` where there is none, `DamagedFile` for a line that is no JSON, `BadRecord` for one that is no
    row, `NewerFormat` for rows of a newer errata.
    """
    path = path / FILE if path.is_dir() else path
    try:
        content = path.read_bytes()
        text = content[: _whole(content)].decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return [_row(path, n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def kept(output: Path | None) -> list[Row]:
    """The rows of a directory that results are kept in; none where there are none yet.

    Raises `UsageError` where some are of an older protocol: their numbers are no part of what is measured now.
    """
    found = read(output) if output is not None and (output / FILE).exists() else []
    if older := {row.protocol for row in found} - {PROTOCOL}:
        raise UsageError(
            f"{output} has rows of protocol {min(older)}, and this errata measures by protocol {PROTOCOL}: give another"
            " --output"
        )
    return found


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a results file (or to that of a directory), which is made if need be; on disk on return.

    Raises `StoreError`, and leaves the file with the rows that it had.
    """
    lines = [json.dumps(row.to_record(), ensure_ascii=False, allow_nan=False, default=str) + "\n" for row in rows]
    _add(path if path.suffix == ".jsonl" else path / FILE, "".join(lines))


def ready(output: Path) -> None:
    """See to it that rows can be added in a directory, before any is measured. Raises `StoreError` as `append` does."""
    _add(output / FILE, "")


def _add(path: Path, lines: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            there = file.read()
            end = _whole(there)
            file.truncate(end)
            try:
                file.write(b"\n" * (end > 0 and there[end - 1 : end] != b"\n") + lines.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise StoreError(
            f"results cannot be written to {path}: {error.strerror or error}; the rows there before are kept"
        ) from None


def _whole(text: bytes) -> int:
    """The length of a results file without a line that was not written to its end."""
    end = text.rfind(b"\n") + 1
    try:
        json.loads(text[end:].decode() or "{}")
    except UnicodeDecodeError as error:  # in the middle of a character, or no text at all
        return end if error.reason == "unexpected end of data" else len(text)
    except ValueError:
        return end
    return len(text)


USUAL = {"seed": 0, "batch_size": 1, "chat": False}
"""What a label does not say, even where other rows are otherwise."""


def labels(rows: Sequence[Row]) -> list[str]:
    """A short name for each row: the method, and whatever else tells it from the others."""
    told = [_facts(row) for row in rows]
    return [row.method + _brackets(facts, told) for row, facts in zip(rows, told, strict=True)]


def one_by_one(rows: Sequence[Row]) -> Sequence[Row]:
    """Those of some rows whose edits were made one after another, as the papers' were, if there are any."""
    return [row for row in rows if row.batch_size == 1] or rows


def _facts(row: Row) -> dict[str, Any]:
    """What may tell rows of like T apart, beside the method; options are told apart within a method."""
    return {
        "model": row.model, "data": row.data, "seed": row.seed, "batch_size": row.batch_size, "chat": row.chat,
        **{f"{row.method} {name}": value for name, value in row.options.items()},
    }  # fmt: skip


def _brackets(facts: Mapping[str, Any], told: Sequence[Mapping[str, Any]]) -> str:
    unusual = {name: value for name, value in facts.items() if name not in USUAL or USUAL[name] != value}
    differing = {n: v for n, v in unusual.items() if any(n in other and other[n] != v for other in told)}
    said = [str(v) if n in ("model", "data") else f"{n.rpartition(' ')[2]}={v}" for n, v in differing.items()]
    return f" ({', '.join(said)})" if said else ""


def _row(path: Path, number: int, line: str) -> Row:
    try:
        record = json.loads(line, parse_constant=_no_number)
    except ValueError as error:
        raise DamagedFile(f"{path}:{number} is no JSON ({error}); remove the line to go on without it") from None
    if not isinstance(record, dict):
        raise BadRecord(path, number, None, f"is {record!r} where an object is expected")
    if isinstance(protocol := record.get("protocol"), int) and protocol > PROTOCOL:
        raise NewerFormat(f"{path}:{number} is of protocol {protocol}, and this errata knows {PROTOCOL}: update errata")
    return from_record(record, path, number)


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _fits(name: str, value: object) -> bool:
    """Whether a value is of the type of its field, as JSON has types."""
    kind = next(f.type for f in fields(Row) if f.name == name)
    if name == "scores":
        return isinstance(value, dict) and all(isinstance(triple, dict) for triple in value.values())
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, str):
        return isinstance(value, kind) and not isinstance(value, bool)
    if "Mapping" in str(kind):
        return isinstance(value, dict)
    if "Sequence" in str(kind):
        return isinstance(value, list)
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _finite(value: Any, place: str, nulls: dict[str, str], digits: int | None) -> Any:
    """A copy without NaN and infinity, which are told to `nulls`; floats rounded to `digits`."""
    if isinstance(value, float):
        if not math.isfinite(value):
            nulls[place] = str(value)
            return None
        return value if digits is None else round(value, digits)
    if isinstance(value, Mapping):
        return {str(name): _finite(inner, f"{place}.{name}", nulls, digits) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner, f"{place}[{i}]", nulls, digits) for i, inner in enumerate(value)]
    return value
