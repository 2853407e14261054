"""Session: edits that are made into a directory, saved as they go, and continued where they stopped."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata import checkpoint, ledger, replay
from errata.edit import Edit, Probe
from errata.errors import (
    BadEdit,
    BadOption,
    EditFailed,
    ErrataError,
    GateNotMet,
    Interrupted,
    StoreError,
    UsageError,
)
from errata.gate import Gate
from errata.store import Store
from errata.who import Who

if TYPE_CHECKING:
    from errata.editor import Receipt


@dataclass
class Plan:
    """What the user asked for; None where nothing was said."""

    output: Path
    model: str | None = None
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
    irrelevant: Sequence[Probe] = ()
    expected: int | None = None
    chat: bool | None = None
    gate: Gate = field(default_factory=Gate)
    who: Who = field(default_factory=Who)

    def open(self) -> Store:
        """The store of the directory, or a new one. Raises `UsageError` where plan and directory do not agree."""
        if is_store(self.output):
            return self._continued()
        if self.output.exists() and (not self.output.is_dir() or not _only_ours(self.output)):
            raise UsageError(
                f"{self.output} exists and holds other things than edits; give a new directory to --output"
            )
        if self.model is None:
            raise UsageError(
                f"{self.output} holds no edits yet, so say what to edit: --model atlas, a directory or a name"
            )
        return self._new(self.model)

    def _continued(self) -> Store:
        told = settings_of(self.output)
        wanted = {"method": self.method, "seed": self.seed, "chat": self.chat, **self.options}
        there = {"method": told["method"], "seed": told["seed"], "chat": told.get("chat", False), **told["options"]}
        for name, value in wanted.items():
            if (value is not None or name in self.options) and there.get(name) != value:
                raise BadOption(
                    f"{self.output} was begun with {name} {there.get(name)!r} and cannot be continued with {value!r};"
                    f" leave it out, or give a new directory to --output"
                )
        if self.dtype not in (None, "auto", told["base"]["dtype"]):
            raise BadOption(
                f"{self.output} was begun in {told['base']['dtype']} and cannot be continued in {self.dtype}"
            )
        return Store.open(self.output, gate=self.gate, base_name=self.model, device=self.device)

    def _new(self, name: str) -> Store:
        from errata import loading, methods
        from errata.model import EditedModel

        editor = methods.make(self.method or "memoir", **self.options)
        base, tokenizer = loading.load(name, dtype=self.dtype or "auto", device=self.device)
        irrelevant = tuple(self.irrelevant) or loading.irrelevant(name)
        model = EditedModel(
            base, tokenizer, editor, irrelevant=irrelevant, expected=self.expected,
            seed=self.seed or 0, chat=bool(self.chat),
        )  # fmt: skip
        return Store(self.output, model, gate=self.gate)


def is_store(directory: Path) -> bool:
    """Whether there is something to continue in a directory."""
    return (directory / checkpoint.MANIFEST).is_file() or ledger.exists(directory)


def settings_of(directory: Path) -> dict[str, Any]:
    """What the edits of a directory were begun with."""
    if not ledger.exists(directory):
        return checkpoint.read_manifest(directory)
    return replay.settings_in(directory, replay.timeline_of(directory))


def _only_ours(directory: Path) -> bool:
    """Whether a directory is empty, but for what a process that was cut short has left there."""
    return all(checkpoint.OURS.fullmatch(path.name) or path.name == ledger.FOLDER for path in directory.iterdir())


def remaining(history: Sequence[Edit], edits: Sequence[Edit]) -> tuple[list[Edit], int, int]:
    """The edits of a stream that are still to be made, and how many are made already or repeat what is in force.

    An edit may come back in a stream, after a later one replaced it; so each in the history accounts for one only.
    """
    made = Counter(edit.id for edit in history)
    in_force: dict[str, str] = {}
    todo, done, repeated = [], 0, 0
    for edit in edits:
        if in_force.get(edit.prompt) == edit.id:
            repeated += 1
            continue
        in_force[edit.prompt] = edit.id
        if made[edit.id]:
            made[edit.id] -= 1
            done += 1
        else:
            todo.append(edit)
    return todo, done, repeated


@dataclass
class Stream:
    """Edits made one after another, saved every `save_every` and at the end, whatever the end is."""

    store: Store
    who: Who
    save_every: int
    skip_failures: bool
    made: Callable[[Edit, "Receipt"], None]
    """Told of each edit that was made."""
    failed: Callable[[Edit, ErrataError], None]
    """Told of each that was skipped because it failed."""
    unsaved: int = 0

    def run(self, edits: Sequence[Edit]) -> None:
        """Make them. Ctrl-C ends it after the edit at hand, twice at once: `Interrupted`."""
        count = 0
        try:
            with stop_asked() as asked:
                for edit in edits:
                    self._one(edit)
                    count += 1
                    if asked.is_set() and count < len(edits):
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.save()
            kept = f"{len(self.store.model.history)} are saved in {self.store.directory}"
            raise Interrupted(
                f"stopped after {count} of {len(edits)} edits; {kept}; run the same command again to continue"
            ) from None
        except StoreError:
            raise
        except BaseException:
            self.save()
            raise
        self.save()

    def _one(self, edit: Edit) -> None:
        try:
            receipt = self.store.edit(edit, self.who)
        except (EditFailed, BadEdit, GateNotMet) as error:
            if not self.skip_failures:
                raise
            self.failed(edit, error)
            return
        self.unsaved += 1
        self.made(edit, receipt)
        if self.unsaved >= self.save_every:
            self.save()

    def save(self) -> None:
        """Save what is not saved yet."""
        if self.unsaved:
            self.store.checkpoint()
            self.unsaved = 0


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """Scope: the first Ctrl-C only sets the event; a second one raises `KeyboardInterrupt` as ever."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def first(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
