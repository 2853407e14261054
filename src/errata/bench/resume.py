"""Resume: how far a stream has come, kept beside the rows, so that a run that was killed goes on from there.

A stream is kept before it is measured and every few minutes: its model as any edited model is (`errata.checkpoint`), its
log, and what was found in the chunks before it. It goes when its rows are there.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from errata import checkpoint, disk
from errata.errors import ErrataError, StoreError
from errata.metrics import Measurement, OutOfDistribution, Perplexity, Triple
from errata.model import EditedModel

FOLDER, FILE = "unfinished", "stream.json"
EVERY = 120.0
"""Seconds between two times that a stream is kept ..."""
SHARE = 20
"""... but so many times as long as keeping it takes, at the least."""
WORTH = 10.0
"""Seconds of a stream that are worth keeping before it is measured."""


@dataclass
class Log:
    """What has happened in one stream so far."""

    done: int = 0
    """Edits that were made, failed ones included."""
    seconds: list[float] = field(default_factory=list)
    """Of each edit that could be made."""
    failed: list[str] = field(default_factory=list)
    """Ids of those that could not."""
    immediate: list[Mapping[str, float]] = field(default_factory=list)
    """Scores of each edit on its own prompt, right after it."""


class Sample(NamedTuple):
    """What was found at one checkpoint of one stream."""

    measured: Measurement
    seconds: float | None
    immediate: Mapping[str, float | None]
    failed: Sequence[str]
    memory_bytes: int
    millions: float
    """Weights of the edited matrices."""
    site: str | None

    @classmethod
    def read(cls, told: Sequence[Any]) -> Self:
        """A sample from the lists that JSON makes of it."""
        scores, by_kind, perplexity, scored, superseded, ood, *others = told[0]
        measured = Measurement(
            {name: Triple(*each) for name, each in scores.items()}, by_kind, Perplexity(*perplexity), scored, superseded,
            OutOfDistribution(*ood), *others,
        )  # fmt: skip
        return cls(measured, *told[1:])


Samples = dict[int, list[Sample]]
"""Checkpoint -> what was found there, chunk after chunk."""


class Told(NamedTuple):
    """What a file says of a run."""

    start: int
    """The edit that its stream begins at; -1 between two chunks."""
    log: Log
    samples: Samples
    model: str = ""
    """The sha256 of the manifest of the model that belongs to this log: one is written before the other."""

    @classmethod
    def read(cls, told: Any) -> Self:
        """What JSON says. Raises what comes of JSON that says something else."""
        samples = {int(t): [Sample.read(each) for each in found] for t, found in told["samples"].items()}
        return cls(told["start"], Log(**told["log"]), samples, told["model"])


class Unfinished:
    """What is kept of one run of one plan, in a directory of its own; nothing where results are not kept."""

    def __init__(self, output: Path | None, key: str) -> None:
        """`output` is where the results are kept, `key` what tells this run from others."""
        self.directory = None if output is None else output / FOLDER / key
        self._last = time.monotonic()
        self._due = self._last + EVERY
        self._found = self._read()

    @property
    def samples(self) -> Samples:
        """What was found in the chunks that were over."""
        return self._found.samples

    def resume(self, model: EditedModel, start: int, last: int) -> Log:
        """Bring a fresh model to where the stream that begins at edit `start` was kept, if after at most `last` edits.

        Returns its log, an empty one where nothing can be gone on from: that is no loss but of time.
        """
        told = self._found
        if self.directory is None or told.start != start or not 0 < told.log.done <= last:
            return Log()
        try:
            if checkpoint.read_manifest(self.directory)["sha256"] != told.model:
                return Log()
            checkpoint.restore(model, self.directory)
        except ErrataError:
            return Log()
        return told.log

    def keep(self, model: EditedModel, start: int, log: Log, samples: Samples, *, now: bool) -> None:
        """Keep a stream, if it is time, or `now` if that is worth it. Raises `StoreError` where the disk is full."""
        begun = time.monotonic()
        due = begun >= self._due or (now and begun - self._last >= WORTH)
        if self.directory is None or model.editor is None or not due:
            return
        self._write(Told(start, log, samples, checkpoint.save(model, self.directory)["sha256"]))
        self._last = time.monotonic()
        self._due = self._last + max(EVERY, SHARE * (self._last - begun))

    def next(self, samples: Samples) -> None:
        """A chunk is over, and the next one has not begun."""
        self._write(Told(-1, Log(), samples))

    def forget(self) -> None:
        """The rows are there."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
                self.directory.parent.rmdir()

    def _write(self, told: Told) -> None:
        if self.directory is None:
            return
        text = json.dumps(told._asdict() | {"log": asdict(told.log)}, default=dict)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            disk.replace_all(self.directory, {FILE: text.encode()})
        except OSError as error:
            raise StoreError(f"{self.directory} cannot be written: {error.strerror or error}") from None

    def _read(self) -> Told:
        """What was kept; nothing where there is nothing, or nothing that can be read."""
        nothing = Told(-1, Log(), {})
        try:
            return Told.read(json.loads((self.directory / FILE).read_bytes())) if self.directory else nothing
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return nothing
