"""Checkpoint: what is saved comes back bit for bit, and nothing that happens while saving loses what was there."""

import errno
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata import checkpoint, disk, loading, methods
from errata.edit import Edit, Probe
from errata.editor import Editor
from errata.errors import (
    BadOption,
    BaseMismatch,
    DamagedFile,
    ErrataError,
    MissingExtra,
    NewerFormat,
    StoreError,
    UsageError,
)
from errata.fingerprint import fingerprint
from errata.model import EditedModel
from tiny import EDITS, tiny_llama, tiny_tokenizer, write_tiny

PREFIXES = ("I think so.", "You are right.")
PROMPTS = [edit.prompt for edit in EDITS] + ["Snow is", "Water boils at"]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    """A tiny base model as a directory."""
    path = tmp_path_factory.mktemp("base") / "tiny"
    return write_tiny(path)


def edited(base_dir, method="grace", edits=EDITS[:2], **options):
    """A model with edits. Skips the test where a package that the method needs is missing."""
    base, tokenizer = loading.load(str(base_dir))
    try:
        model = EditedModel(base, tokenizer, methods.make(method, **options), prefixes=PREFIXES, seed=3, expected=7)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    for edit in edits:
        model.edit(edit)
    return model


@pytest.fixture(scope="module")
def two_edits(base_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "edits"
    edited(base_dir, steps=3).save_pretrained(path)
    return path


@pytest.fixture
def saved(two_edits, tmp_path):
    """A directory with two GRACE edits, a copy for each test."""
    return shutil.copytree(two_edits, tmp_path / "edits")


@torch.no_grad()
def logits(model):
    ids, attention = model.tokens.prompts(PROMPTS)
    return model(input_ids=ids, attention_mask=attention).logits


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", methods.names())
def test_the_same_logits_bit_for_bit(method, base_dir, tmp_path):
    model = edited(base_dir, method)
    model.save_pretrained(tmp_path / "edits")
    again = EditedModel.from_pretrained(tmp_path / "edits")
    assert torch.equal(logits(again), logits(model))
    assert again.history == model.history
    assert again.answer(PROMPTS, 4) == model.answer(PROMPTS, 4)


@pytest.mark.parametrize("method", methods.names())
def test_editing_goes_on_as_if_never_saved(method, base_dir, tmp_path):
    model = edited(base_dir, method)
    model.save_pretrained(tmp_path / "edits")
    again = EditedModel.from_pretrained(tmp_path / "edits")
    for each in (model, again):
        each.edit(EDITS[2])
    assert torch.equal(logits(again), logits(model))


def test_all_that_an_editor_plans_by_is_kept(base_dir, saved):
    again = EditedModel.from_pretrained(saved)
    assert again.editor == methods.make("grace", steps=3)
    assert again.sampling.prefixes == PREFIXES
    assert (again.sampling.seed, again.expected) == (3, 7)
    assert again.sampling.irrelevant == edited(base_dir, edits=[]).sampling.irrelevant
    assert again.base_name == str(base_dir.resolve())


def test_an_option_that_was_not_there_when_a_model_was_saved_means_what_it_did_then(base_dir, tmp_path, monkeypatch):
    """MEMOIR has come to protect earlier edits; a model that was edited without goes on without."""
    model = edited(base_dir, "memoir", protect=0.0, faint=1.0, steps=3)
    known = model.editor.options()
    monkeypatch.setattr(
        model.editor, "options", lambda: {name: known[name] for name in known.keys() - {"protect", "faint", "size"}}
    )
    model.save_pretrained(tmp_path)
    assert EditedModel.from_pretrained(tmp_path).editor == methods.make("memoir", protect=0.0, faint=1.0, steps=3)


def test_an_edit_comes_back_with_everything(base_dir, tmp_path):
    edit = Edit(
        'A "quoted"\nprompt, é\u2028 is', "ünïcode 東京", locality=(Probe("a", "b", "far"), Probe("c")), rephrases=("so?",),
        portability=(Probe("d", "e"),), target_old="old", meta={"author": "me", "tags": ["x"]},
    )  # fmt: skip
    edited(base_dir, edits=[edit], steps=1).save_pretrained(tmp_path / "edits")
    (again,) = EditedModel.from_pretrained(tmp_path / "edits").history
    assert again == edit
    assert again.id == edit.id
    assert dict(again.meta) == dict(edit.meta)


def test_a_model_without_edits_is_saved_too(base_dir, tmp_path):
    model = edited(base_dir, edits=[])
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(EditedModel.from_pretrained(tmp_path)), logits(model))


def test_a_base_in_memory_may_be_given(saved):
    again = EditedModel.from_pretrained(saved, tiny_llama(), tokenizer=tiny_tokenizer())
    assert torch.equal(logits(again), logits(EditedModel.from_pretrained(saved)))
    with pytest.raises(BadOption, match="tokenizer"):
        EditedModel.from_pretrained(saved, tiny_llama())


def test_a_base_that_moved_is_found_by_its_new_name(saved, base_dir, tmp_path):
    moved = shutil.copytree(base_dir, tmp_path / "moved")
    again = EditedModel.from_pretrained(saved, base_name=str(moved))
    assert again.base_name == str(moved.resolve())


def test_a_base_in_memory_without_a_name_says_what_to_do(tmp_path):
    model = EditedModel(tiny_llama(), tiny_tokenizer(), methods.make("grace", steps=1), prefixes=())
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="name of its base"):
        EditedModel.from_pretrained(tmp_path)


def test_a_model_without_a_method_has_nothing_to_save(tmp_path):
    with pytest.raises(BadOption, match="no editing method"):
        EditedModel(tiny_llama(), tiny_tokenizer()).save_pretrained(tmp_path / "edits")
    assert not (tmp_path / "edits").exists()


def test_saving_twice_leaves_only_the_newest_files(saved):
    model = EditedModel.from_pretrained(saved)
    model.edit(EDITS[2])
    model.save_pretrained(saved)
    names = sorted(contents(saved))
    assert len(names) == 4
    assert set(json.loads((saved / "errata.json").read_text())["files"]) < set(names)


def test_other_files_of_the_directory_are_left_alone(saved):
    for name in ("notes.txt", "memories-mine.safetensors", "edits.jsonl"):
        (saved / name).write_text("mine")
    EditedModel.from_pretrained(saved).save_pretrained(saved)
    assert {"notes.txt", "memories-mine.safetensors", "edits.jsonl"} < set(contents(saved))


def test_saving_what_was_loaded_gives_the_same_files(saved):
    before = contents(saved)
    EditedModel.from_pretrained(saved).save_pretrained(saved)
    assert contents(saved) == before


def test_the_model_card_says_what_it_is_and_is_not(saved, base_dir):
    card = (saved / "README.md").read_text()
    assert "2 corrections" in card
    assert str(base_dir) in card
    assert "not unlearning" in card


# -- the fingerprint ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_with_and_without_edits(base_dir):
    model = edited(base_dir)
    with model.lifted() as base:
        assert fingerprint(base) == fingerprint(tiny_llama())


def test_the_fingerprint_tells_models_apart():
    model = tiny_llama()
    first = fingerprint(model)
    assert first != fingerprint(tiny_llama(seed=1))
    assert first != fingerprint(tiny_llama(layers=2))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert first != fingerprint(model)


def test_the_fingerprint_does_not_depend_on_where_the_model_is():
    model = tiny_llama()
    first = fingerprint(model)
    model.config._name_or_path = "elsewhere"
    model.config.transformers_version = "6"
    assert fingerprint(model) == first


def test_parameters_on_meta_count_by_name_and_shape():
    assert fingerprint(tiny_llama().to("meta")) == fingerprint(tiny_llama(seed=1).to("meta"))


def test_another_base_is_refused_by_name(saved, tmp_path):
    other = tmp_path / "other"
    write_tiny(other, seed=1)
    with pytest.raises(BaseMismatch) as caught:
        EditedModel.from_pretrained(saved, base_name=str(other))
    assert "tiny" in str(caught.value)
    assert "other" in str(caught.value)


# -- damage ------------------------------------------------------------------------------------------------------------


def altered(directory, remove=(), **entries):
    """Let `errata.json` say something else, as if it had been written so."""
    path = directory / "errata.json"
    said = {entry: value for entry, value in json.loads(path.read_text()).items() if entry not in remove} | entries
    path.write_text(json.dumps(said | {"sha256": checkpoint.sealed(said)}))


def the(directory, pattern):
    (path,) = directory.glob(pattern)
    return path


@pytest.mark.parametrize("pattern", ["memories-*", "edits-*"])
@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"", lambda b: b[:40] + b"\0" + b[41:], None])
def test_a_damaged_file_is_named(saved, pattern, damage):
    path = the(saved, pattern)
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    with pytest.raises(DamagedFile, match=path.name):
        EditedModel.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', '{"format": "x"}', "\0\xff"])
def test_a_damaged_manifest_is_named(saved, text):
    (saved / "errata.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFile, match=r"errata\.json"):
        EditedModel.from_pretrained(saved)


def test_a_file_with_the_right_sha_that_is_no_safetensors(saved):
    path = the(saved, "memories-*")
    path.write_bytes(b"nothing of the kind")
    manifest = json.loads((saved / "errata.json").read_text())
    altered(saved, files=manifest["files"] | {path.name: checkpoint._sha(b"nothing of the kind")})
    with pytest.raises(DamagedFile, match=path.name):
        EditedModel.from_pretrained(saved)


def test_a_newer_format_is_refused(saved):
    altered(saved, format=99, errata="9.0")
    with pytest.raises(NewerFormat, match=r"9\.0.*format 99"):
        EditedModel.from_pretrained(saved)


def test_an_older_format_is_migrated(saved):
    path = saved / "errata.json"
    told = json.loads(path.read_text())
    assert (told["format"], told["batches"]) == (3, [[1, 2]])
    for old, lacks in ((2, ("sha256",)), (1, ("sha256", "batches"))):
        said = {entry: value for entry, value in told.items() if entry not in lacks}
        path.write_text(json.dumps(said | {"format": old}))
        again = EditedModel.from_pretrained(saved)
        assert again.batches == [1, 1]
        again.save_pretrained(saved)
        assert json.loads(path.read_text())["format"] == 3


def test_a_manifest_that_says_something_else_is_found(saved):
    path = saved / "errata.json"
    path.write_text(path.read_text().replace('"lr"', '"rate"'))
    with pytest.raises(DamagedFile, match=r"errata\.json is damaged"):
        EditedModel.from_pretrained(saved)


def test_edits_that_were_made_together_are_known_to_be(base_dir, tmp_path):
    model = edited(base_dir, "ft_l", edits=[], steps=1)
    for group in (EDITS[:2], EDITS[2:3], EDITS[3:]):
        model.edit_batch(group)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "errata.json").read_text())["batches"] == [[2, 1], [1, 2]]
    assert EditedModel.from_pretrained(tmp_path).batches == [2, 1, 1]


def test_memories_at_other_sites_are_refused(saved):
    altered(saved, sites={"grace": "somewhere.else"})
    with pytest.raises(StoreError, match=r"somewhere\.else"):
        EditedModel.from_pretrained(saved)


def test_a_directory_that_holds_none(tmp_path):
    with pytest.raises(UsageError, match=r"no errata\.json"):
        EditedModel.from_pretrained(tmp_path)


# -- what happens while saving -----------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


def failing(real, at, error):
    calls = iter(range(1000))

    def call(*args):
        if next(calls) == at:
            raise error
        return real(*args)

    return call


@pytest.mark.parametrize("at", range(4))
def test_a_full_disk_leaves_the_old_state(saved, monkeypatch, at):
    before = contents(saved)
    model = EditedModel.from_pretrained(saved)
    model.edit(EDITS[2])
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(disk, "write", failing(disk.write, at, full))
    with pytest.raises(StoreError, match="No space left on device; the edits saved there before are kept") as caught:
        model.save_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert contents(saved) == before
    monkeypatch.undo()
    model.save_pretrained(saved)
    assert len(EditedModel.from_pretrained(saved).history) == 3


def test_a_full_disk_halfway_through_a_file_leaves_no_file(base_dir, tmp_path, monkeypatch):
    def write(path, content):
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write", write)
    with pytest.raises(StoreError, match="nothing was saved"):
        edited(base_dir, edits=[]).save_pretrained(tmp_path / "new")
    assert contents(tmp_path / "new") == {}


@pytest.mark.parametrize("at", range(4))
def test_a_crash_between_two_renames_leaves_a_state_that_loads(saved, monkeypatch, at):
    model = EditedModel.from_pretrained(saved)
    model.edit(EDITS[2])
    monkeypatch.setattr(checkpoint.Path, "replace", failing(checkpoint.Path.replace, at, Crash()))
    with pytest.raises(Crash):
        model.save_pretrained(saved)
    monkeypatch.undo()
    assert len(EditedModel.from_pretrained(saved).history) == (3 if at == 3 else 2)
    model.save_pretrained(saved)
    assert len(contents(saved)) == 4


def test_left_over_temporary_files_of_a_killed_process_go_with_the_next_save(saved):
    (saved / ".errata-1-errata.json.tmp").write_text("half")
    EditedModel.from_pretrained(saved).save_pretrained(saved)
    assert len(contents(saved)) == 4


def test_a_place_that_cannot_be_written(base_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be saved"):
        edited(base_dir, edits=[]).save_pretrained(tmp_path / "file" / "edits")


class Unknown(Editor):
    """A method that only this process knows."""

    name = "unknown"
    depth = 0.5

    def prepare(self, model):
        pass

    def edit(self, model, edits):
        raise NotImplementedError


def test_a_method_that_is_not_installed_is_named(tmp_path, base_dir):
    base, tokenizer = loading.load(str(base_dir))
    EditedModel(base, tokenizer, Unknown()).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no method is called 'unknown'"):
        EditedModel.from_pretrained(tmp_path)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_any_file_is_found_or_changes_nothing(two_edits, base_dir, data):
    base, tokenizer = loading.load(str(base_dir))
    whole = checkpoint.sha_of(EditedModel.from_pretrained(two_edits, base, tokenizer=tokenizer))
    path = data.draw(st.sampled_from(sorted(two_edits.iterdir())))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = data.draw(
        st.one_of(
            st.just(content[:place]),
            st.binary(min_size=1, max_size=40).map(lambda b: content[:place] + b + content[place + len(b) :]),
            st.integers(0, 7).map(
                lambda bit: content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            ),
        )
    )
    base, tokenizer = loading.load(str(base_dir))
    with tempfile.TemporaryDirectory() as name:
        copy = shutil.copytree(two_edits, Path(name) / "edits")
        (copy / path.name).write_bytes(damaged)
        try:
            found = checkpoint.sha_of(EditedModel.from_pretrained(copy, base, tokenizer=tokenizer))
        except ErrataError as error:
            found = f"refused: {error}"
    assert found == whole or (found.startswith("refused") and "\n" not in found)
