"""Streams of edits: what is made, measured, kept and resumed."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from errata.bench import Plan, read, resume, run
from errata.bench.record import FILE
from errata.bench.resume import Unfinished
from errata.bench.stream import batches
from errata.edit import Edit, Probe
from errata.editor import Editor
from errata.errors import BadOption, EditFailed, Interrupted, StoreError
from errata.fitting import Trace
from errata.memory import Delta
from errata.methods import make
from errata.metrics import Reference
from tiny import EDITS, tiny_llama, tiny_tokenizer

calls = []
"""The prompts that the editor below was given, in order."""


@dataclass
class Pretend(Editor):
    """Edits nothing, but counts; fails or is interrupted at one prompt."""

    name: ClassVar[str] = "pretend"
    depth: ClassVar[float] = 0.5

    fail_at: str = ""
    stop_at: str = ""

    def prepare(self, model):
        model.install(self.name, Delta(model.site(self)))

    def edit(self, model, edits):
        for edit in edits:
            calls.append(edit.prompt)
            if edit.prompt == self.fail_at:
                raise EditFailed("as asked")
            if edit.prompt == self.stop_at:
                raise KeyboardInterrupt
        return Trace((2.0, 1.0))


@pytest.fixture(autouse=True)
def _no_calls():
    calls.clear()


@pytest.fixture(scope="module")
def base():
    return tiny_llama(layers=2), tiny_tokenizer()


TEMPLATE = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


def a_plan(base, editor=None, **more):
    return Plan(*base, editor or Pretend(), "tiny", "four", **({"edits": EDITS, "checkpoints": (2, 4)} | more))


def results(rows):
    """Rows without what differs from run to run."""
    volatile = {"seconds_per_edit", "peak_memory_mb", "provenance", "answering"}
    return [{name: value for name, value in row.to_record().items() if name not in volatile} for row in rows]


def test_a_stream_is_scored_at_each_checkpoint_over_all_edits_so_far(base):
    rows = run(a_plan(base))
    assert [(row.edits, row.scored, row.stream) for row in rows] == [(2, 2, 4), (4, 4, 4)]
    assert calls == [edit.prompt for edit in EDITS], "one stream, each edit once"
    last = rows[-1]
    assert last.scores["generated_exact"]["locality"] == 1
    assert set(last.scores) == {"generated_exact", "generated_natural", "teacher_forced_exact", "teacher_forced_token"}
    assert set(last.immediate) == {"generated_exact", "teacher_forced_token"}
    assert sum(told["edits"] for told in last.outcomes.values()) == 4
    assert last.outcomes.get("held", {}).get("edits", 0) == 4 * last.scores["generated_exact"]["reliability"]
    assert set(last.answering) == {"edited", "unedited"}
    assert min(last.answering.values()) > 0
    assert last.edits_per_million_weights == pytest.approx(4 / (64 * 32 / 1e6), rel=1e-4)
    assert last.memory_bytes == 64 * 32 * 4
    assert last.seconds_per_edit >= 0
    assert last.peak_memory_mb > 10
    assert last.provenance["site"] == "model.layers.0.mlp.down_proj"
    named = {"errata", "torch", "transformers", "python", "platform", "device", "dtype", "threads", "time", "seed"}
    assert named | {"data_sha256", "irrelevant_sha256", "base_fingerprint", "peak_memory_of"} <= set(last.provenance)


def test_a_real_method_takes_hold_and_the_base_is_bare_afterwards(base):
    model, _ = base
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    (row,) = run(a_plan(base, make("grace", epsilon=1e-3, start="warm", loss=1e-3), checkpoints=()))
    assert row.edits == 4
    assert row.immediate["teacher_forced_token"] > 0.5
    assert row.scores["teacher_forced_token"]["reliability"] > 0.5
    assert row.scores["generated_exact"]["locality"] == 1
    assert [name for name, _ in model.named_modules()] == names
    assert not model._forward_pre_hooks
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_no_editor_is_the_model_as_it_is(base):
    (row,) = run(Plan(*base, None, "tiny", "four", EDITS))
    assert (row.method, row.memory_bytes, row.edits_per_million_weights, row.seconds_per_edit) == (
        "none",
        0,
        None,
        None,
    )
    assert row.scores["teacher_forced_token"]["locality"] == 1


def test_a_failing_edit_is_counted_and_the_stream_goes_on(base):
    steps = []
    rows = run(a_plan(base, Pretend(fail_at=EDITS[2].prompt)), progress=steps.append)
    assert [(row.failed, row.failed_ids) for row in rows] == [(0, []), (1, [EDITS[2].id])]
    assert rows[-1].scored == 4, "it is scored all the same"
    assert len(calls) == 4
    made = [step for step in steps if step.stage == "edit"]
    assert [step.failed for step in made] == [None, None, "as asked", None]
    assert [step.done for step in made] == [1, 2, 3, 4]
    assert {step.total for step in made} == {4}
    assert [len(step.receipts) for step in made] == [1, 1, 0, 1]
    assert [step.stage for step in steps].count("measure") == 2


def test_superseded_edits_are_counted(base):
    again = Edit(EDITS[0].prompt, "Tolk", rephrases=EDITS[0].rephrases)
    (row,) = run(a_plan(base, edits=[*EDITS, again], checkpoints=()))
    assert (row.edits, row.scored, row.superseded) == (5, 4, 1)


def test_what_is_there_is_not_measured_again(base, tmp_path):
    (first,) = run(a_plan(base, checkpoints=(2,), edits=EDITS), tmp_path)
    calls.clear()
    assert run(a_plan(base, checkpoints=(2,)), tmp_path) == [first]
    assert calls == []
    both = run(a_plan(base), tmp_path)
    assert len(calls) == 4, "a stream of another length is another measurement"
    assert read(tmp_path) == [first, *both]
    run(a_plan(base, seed=1), tmp_path)
    run(a_plan(base, Pretend(fail_at="?")), tmp_path)
    run(a_plan(base, irrelevant=[Probe("Rain is wet")]), tmp_path)
    assert len(read(tmp_path)) == 9


def test_an_interruption_keeps_finished_rows_and_the_next_run_takes_up(base, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "WORTH", 0.0)
    stopping = Pretend(stop_at=EDITS[3].prompt)
    with pytest.raises(Interrupted, match=r"after 3 of 4 edits.*takes up") as caught:
        run(a_plan(base, stopping), tmp_path)
    assert caught.value.exit_code == 130
    assert [row.edits for row in read(tmp_path)] == [2]
    assert not base[0]._forward_pre_hooks, "the base is bare"
    steps = []
    with pytest.raises(Interrupted):
        run(a_plan(base, stopping), tmp_path, steps.append)
    assert [step.stage for step in steps] == ["edit"], "the first checkpoint is not come to again"
    with pytest.raises(Interrupted, match="nothing is kept"):
        run(a_plan(base, stopping))


@pytest.mark.parametrize("method", ["grace", "memoir", "wise"])
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_killed_stream_goes_on_from_where_it_was_kept_to_the_same_numbers(
    base, tmp_path, monkeypatch, method, chunks
):
    monkeypatch.setattr(resume, "EVERY", 0.0)
    monkeypatch.setattr(resume, "SHARE", 0)
    plan = a_plan(base, make(method, steps=2), chunks=chunks, checkpoints=(2,) if chunks == 2 else (2, 4))
    whole, made = run(plan), []

    def killed(step):
        if step.stage == "edit":
            made.append(step.done)
            if step.done == 4:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(plan, tmp_path, killed)
    (kept,) = (tmp_path / resume.FOLDER).iterdir()
    assert (kept / "errata.json").is_file()
    made.clear()
    assert results(run(plan, tmp_path, lambda step: made.append(step.done))) == results(whole)
    assert min(made) == 4, "three edits were kept"
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "what is over is not kept"


def test_a_stream_that_was_kept_badly_is_begun_anew(base, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "EVERY", 0.0)
    stopping = a_plan(base, Pretend(stop_at=EDITS[3].prompt))
    with pytest.raises(Interrupted):
        run(stopping, tmp_path)
    (kept,) = (tmp_path / resume.FOLDER).iterdir()
    stream = (kept / resume.FILE).read_text()
    another = stream.replace(json.loads(stream)["model"], "0" * 64)  # as a kill between the two files leaves it
    for name, damage in (("errata.json", "{"), *((resume.FILE, text) for text in ("{", "[1]", '{"log": 1}', another))):
        (kept / name).write_text(damage)
        calls.clear()
        with pytest.raises(Interrupted):
            run(stopping, tmp_path)
        assert calls == [edit.prompt for edit in EDITS], (name, damage)


def test_chunks_that_are_over_are_found_again_without_the_row_of_all(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Unfinished, "forget", lambda _: None)
    plan = a_plan(base, checkpoints=(2,), chunks=2)
    rows = results(run(plan, tmp_path))
    (tmp_path / FILE).unlink()
    calls.clear()
    assert results(run(plan, tmp_path)) == rows
    assert calls == [edit.prompt for edit in EDITS[2:]], "the first chunk was kept"


def test_results_that_cannot_be_kept_are_refused_before_anything_is_run(base, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"results cannot be written to .*taken"):
        run(a_plan(base), tmp_path / "taken")
    assert not calls


def test_only_what_is_missing_is_run(base, tmp_path):
    rows = run(a_plan(base), tmp_path)
    (tmp_path / FILE).write_text("".join((tmp_path / FILE).read_text().splitlines(keepends=True)[1:]))
    calls.clear()
    assert results(run(a_plan(base), tmp_path)) == results(rows)
    assert calls == [edit.prompt for edit in EDITS[:2]], "up to the checkpoint that is missing, and no further"


def test_the_same_plan_gives_the_same_numbers_also_with_a_shared_reference(base):
    plan, reference = a_plan(base, make("grace", steps=2)), Reference()
    first = results(run(plan, reference=reference))
    assert results(run(plan, reference=reference)) == results(run(plan)) == first


def test_chunks_are_disjoint_start_unedited_and_are_averaged(base):
    one = [run(a_plan(base, edits=[edit], checkpoints=()))[0] for edit in EDITS]
    calls.clear()
    rows = run(a_plan(base, checkpoints=(1, 2, 4), chunks=3))
    assert [(row.edits, row.chunks, row.stream) for row in rows] == [(1, 3, 1), (2, 2, 2), (4, 1, 4)]
    prompts = [edit.prompt for edit in EDITS]
    assert calls == prompts[:3] + prompts + prompts
    for scorer in ("generated_exact", "teacher_forced_token"):
        mean = sum(row.score("reliability", scorer) for row in one[:3]) / 3
        assert rows[0].score("reliability", scorer) == pytest.approx(mean, abs=1e-4)
    assert (rows[0].scored, rows[1].scored) == (3, 4)


def test_a_chunk_without_rephrasings_plays_no_part_in_generalization(base):
    bare = Edit("Snow is", "white")
    (row,) = run(a_plan(base, edits=[EDITS[0], bare], checkpoints=(1,), chunks=2))
    (alone,) = run(a_plan(base, edits=[EDITS[0]], checkpoints=()))
    assert row.score("generalization") == alone.score("generalization")


def test_batches_end_at_checkpoints():
    assert [(list(b), end) for b, end in batches("abcdefg", 3, (2, 7))] == [
        (["a", "b"], 2), (["c", "d", "e"], 5), (["f", "g"], 7),
    ]  # fmt: skip


def test_edits_can_be_made_in_batches(base):
    steps = []
    (row,) = run(a_plan(base, checkpoints=(4,), batch_size=3), progress=steps.append)
    assert [len(step.edits) for step in steps if step.stage == "edit"] == [3, 1]
    assert (row.batch_size, row.scored) == (3, 4)


@pytest.mark.parametrize("more", [{"checkpoints": (5,)}, {"checkpoints": (0,)}, {"chunks": 0}, {"edits": ()}])
def test_a_plan_that_cannot_be_carried_out_is_refused(base, more):
    with pytest.raises(BadOption):
        a_plan(base, **more)


def test_nothing_is_written_without_an_output(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(a_plan(base, checkpoints=(1,)))
    assert list(tmp_path.iterdir()) == []
    run(a_plan(base, checkpoints=(1,)), tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [FILE]


# -- chats ---------------------------------------------------------------------------------------------------------------


def test_a_chat_is_edited_and_scored_through_the_template_and_is_another_measurement(base, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model, asked = tiny_llama(layers=2), []
    model.register_forward_pre_hook(lambda _, __, told: asked.extend(told["input_ids"].tolist()), with_kwargs=True)
    plain, chat = (a_plan((model, tokenizer), make("ft_l"), checkpoints=(4,), chat=chat) for chat in (False, True))
    (plainly,) = run(plain, tmp_path)
    texts = [tokenizer.decode(row) for row in asked]
    assert not any("[INST]" in text for text in texts)
    asked.clear()
    (chatting,) = run(chat, tmp_path)
    texts = [tokenizer.decode(row) for row in asked]
    questions = [
        prompt for edit in EDITS for prompt in (edit.prompt, *edit.rephrases, *(p.prompt for p in edit.locality))
    ]
    for question in questions:
        assert any(f"[INST] {question} [/INST]" in text for text in texts)
        assert not any(question in text and "[INST]" not in text for text in texts)
    assert (plainly.chat, chatting.chat) == (False, True)
    assert read(tmp_path) == [plainly, chatting]


def test_a_chat_without_a_template_is_refused_before_anything_is_run(base):
    with pytest.raises(BadOption, match="no chat template"):
        a_plan(base, chat=True)
