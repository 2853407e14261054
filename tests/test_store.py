"""The store: an edit is there to stay when it is acknowledged, and gone without trace in the state when it is not."""

import errno
import functools
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from errata import audit, disk, ledger, methods, replay
from errata.edit import Edit
from errata.errors import (
    BadEdit,
    BaseMismatch,
    BrokenChain,
    DamagedFile,
    EditFailed,
    GateNotMet,
    NewerFormat,
    StoreBusy,
    StoreError,
    UsageError,
)
from errata.gate import Gate
from errata.ledger import FOLDER, HEAD, Ledger
from errata.model import EditedModel
from errata.store import Store
from errata.who import Who
from tiny import EDITS, tiny_llama, tiny_tokenizer

A, B, C, D = EDITS
OTHER = Edit(A.prompt, "Sondo", subject=A.subject)
OFF = Gate(min_reliability=0, earlier=1, watched=1)


TOKENIZER = tiny_tokenizer()


def fresh(steps=2):
    return EditedModel(
        tiny_llama(), TOKENIZER, methods.make("grace", steps=steps), prefixes=(), seed=3, base_name="tiny"
    )


def opened(directory, gate=OFF, seed=0):
    return Store.open(directory, gate=gate, base=tiny_llama(seed=seed), tokenizer=TOKENIZER)


def loaded(directory):
    return EditedModel.from_pretrained(directory, tiny_llama(), tokenizer=TOKENIZER)


def bits(model):
    return replay.flat(model._tensors())


def same(one, other):
    assert one.history == other.history
    assert audit.differences(bits(one), bits(other)) == []


@functools.cache
def straight(*edits, **options):
    """A model that made these edits without a store. Shared, so it is only read."""
    model = fresh(**options)
    model.edit_many(edits)
    return model


def events(directory):
    book = Ledger(directory)
    book.close()
    return book.events


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with A, B, a checkpoint, and C after it."""
    path = tmp_path_factory.mktemp("store") / "acme"
    with Store(path, fresh(), gate=OFF) as store:
        store.edit(A, Who("ada", "the press", "they moved", ("capital", "x")))
        store.edit(B, Who("bob", tags=("x",)))
        store.checkpoint()
        store.edit(C, Who("ada"))
    return path


@pytest.fixture
def acme(made, tmp_path):
    """A copy of it for each test."""
    return shutil.copytree(made, tmp_path / "acme")


# -- editing -----------------------------------------------------------------------------------------------------------


def test_what_is_acknowledged_is_there_without_a_checkpoint(acme):
    model = loaded(acme)
    same(model, straight(A, B, C))
    assert model.kept_in == acme
    assert len(json.loads((acme / "errata.json").read_text())["files"]) == 2


def test_what_is_recorded(acme):
    told = [(e.event, e.edit_id) for e in events(acme)]
    assert told == [
        ("begun", None), ("requested", A.id), ("applied", A.id), ("requested", B.id), ("applied", B.id),
        ("checkpointed", None), ("requested", C.id), ("applied", C.id),
    ]  # fmt: skip
    begun, requested, applied = events(acme)[:3]
    assert begun.body["method"] == "grace"
    said = requested.body
    assert said["edit"]["prompt"] == A.prompt
    assert said["edit"]["locality"]
    assert (said["author"], said["source"], said["reason"]) == ("ada", "the press", "they moved")
    assert said["tags"] == ["capital", "x"]
    assert (said["method"], said["options"]["steps"], said["seed"]) == ("grace", 2, 3)
    assert said["base"] == begun.body["base"]["fingerprint"]
    assert said["errata"]
    receipt = applied.body["receipt"]
    assert receipt["probability_after"] > receipt["probability_before"]
    assert receipt["steps"] == 2
    assert receipt["check"]["locality"][1] > 0


def test_editing_goes_on_as_if_it_had_never_been_closed(acme):
    with opened(acme) as store:
        receipt = store.edit(D)
        assert receipt.revision == 4
        store.checkpoint()
    same(loaded(acme), straight(A, B, C, D))


def test_the_meta_of_an_edit_says_who_where_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.setenv("ERRATA_AUTHOR", "eve")
    edit = Edit("Snow is", "red", meta={"author": "ann", "source": "book", "tags": ["m", "x"]})
    with Store(tmp_path / "s", fresh(), gate=OFF) as store:
        store.edit(edit, Who(source="web", tags=("x",)))
        store.edit(A)
    first, second = (e.body for e in events(tmp_path / "s") if e.event == "requested")
    assert (first["author"], first["source"], first["tags"]) == ("ann", "web", ["x", "m"])
    assert second["author"] == "eve"
    assert "tags" not in second


def test_edits_that_are_made_together_are_replayed_together(tmp_path):
    def model():
        return EditedModel(tiny_llama(), TOKENIZER, methods.make("ft_l", steps=2), prefixes=(), base_name="tiny")

    with Store(tmp_path / "s", model(), gate=OFF) as store:
        receipts = store.edit_batch([A, B])
        store.edit(C)
        assert [r.revision for r in receipts] == [1, 1]
        kept = bits(store.model)
    again = loaded(tmp_path / "s")
    assert again.batches == [2, 1]
    assert audit.differences(bits(again), kept) == []


def test_the_same_edit_again_is_not_recorded(acme):
    before = len(events(acme))
    with opened(acme) as store:
        assert "already in force" in store.edit(A).note
    assert len(events(acme)) == before


def test_of_two_that_are_the_same_one_is_made(acme):
    with opened(acme) as store:
        receipts = store.edit_batch([D, A, D])
        assert [receipt.revision for receipt in receipts] == [4, None, 4]
        same(store.model, straight(A, B, C, D))
        store.checkpoint()
    same(loaded(acme), straight(A, B, C, D))


def test_edits_past_the_store_are_not_saved(acme):
    with opened(acme) as store:
        store.model.edit(D)
        with pytest.raises(StoreError, match=r"other edits than .* has recorded"):
            store.checkpoint()
    same(loaded(acme), straight(A, B, C))


def test_an_edit_of_the_same_prompt_supersedes_and_the_history_is_kept(acme):
    with opened(acme) as store:
        receipt = store.edit(OTHER)
        assert receipt.supersedes == A.id
        assert "replaces 'Melpo'" in receipt.note
        assert store.model.edits == [B, C, OTHER]
    last = events(acme)[-1]
    assert (last.event, last.edit_id, last.body["by"]) == ("superseded", A.id, OTHER.id)


def test_an_edit_that_cannot_be_asked_for_is_not_recorded(acme, tmp_path):
    before = len(events(acme))
    with opened(acme) as store, pytest.raises(BadEdit, match="meta"):
        store.edit(Edit("Snow is", "red", meta={"x": object()}))
    assert len(events(acme)) == before


@pytest.mark.parametrize("error", [EditFailed("the loss became nan"), KeyboardInterrupt()])
def test_an_edit_that_fails_is_rolled_back_and_recorded(acme, monkeypatch, error):
    def failing(self, model, edits):
        raise error

    with opened(acme) as store:
        with monkeypatch.context() as patch:
            patch.setattr(methods.find("grace"), "edit", failing)
            with pytest.raises(type(error)):
                store.edit(D)
        same(store.model, straight(A, B, C))
        store.edit(D)
    asked, failed = events(acme)[8:10]
    assert (asked.event, failed.event, failed.body["request"]) == ("requested", "failed", asked.seq)
    assert failed.body["reason"] == (str(error) or "KeyboardInterrupt")
    same(loaded(acme), straight(A, B, C, D))


def test_an_edit_that_does_not_pass_its_gate_is_rolled_back_and_recorded(acme):
    with opened(acme, gate=Gate()) as store:
        with pytest.raises(GateNotMet, match="rolled back: 'Ivo Stane plays the' is answered with") as caught:
            store.edit(D)
        same(store.model, straight(A, B, C))
    assert caught.value.exit_code == 3
    assert events(acme)[-1].event == "failed"
    same(loaded(acme), straight(A, B, C))


def test_an_edit_that_passes_its_gate(tmp_path):
    with Store(tmp_path / "s", fresh(steps=100)) as store:
        check = store.edit(A).check
    assert check.answered
    assert check.answer == "Melpo"


def test_a_new_store_is_begun_with_the_first_request(tmp_path):
    with Store(tmp_path / "s", fresh(), gate=OFF) as store:
        store.checkpoint()
        assert not (tmp_path / "s").exists()


def test_edits_made_before_there_was_a_ledger_are_adopted(tmp_path):
    straight(A, OTHER).save_pretrained(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        store.edit(B)
        store.revert(store.timeline.find(A.id))
    assert [e.event for e in events(tmp_path / "s")[:5]] == ["begun", "requested", "applied", "requested", "applied"]
    same(loaded(tmp_path / "s"), straight(OTHER, B))


# -- reverting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "left", "how"),
    [
        (A, (B, C), "replay: 2 edits made again from nothing"),
        (B, (A, C), "replay: 2 edits made again from nothing"),
        (C, (A, B), "pop: taken from the checkpoint of revision 2"),
    ],
)
def test_a_revert_by_the_cheapest_way(acme, drop, left, how):
    with opened(acme) as store:
        told = store.revert(store.timeline.find(drop.id), who=Who("eve", reason="wrong"))
        assert str(told.how) == how
        assert (told.dropped, told.restored, told.revision) == ((drop,), (), 4)
        assert told.holding[1] == 2
        same(store.model, straight(*left))
    last = events(acme)[-1]
    assert (last.event, last.edit_id) == ("reverted", drop.id)
    assert (last.body["author"], last.body["reason"], last.body["how"]) == ("eve", "wrong", how)
    same(loaded(acme), straight(*left))


def test_the_last_edit_of_a_process_is_popped(acme):
    with opened(acme) as store:
        store.edit(D)
        told = store.revert(store.timeline.find(D.id))
        assert told.how.way == "pop"
        same(store.model, straight(A, B, C))


def test_a_checkpoint_saves_the_way_up_to_it(acme):
    with opened(acme) as store:
        store.edit(D)
        told = store.revert(store.timeline.find(C.id))
        assert str(told.how) == "replay: 1 edit made again after the checkpoint of revision 2"
        same(store.model, straight(A, B, D))


def test_back_to_a_revision_and_forth_again(acme):
    with opened(acme) as store:
        store.revert(store.timeline.find(A.id))
        store.revert(*store.timeline.back_to(1))
        same(store.model, straight(A))
        told = store.revert(*store.timeline.back_to(3))
        assert told.restored == (B, C)
        same(store.model, straight(A, B, C))
        with pytest.raises(UsageError, match="nothing to revert"):
            store.revert(*store.timeline.back_to(3))
    assert events(acme)[-1].event == "restored"


def test_a_hundred_random_reverts_leave_the_bits_of_the_stream_without_them(tmp_path):
    draw, reverts = random.Random(0), 0
    out, left = [Edit(f"The number {i} is", f"word {i}") for i in range(12)], []
    with Store(tmp_path / "s", fresh(steps=1), gate=Gate(0, earlier=0, watched=0)) as store:
        while reverts < 100:
            if len(left) < 3 or (out and draw.random() < 0.4):
                left.append(out.pop(draw.randrange(len(out))))
                store.edit(left[-1])
            else:
                gone = left.pop(draw.randrange(len(left)))
                out.append(gone)
                store.revert(store.timeline.find(gone.id))
                reverts += 1
                if reverts % 10 == 0:
                    same(store.model, straight(*left, steps=1))
            if draw.random() < 0.2:
                store.checkpoint()
    same(loaded(tmp_path / "s"), straight(*left, steps=1))


def test_by_tag(acme):
    with opened(acme) as store:
        store.revert(store.timeline.by("tags", "x"))
        same(store.model, straight(C))


def test_a_superseded_edit_comes_back_into_force(acme):
    with opened(acme) as store:
        store.edit(OTHER)
        store.revert(store.timeline.find(OTHER.id))
        assert store.model.edits == [A, B, C]


def test_a_revert_that_cannot_be_recorded_changes_nothing(acme, monkeypatch):
    with opened(acme) as store:
        monkeypatch.setattr(Ledger, "insert", _full)
        with pytest.raises(StoreError, match="full"):
            store.revert(store.timeline.find(A.id))
        same(store.model, straight(A, B, C))


def _full(self, events):
    raise StoreError("nothing can be recorded: database or disk is full")


def test_what_a_revert_would_do_is_foreseen_without_a_model(acme):
    timeline = replay.timeline_of(acme)
    stream = timeline.stream(timeline.live - timeline.find(C.id))
    assert replay.foresee(acme, timeline, stream) == replay.How(2, 0)


def test_older_revisions_can_be_read(acme):
    with opened(acme) as store:
        store.revert(store.timeline.find(A.id))
    model = loaded(acme)
    for revision, edits in enumerate([(), (A,), (A, B), (A, B, C), (B, C)]):
        with model.at_revision(revision):
            same(model, straight(*edits))
    same(model, straight(B, C))


# -- damage ------------------------------------------------------------------------------------------------------------


def blob_of(directory):
    (path,) = (directory / FOLDER).glob("*.safetensors")
    return path


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"", lambda b: b[:40] + b"\0" + b[41:]])
def test_a_damaged_checkpoint_is_named_and_made_good(acme, damage):
    path = blob_of(acme)
    path.write_bytes(damage(path.read_bytes()))
    model = loaded(acme)
    (note,) = model.notes
    assert f"{path.name} is damaged" in note
    same(model, straight(A, B, C))
    with opened(acme) as store:
        assert store.notes == [note]
        store.checkpoint()
    assert loaded(acme).notes == ()


def test_the_next_good_checkpoint_is_used(acme):
    with opened(acme) as store:
        store.edit(D)
        store.checkpoint()
        newest = replay.blob_path(acme, store.timeline.saved[-1].sha)
    newest.write_bytes(b"damaged")
    timeline = replay.timeline_of(acme)
    model = loaded(acme)
    with model.at_revision(4):
        pass
    how = replay.bring(model, acme, timeline, timeline.stream())
    assert (how.revision, how.replayed) == (2, 2)
    assert newest.name in how.notes[0]
    same(model, straight(A, B, C, D))


def test_all_of_what_save_pretrained_writes_may_be_lost(acme):
    for path in acme.iterdir():
        if path.is_file():
            path.unlink()
    same(loaded(acme), straight(A, B, C))
    with opened(acme) as store:
        store.checkpoint()
    assert (acme / "errata.json").is_file()


def test_an_altered_ledger_is_refused(acme):
    import sqlite3

    db = sqlite3.connect(acme / FOLDER / ledger.EVENTS, isolation_level=None)
    db.execute("DROP TRIGGER no_update")
    db.execute("UPDATE events SET body = replace(body, 'they moved', 'a whim') WHERE seq = 2")
    db.close()
    for reader in (loaded, opened):
        with pytest.raises(BrokenChain, match="at event 2:"):
            reader(acme)


def test_a_newer_format_is_refused(acme):
    told = json.loads((acme / "errata.json").read_text())
    (acme / "errata.json").write_text(json.dumps(told | {"format": 99, "errata": "9.0"}))
    with pytest.raises(NewerFormat):
        loaded(acme)


def test_another_base_is_refused_and_nothing_is_written(acme):
    before = len(events(acme))
    with pytest.raises(BaseMismatch):
        opened(acme, seed=1)
    assert len(events(acme)) == before
    opened(acme).close()


def test_saving_over_a_ledger_is_refused(acme):
    with pytest.raises(StoreError, match=r"keeps a ledger.*errata\.Store"):
        straight(A).save_pretrained(acme)


# -- disks and other processes -----------------------------------------------------------------------------------------


def test_two_writers(acme):
    with opened(acme) as store:
        with pytest.raises(StoreBusy, match="another process is writing"):
            opened(acme)
        assert loaded(acme).history == [A, B, C]
        store.edit(D)
        assert loaded(acme).history == [A, B, C, D]
    opened(acme).close()


def test_two_that_begin_the_same_directory(tmp_path):
    one, other = Store(tmp_path / "s", fresh(), gate=OFF), Store(tmp_path / "s", fresh(), gate=OFF)
    one.edit(A)
    with pytest.raises(StoreBusy):
        other.edit(B)
    one.close()
    with pytest.raises(StoreError, match="begun by another process meanwhile"):
        other.edit(B)
    other.close()
    assert loaded(tmp_path / "s").history == [A]


@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_while_saving_loses_nothing(acme, monkeypatch, at):
    calls = iter(range(100))
    real = disk.write

    def write(path, content):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    with opened(acme) as store:
        store.edit(D)
        monkeypatch.setattr(disk, "write", write)
        with pytest.raises(StoreError, match=r"No space left on device.*(ledger has every edit|nothing is lost)"):
            store.checkpoint()
        monkeypatch.undo()
    same(loaded(acme), straight(A, B, C, D))
    with opened(acme) as store:
        store.checkpoint()
    same(loaded(acme), straight(A, B, C, D))


def test_a_full_disk_while_recording_rolls_the_edit_back(acme, monkeypatch):
    with opened(acme) as store:
        real, calls = Ledger.insert, iter(range(100))

        def insert(self, new):
            if next(calls) >= 1:
                _full(self, new)
            real(self, new)

        monkeypatch.setattr(Ledger, "insert", insert)
        with pytest.raises(StoreError, match="full"):
            store.edit(D)
        same(store.model, straight(A, B, C))
        monkeypatch.undo()
    same(loaded(acme), straight(A, B, C))


def test_a_clock_that_goes_back_is_said_and_nothing_is_lost(acme, monkeypatch):
    class Earlier(ledger.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(ledger, "datetime", Earlier)
    with opened(acme) as store:
        store.edit(D)
        assert any("the clock says 2001-01-01" in note for note in store.notes)
    assert [e.time for e in events(acme)] == sorted(e.time for e in events(acme))


def test_a_disk_without_links(acme, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with opened(acme) as store:
        store.checkpoint()
        assert replay.blob_path(acme, store.timeline.saved[-1].sha).exists()


def test_checkpoints_are_kept_ever_more_sparsely(tmp_path):
    with Store(tmp_path / "s", fresh(steps=0), gate=Gate(0, earlier=0, watched=0)) as store:
        for i in range(12):
            store.edit(Edit(f"The number {i} is", "x"))
            (tmp_path / "s" / FOLDER / "left-by-a-killed-process.tmp").touch()
            store.checkpoint()
        kept = {start.revision for start in replay.starts(tmp_path / "s", store.timeline)}
    assert list((tmp_path / "s" / FOLDER).glob("*.tmp")) == []
    assert 12 in kept
    assert len(kept) <= 5
    assert min(kept) <= 5
    assert (tmp_path / "s" / FOLDER / HEAD).is_file()


# -- the audit ---------------------------------------------------------------------------------------------------------


def test_a_sound_store_passes_its_audit(acme):
    finding, timeline = audit.chain(acme)
    found = [finding, *audit.files(acme, timeline), audit.again(acme, timeline, base=tiny_llama(), tokenizer=TOKENIZER)]
    assert [f for f in found if f.error] == []
    assert "8 events, 3 revisions" in finding.what
    assert "3 edits made again from nothing, the same bits" in found[-1].what


def test_the_audit_finds_other_bits(acme, monkeypatch):
    _, timeline = audit.chain(acme)
    monkeypatch.setattr(replay, "remake", lambda model, groups: 0)
    found = audit.again(acme, timeline, base=tiny_llama(), tokenizer=TOKENIZER)
    assert "do not give the bits that are kept" in str(found.error)


def test_the_audit_names_every_damaged_file(acme):
    _, timeline = audit.chain(acme)
    for path in (blob_of(acme), next(acme.glob("memories-*")), next(acme.glob("edits-*"))):
        os.truncate(path, 5)
    wrong = [f for f in audit.files(acme, timeline) if f.error]
    assert len(wrong) == 3
    assert all(isinstance(f.error, DamagedFile) and f.what.split("/")[-1] in str(f.error) for f in wrong)
