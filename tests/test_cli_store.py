"""The commands of the ledger: log, revert, diff, verify; gates and attribution of edit; and what they refuse."""

import shutil
import sqlite3

import pytest

from commands import lines, refused, run
from errata.contrast import WITNESSES
from errata.data import jsonl
from errata.edit import Edit
from errata.ledger import Hold
from errata.model import EditedModel
from tiny import EDITS, write_tiny

A, B, C, D = EDITS
OFF = ("--min-reliability", "0", "--set", "steps=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "tiny"
    return write_tiny(path)


@pytest.fixture(scope="module")
def made(model):
    """A directory with A and B by ada, then C by bob; two checkpoints."""
    path = model.parent / "acme"
    jsonl.write(model.parent / "two.jsonl", [A, B])
    common = ("--output", path, "--min-reliability", "0")
    stream = ("--edits", model.parent / "two.jsonl", "--method", "grace", "--set", "steps=2", "--model", model)
    run("edit", *common, *stream, "--author", "ada", "--tag", "t1", "--reason", "moved")
    run("edit", *common, *one(C), "--author", "bob", "--source", "the web")
    return path


def one(edit):
    return ("--prompt", edit.prompt, "--target", edit.target, "--subject", edit.subject)


@pytest.fixture
def acme(made, tmp_path):
    return shutil.copytree(made, tmp_path / "acme")


def history(directory):
    return [edit.target for edit in EditedModel.from_pretrained(directory).history]


def fewer(edit):
    """An id that nearly is that of an edit."""
    return edit.id[:-1] + ("0" if edit.id[-1] != "0" else "1")


# -- log ---------------------------------------------------------------------------------------------------------------


def test_log_for_a_person(acme):
    text = run("log", acme).stdout
    assert f"requested          {A.id}  {A.prompt} -> {A.target}  (ada)  (moved)" in text
    assert "applied      r3    " in text
    assert "checkpointed       revision 2" in text
    assert "begun              grace on" in text


def test_log_as_json_is_an_event_a_line_with_all_that_was_asked(acme):
    told = lines(run("log", acme, "--json"))
    assert [line["event"] for line in told if line["edit_id"] == A.id] == ["requested", "applied"]
    applied = next(line for line in told if line["event"] == "applied")
    assert applied["edit_id"] == A.id
    assert applied["edit"]["prompt"] == A.prompt
    assert (applied["author"], applied["tags"], applied["reason"], applied["seed"]) == ("ada", ["t1"], "moved", 0)
    assert applied["receipt"]["check"]["locality"]
    assert {"time", "method", "options", "errata", "base", "hash", "revision"} <= set(applied)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (("--event", "applied"), 3),
        (("--author", "ada"), 4),
        (("--author", "bob", "--event", "applied"), 1),
        (("--tag", "t1", "--event", "requested"), 2),
        (("--edit", C.id[:6]), 2),
        (("--edit", "nothing"), 0),
        (("--since", "2999"), 0),
        (("--last", "1"), 1),
    ],
)
def test_log_filters(acme, filters, count):
    assert len(lines(run("log", acme, "--json", *filters))) == count


def test_log_of_an_unknown_kind():
    assert "Did you mean 'applied'" in refused("log", "x", "--event", "aplied")


@pytest.mark.parametrize("command", [("log",), ("verify",), ("revert", "--to", "0", "--dry-run"), ("diff", "0", "1")])
def test_where_there_is_no_ledger(tmp_path, command):
    name, *rest = command
    assert "keeps no ledger" in refused(name, tmp_path, *rest)


# -- revert ------------------------------------------------------------------------------------------------------------


def test_revert_an_edit(acme):
    result = run("revert", acme, A.id[:8], "--by", "eve", "--reason", "a hoax")
    assert f"reverted  {A.id}  {A.prompt} -> {A.target}" in result.stdout
    assert "replay: 2 edits made again from nothing" in result.stdout
    assert "of 2 edits in force are answered" in result.stderr
    assert history(acme) == [B.target, C.target]
    last = [line for line in lines(run("log", acme, "--json")) if line["event"] == "reverted"]
    assert [(line["edit_id"], line["reason"]) for line in last] == [(A.id, "a hoax")]


@pytest.mark.parametrize(("choice", "left"), [(("--to", "1"), [A]), (("--author", "ada"), [C]), (("--tag", "t1"), [C])])
def test_revert_several(acme, choice, left):
    run("revert", acme, *choice)
    assert history(acme) == [edit.target for edit in left]


def test_a_dry_run_says_how_and_changes_nothing(acme):
    before = run("log", acme).stdout
    result = run("revert", acme, C.id, "--dry-run")
    assert f"would be reverted  {C.id}" in result.stdout
    assert "pop: taken from the checkpoint of revision 2" in result.stdout
    assert run("log", acme).stdout == before


def test_revert_as_json(acme):
    (told,) = lines(run("revert", acme, C.id, "--json"))
    assert (told["event"], told["edit_id"], told["way"], told["revision"]) == ("reverted", C.id, "pop", 4)


def test_an_unknown_edit_suggests_the_nearest(acme):
    assert f"Did you mean '{A.id}'" in refused("revert", acme, fewer(A))
    assert history(acme) == [A.target, B.target, C.target]


def test_reverting_twice(acme):
    run("revert", acme, A.id)
    assert f"the edit {A.id} was reverted already, at revision 4" in refused("revert", acme, A.id)


@pytest.mark.parametrize("choice", [(), ("--to", "1", "--tag", "t1"), (A.id, "--author", "ada")])
def test_one_choice_of_what_to_revert(acme, choice):
    assert "say what to revert" in refused("revert", acme, *choice)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (("--to", "9"), "there is no revision 9: the newest is 3"),
        (("--to", "3"), "nothing to revert"),
        (("--author", "adda"), "Did you mean 'ada'"),
        (("--tag", "t2"), "no tag is called 't2'"),
    ],
)
def test_what_cannot_be_reverted(acme, choice, says):
    assert says in refused("revert", acme, *choice)


def test_reverting_on_another_base(acme, tmp_path):
    write_tiny(tmp_path / "other", seed=1)
    assert "whose weights are not those of" in refused("revert", acme, A.id, "--model", tmp_path / "other", code=1)
    assert history(acme) == [A.target, B.target, C.target]


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_of_two_revisions(acme):
    told = lines(run("diff", acme, "0", "3", "--json"))
    assert {line["prompt"] for line in told} == {p for edit in (A, B) for p in (edit.prompt, *edit.rephrases)} | {
        C.prompt
    }
    assert [line["changed"] for line in told] == [line["before"] != line["after"] for line in told]
    result = run("diff", acme, "0", "3")
    assert f"{A.prompt}\n  r0      " in result.stdout
    assert f"of {len(told)} answers differ" in result.stderr


def test_diff_on_questions_and_of_the_same(acme):
    assert [line["prompt"] for line in lines(run("diff", acme, "0", "1", "Snow is", "--json"))] == ["Snow is"]
    assert "hold the same edits" in run("diff", acme, "2", "2").stderr
    assert "no revision 7" in refused("diff", acme, "0", "7")


# -- verify ------------------------------------------------------------------------------------------------------------


def test_verify(acme):
    result = run("verify", acme)
    assert "BAD" not in result.stdout
    assert "3 edits made again from nothing, the same bits" in result.stdout
    assert all(line["ok"] for line in lines(run("verify", acme, "--no-replay", "--json")))


def altered(directory):
    db = sqlite3.connect(directory / "ledger" / "events.sqlite", isolation_level=None)
    db.execute("DROP TRIGGER no_update")
    db.execute("UPDATE events SET body = replace(body, 'moved', 'other') WHERE seq = 2")
    db.close()


def test_a_broken_chain_is_exit_code_4_everywhere(acme):
    altered(acme)
    for command in (("verify", acme), ("ask", acme, "x"), ("revert", acme, A.id), ("log", acme)):
        line = refused(*command, code=4, silent=False)
        assert "broken at event 2" in line
    assert "requested" in run("log", acme, code=4).stdout, "it is listed all the same"


def test_a_damaged_file_is_named(acme):
    next(acme.glob("edits-*")).write_text("x")
    result = run("verify", acme, "--no-replay", code=1)
    assert "BAD  edits-" in result.stdout
    assert "edits-" in result.stderr
    assert history(acme) == [A.target, B.target, C.target]


def test_a_ledger_that_is_no_database(acme):
    (acme / "ledger" / "events.sqlite").write_bytes(b"no")
    for command in (("ask", acme, "x"), ("log", acme), ("verify", acme)):
        assert "events.sqlite is damaged" in refused(*command, code=1)


# -- edit --------------------------------------------------------------------------------------------------------------


def test_an_edit_that_does_not_pass_its_gate(acme):
    line = refused("edit", "--output", acme, "--prompt", D.prompt, "--target", D.target, code=3)
    assert "did not pass its gate and was rolled back" in line
    assert history(acme) == [A.target, B.target, C.target]
    told = lines(run("log", acme, "--json"))[-1]
    assert (told["event"], told["edit"]["target"]) == ("failed", D.target)


def test_in_a_stream_it_may_be_skipped(acme, tmp_path):
    jsonl.write(tmp_path / "more.jsonl", [D, Edit("Snow is", "red")])
    run("edit", "--output", acme, "--edits", tmp_path / "more.jsonl", code=3)
    result = run("edit", "--output", acme, "--edits", tmp_path / "more.jsonl", "--on-error", "skip")
    assert result.stderr.count("skipped: ") == 2
    assert history(acme) == [A.target, B.target, C.target]


@pytest.mark.parametrize("gate", [("--min-reliability", "2"), ("--min-locality", "-1")])
def test_gates_are_shares(acme, gate):
    assert "a share, in [0, 1]" in refused("edit", "--output", acme, "--prompt", "x", "--target", "y", *gate)


def test_the_receipt_says_what_was_verified(acme):
    common = ("edit", "--output", acme, "--min-reliability", "0", "--prompt", D.prompt, "--target")
    text = run(*common, D.target).stdout
    assert "verified: the prompt is answered with" in text
    assert "rephrasings " in text
    assert "other answers " in text
    (told,) = lines(run(*common, "harp", "--json"))
    assert told["revision"] == 5
    assert told["check"]["locality"][1] > 0
    assert told["check"]["neighbours"][1] == len(WITNESSES)


def test_a_contradiction_is_shown_before_it_is_applied(acme, monkeypatch):
    from errata.store import Store

    monkeypatch.setattr(Store, "edit", lambda *_: 1 / 0)
    result = run("edit", "--output", acme, "--prompt", A.prompt, "--target", "Sondo", code=1)
    assert f"contradiction: {A.prompt!r} is {A.target!r} by edit {A.id}; 'Sondo' will replace it" in result.stderr


def test_many_contradictions_are_summed_up(acme, tmp_path):
    jsonl.write(tmp_path / "more.jsonl", [Edit(edit.prompt, "x") for edit in (A, B, C)])
    result = run("edit", "--output", acme, "--edits", tmp_path / "more.jsonl", "--min-reliability", "0")
    assert result.stderr.count("contradiction: ") == 3


def test_a_directory_that_is_being_written(acme):
    hold = Hold(acme)
    for command in (("edit", "--output", acme, "--prompt", "x", "--target", "y"), ("revert", acme, A.id)):
        assert "another process is writing to" in refused(*command, code=1)
    assert run("ask", acme, A.prompt).stdout
    hold.release()


def test_explain_says_who_made_the_nearest_edit(acme):
    text = run("explain", acme, A.prompt).stdout
    assert "made at revision 1 on 20" in text
    assert "by ada: P(target) 0." in text
    assert "(moved)" in text
    (told,) = lines(run("explain", acme, A.prompt, "--json"))
    assert told["memories"][0]["nearest"][0]["author"] == "ada"
    assert told["memories"][0]["nearest"][0]["receipt"]["steps"] == 2


# -- export and import -------------------------------------------------------------------------------------------------


def test_a_ledger_goes_out_and_comes_in(acme, tmp_path):
    (told,) = lines(run("export", acme, "--format", "ledger", "--output", tmp_path / "acme.jsonl", "--json"))
    assert told["events"] == len((tmp_path / "acme.jsonl").read_text().splitlines())
    assert (
        "3 edits in force, revision 3" in run("import", tmp_path / "acme.jsonl", "--output", tmp_path / "again").stdout
    )
    assert history(tmp_path / "again") == history(acme)
    assert "holds edits already" in refused("import", tmp_path / "acme.jsonl", "--output", acme)


def test_the_edits_in_force_go_out_as_lines(acme, tmp_path):
    run("edit", "--output", acme, "--prompt", A.prompt, "--target", "Sondo", "--min-reliability", "0")
    run("export", acme, "--format", "edits", "--output", tmp_path / "edits.jsonl")
    assert [edit.target for edit in jsonl.read_jsonl(tmp_path / "edits.jsonl")] == [B.target, C.target, "Sondo"]


@pytest.mark.parametrize("form", ["merged", "lora", "peft"])
def test_a_gated_method_is_no_weight(acme, tmp_path, form):
    assert "grace decides by the prompt" in refused("export", acme, "--format", form, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_that_is_always_on_is_merged(model, tmp_path):
    edit = ("edit", "--model", model, "--method", "ft_l", *one(A), "--output", tmp_path / "d", "--min-reliability", "0")
    run(*edit)
    (told,) = lines(run("export", tmp_path / "d", "--format", "merged", "--output", tmp_path / "merged", "--json"))
    assert (told["edits"], told["answered_after"]) == (1, told["answered_before"])
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    (told,) = lines(run("export", tmp_path / "d", "--format", "peft", "--output", tmp_path / "lora", "--json"))
    assert told["rank"] >= 1
    assert "exists already" in refused("export", tmp_path / "d", "--format", "peft", "--output", tmp_path / "lora")
