"""Store: a directory of edits that one process writes to. Every edit is recorded, verified, and there to stay.

    errata.json, memories-*, edits-*, README.md     the newest checkpoint, as `save_pretrained` writes it
    ledger/events.sqlite                            what happened: `ledger.py`
    ledger/<sha256>.safetensors                     checkpoints, kept ever more sparsely the older they are
    ledger/head.json, ledger/lock                   how far the ledger reaches; who may write

An edit is acknowledged when `applied` is on the disk. What comes after the newest checkpoint is made again on opening,
to the same bits; so a process may be killed at any instant, and nothing that was acknowledged is lost.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import errata
from errata import checkpoint, disk, replay
from errata.data import jsonl
from errata.edit import Edit
from errata.editor import Receipt
from errata.errors import GateNotMet, StoreError, UsageError
from errata.gate import Gate, Watch
from errata.ledger import FOLDER, HEAD, Entry, Event, Hold, Ledger, exists
from errata.model import EditedModel
from errata.replay import How, Start
from errata.timeline import Timeline, applied, reverted
from errata.who import Who


class Reverted(NamedTuple):
    """What a revert did, or would do."""

    dropped: tuple[Edit, ...]
    restored: tuple[Edit, ...]
    revision: int
    how: How
    holding: tuple[int, int] | None = None
    """Of the edits in force after it, how many are answered with their target, and how many there are."""


class Store:
    """The edits of a directory, open for writing. A context manager; `model` answers, `edit` and `revert` change."""

    def __init__(self, directory: str | Path, model: EditedModel, *, gate: Gate | None = None) -> None:
        """Use `Store.open` for a directory that holds edits. This begins a new one, at its first edit."""
        self.directory, self.model, self.gate = Path(directory), model, gate or Gate()
        self.timeline = Timeline()
        self.notes: list[str] = []
        """What a person should know: damaged files that were not needed, a clock that went back."""
        self._ledger: Ledger | None = None
        self._hold: Hold | None = None
        self._watch: Watch | None = None
        self._damaged = False
        self._before_last: list[Start] = []

    @classmethod
    def open(cls, directory: str | Path, *, gate: Gate | None = None, **model: Any) -> Self:
        """Open a directory that holds edits; `model` is as for `EditedModel.from_pretrained`.

        Raises `StoreBusy` where another process writes to it, and whatever loading raises.
        """
        path = Path(directory)
        if not exists(path):
            checkpoint.read_manifest(path)
        hold = Hold(path)
        try:
            store = cls(path, EditedModel.from_pretrained(path, **model), gate=gate)
            store._hold = hold
            store._begin()
        except BaseException:
            hold.release()
            raise
        store.notes += store.model.notes
        store._damaged = bool(store.notes)
        return store

    # -- editing -----------------------------------------------------------------------------------------------------

    def edit(self, edit: Edit, who: Who | None = None) -> Receipt:
        """Make one correction, verify it and record it. It is there to stay when this returns.

        Raises `GateNotMet` for one that does not pass the gate; it is then rolled back and recorded as failed, as it is
        on any other failure. What cannot be asked for at all (`BadEdit`) is not recorded.
        """
        return self.edit_batch([edit], who)[0]

    def edit_batch(self, edits: Sequence[Edit], who: Who | None = None) -> list[Receipt]:
        """Corrections that are made together, by methods that can: all of them, or none."""
        model = self.model
        in_force = {edit.prompt: edit for edit in model.edits}
        wanted = {edit.id: edit for edit in edits if edit.prompt not in in_force or in_force[edit.prompt].id != edit.id}
        new = list(wanted.values())
        if not new:
            return model.edit_batch(edits)
        bodies = [self._asked(edit, who or Who()) for edit in new]
        model.asked(new)
        self._begin()
        first = self.ledger.events[-1].seq + 1
        made = self._record(
            *(Entry("requested", e.id, body | {"group": first}) for e, body in zip(new, bodies, strict=True))
        )
        requests = dict(zip((edit.id for edit in new), (event.seq for event in made), strict=True))
        held, history, batches, stream = model._tensors(), model.history, model.batches, self.timeline.stream()
        model.history, model.batches = list(history), list(batches)
        try:
            receipts = self._verified(new)
            self._record(*applied(self.timeline, new, [asdict(receipt) for receipt in receipts], requests))
        except BaseException as error:
            model._put_tensors(held)
            model.history, model.batches = history, batches
            reason = str(error) or type(error).__name__
            failed = [Entry("failed", edit_id, {"request": seq, "reason": reason}) for edit_id, seq in requests.items()]
            self._record_if_possible(failed)
            raise
        self._before_last = [Start(self.timeline.revision - 1, stream, lambda: replay.flat(held))]
        made = {receipt.edit_id: receipt for receipt in receipts}
        return [made[edit.id] if edit.id in made else model.edit(edit) for edit in edits]

    def _verified(self, edits: Sequence[Edit]) -> list[Receipt]:
        """Make edits that are not in force, and ask what became of them. Raises `GateNotMet`."""
        watch = self.watch
        before = watch.before(edits)
        receipts = self.model.edit_batch(edits)
        checks = watch.after(edits, before)
        for edit, check in zip(edits, checks, strict=True):
            problem = self.gate.problem(edit, check)
            if problem is not None:
                raise GateNotMet(f"the edit did not pass its gate and was rolled back: {problem}")
        revision = self.timeline.revision + 1
        return [replace(r, check=check, revision=revision) for r, check in zip(receipts, checks, strict=True)]

    @property
    def watch(self) -> Watch:
        """What asks the model before and after an edit."""
        self._watch = self._watch or Watch(self.model, self.gate)
        return self._watch

    def _asked(self, edit: Edit, who: Who) -> dict[str, Any]:
        model, settings = self.model, self.timeline.settings
        assert model.editor is not None
        return {
            "edit": jsonl.to_record(edit),
            "method": model.editor.name,
            "options": model.editor.options(),
            "seed": model.sampling.seed,
            "base": (settings or checkpoint.settings_of(model))["base"]["fingerprint"],
            "errata": errata.__version__,
        } | who.said(edit)

    # -- reverting ---------------------------------------------------------------------------------------------------

    def revert(self, drop: Collection[int], restore: Collection[int] = (), who: Who | None = None) -> Reverted:
        """Make the edits those of a stream without some requests (and with others): bit for bit, by the cheapest way.

        `Timeline.find`, `by` and `back_to` choose the requests. On any failure nothing is changed.
        """
        model, timeline = self.model, self.timeline
        if not drop and not restore:
            raise UsageError("there is nothing to revert: the edits are as they were then")
        self._begin()
        before = model._state()
        stream = timeline.stream((timeline.live - set(drop)) | set(restore))
        how = replay.bring(model, self.directory, timeline, stream, self._before_last)
        try:
            said = (who or Who()).said() | {"how": str(how)}
            self._record(*reverted(timeline, drop, restore, said))
        except BaseException:
            model._put_state(before)
            raise
        self._before_last = []
        self.notes += how.notes
        held = self.watch.holding(model.edits)
        edits = [tuple(timeline.requests[seq].edit for seq in sorted(chosen)) for chosen in (drop, restore)]
        return Reverted(edits[0], edits[1], timeline.revision, how, (sum(held), len(held)))

    # -- keeping -----------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Save the state, so that opening need not make edits again. Nothing acknowledged is lost where it fails.

        Raises `StoreError`, also where the model was edited or reverted past its store.
        """
        if self._ledger is None or self._is_saved():
            return
        recorded = replay.effective(self.timeline.edits(self.timeline.stream()))
        if self.model.history != [edit for group in recorded for edit in group]:
            raise StoreError(f"the model holds other edits than {self.directory} has recorded: edit with Store.edit")
        try:
            manifest = checkpoint.save(self.model, self.directory, recorded=True)
            (file,) = [name for name in manifest["files"] if name.endswith(".safetensors")]
            sha = manifest["files"][file]
            disk.link(self.directory / file, replay.blob_path(self.directory, sha))
        except (StoreError, OSError) as error:
            raise StoreError(f"{error}, and the ledger has every edit that was acknowledged") from error
        body = {"revision": self.timeline.revision, "sha256": sha, "prefixes": manifest["prefixes"]}
        self._record(Entry("checkpointed", None, body))
        try:
            disk.replace_all(self.directory / FOLDER, {HEAD: self.ledger.anchor()})
            self._prune()
            self._damaged = False
        except OSError as error:
            raise StoreError(
                f"{self.directory} cannot be written: {error.strerror or error}; nothing is lost"
            ) from error

    def _is_saved(self) -> bool:
        newest = self.timeline.saved[-1] if self.timeline.saved else None
        if newest is None or newest.revision != self.timeline.revision or self._damaged:
            return False
        return replay.blob_path(self.directory, newest.sha).exists()

    def _prune(self) -> None:
        """Of the checkpoints of each age, to a power of two, keep the oldest; and nothing that a killed process left."""
        kept: dict[int, str] = {}
        for saved in reversed(self.timeline.saved):
            kept[(self.timeline.revision - saved.revision).bit_length()] = saved.sha
        for path in (self.directory / FOLDER).iterdir():
            if path.suffix == ".tmp" or (path.suffix == ".safetensors" and path.stem not in kept.values()):
                path.unlink(missing_ok=True)

    @property
    def ledger(self) -> Ledger:
        """The ledger, which is there once the store was begun."""
        assert self._ledger is not None
        return self._ledger

    def _begin(self) -> None:
        """Open the ledger for writing; make it, with what the model holds already, where there is none."""
        if self._ledger is not None:
            return
        self._hold = self._hold or Hold(self.directory)
        self._ledger = Ledger(self.directory, write=True)
        self.timeline = Timeline(self._ledger.events)
        if self.timeline.settings is not None:
            if self.model.kept_in is None:
                raise StoreError(f"{self.directory} was begun by another process meanwhile; run this again")
            return
        self._record(Entry("begun", None, checkpoint.settings_of(self.model)), *self._adopted())
        self.model.kept_in = self.directory

    def take_over(self, events: Sequence[Event]) -> None:
        """Make a new store one with the ledger that these events are of, of which the model holds the state."""
        self._hold = Hold(self.directory)
        self._ledger = Ledger(self.directory, write=True)
        self._ledger.insert(events)
        self.timeline, self.model.kept_in = Timeline(events), self.directory

    def _adopted(self) -> list[Entry]:
        """The edits that were made before there was a ledger, as events that follow the first."""
        entries: list[Entry] = []
        for revision, group in enumerate(replay.groups_of(self.model), start=1):
            first = len(entries) + 2
            entries += [Entry("requested", e.id, self._asked(e, Who()) | {"group": first}) for e in group]
            body = {"revision": revision, "receipt": None}
            entries += [Entry("applied", e.id, body | {"request": first + i}) for i, e in enumerate(group)]
        return entries

    def _record(self, *entries: Entry) -> Any:
        made = self.ledger.append(*entries)
        for event in made:
            self.timeline.add(event)
        if self.ledger.note:
            self.notes.append(self.ledger.note)
        return made

    def _record_if_possible(self, entries: Sequence[Entry]) -> None:
        try:
            self._record(*entries)
        except StoreError as error:
            self.notes.append(str(error))

    def close(self) -> None:
        """Let go of the directory; what is acknowledged is in it."""
        if self._ledger is not None:
            self._ledger.close()
        if self._hold is not None:
            self._hold.release()
        self._ledger = self._hold = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
