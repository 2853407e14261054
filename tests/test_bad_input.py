"""Bad input: one clear line, the documented exit code, and nothing lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from commands import lines, refused, run
from errata import disk, methods
from errata.cli import app
from errata.data import jsonl
from errata.edit import Edit
from errata.model import EditedModel
from tiny import EDITS, tiny_llama, tiny_tokenizer, write_tiny

ANY = ("--min-reliability", "0")
"""The tiny model takes few edits; most tests here are not about its gate."""
ONE = ("--prompt", "Snow is", "--target", "red", *ANY)


def contents(directory):
    """The newest checkpoint; the ledger beside it also holds what failed, and when."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "tiny"
    return write_tiny(path)


@pytest.fixture(scope="module")
def made(model):
    """A directory with one GRACE edit."""
    path = model.parent / "made"
    arguments = ("--method", "grace", "--prompt", EDITS[0].prompt, "--target", EDITS[0].target, "--output", path)
    run("edit", "--model", model, *arguments, code=0)
    return path


@pytest.fixture
def acme(made, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(made, tmp_path / "acme")


@pytest.fixture
def new(tmp_path):
    return tmp_path / "new"


# -- names and options -------------------------------------------------------------------------------------------------


def test_an_unknown_model(new):
    line = refused("edit", "--model", "atals", *ONE, "--output", new)
    assert "no model is called 'atals'. Did you mean 'atlas'?" in line
    assert not new.exists()


def test_an_unknown_method_suggests_the_nearest(model, new):
    line = refused("edit", "--model", model, "--method", "memior", *ONE, "--output", new)
    assert "Did you mean 'memoir'?" in line
    assert not new.exists()


@pytest.mark.parametrize("command", [("bench", "--method", "grcae"), ("methods", "grcae")])
def test_an_unknown_method_elsewhere(command):
    assert "Did you mean 'grace'?" in refused(*command)


def test_an_unknown_option_suggests_the_nearest(model, new):
    line = refused("edit", "--model", model, "--method", "grace", *ONE, "--output", new, "--set", "epsilom=3")
    assert "Did you mean 'epsilon'?" in line


def test_an_option_of_the_wrong_type(model, new):
    line = refused("edit", "--model", model, "--method", "grace", *ONE, "--output", new, "--set", "lr=fast")
    assert "lr='fast' must be float" in line


@pytest.mark.parametrize("layer", [3, 99, -1])
def test_a_layer_out_of_range(model, new, layer):
    line = refused("edit", "--model", model, "--method", "grace", *ONE, "--output", new, "--set", f"layer={layer}")
    assert f"layer {layer} is out of range: the model has layers 0 to 2" in line
    assert not new.exists()


@pytest.mark.parametrize("edits", ["0", "ten", "1,,x", ""])
def test_numbers_of_edits_that_are_none(edits):
    assert "--edits" in refused("bench", "--edits", edits)


def test_an_unknown_data_set(model):
    assert "no data set or format is called 'zrse'" in refused("bench", "--model", model, "--data", "zrse:x")


# -- edits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--prompt", "Snow is"), ("--target", "red"), (*ONE, "--edits", "x.jsonl")])
def test_neither_one_edit_nor_a_file(model, new, arguments):
    refused("edit", "--model", model, *arguments, "--output", new)
    assert not new.exists()


@pytest.mark.parametrize("one", [("", "red"), ("  ", "red"), ("Snow is", ""), ("Snow is", " \n")])
def test_an_empty_prompt_or_target(model, new, one):
    line = refused("edit", "--model", model, "--prompt", one[0], "--target", one[1], "--output", new)
    assert "of an edit is empty" in line
    assert not new.exists()


def test_a_subject_that_is_not_in_the_prompt(model, new):
    line = refused("edit", "--model", model, *ONE, "--subject", "Rain", "--output", new)
    assert "'Rain' does not occur in the prompt 'Snow is'" in line
    line = refused("edit", "--model", model, *ONE, "--subject", "snow", "--output", new)
    assert "'snow' does not occur in the prompt 'Snow is'; it is written 'Snow' there" in line


@pytest.fixture
def blank(tmp_path):
    """A model whose tokenizer drops the character ~, so that a target of it has no tokens."""
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace(" ~", ""), normalizers.Replace("~", "")])
    tiny_llama().save_pretrained(tmp_path / "blank")
    tokenizer.save_pretrained(tmp_path / "blank")
    return tmp_path / "blank"


def test_a_target_that_tokenises_to_nothing(blank, new):
    line = refused(
        "edit", "--model", blank, "--method", "grace", "--prompt", "Snow is", "--target", "~", "--output", new
    )
    assert "'~' tokenises to nothing" in line
    assert not new.exists()


def test_in_a_stream_it_may_be_skipped(blank, new, tmp_path):
    path = tmp_path / "edits.jsonl"
    jsonl.write(path, [Edit("Snow is", "red"), Edit("Rain is", "~"), Edit("Hail is", "soft")])
    common = ("edit", "--model", blank, "--method", "grace", "--edits", path, "--output", new, *ANY)
    result = run(*common, code=2)
    assert "tokenises to nothing" in result.stderr
    assert len(EditedModel.from_pretrained(new).history) == 1
    result = run(*common, "--on-error", "skip", code=0)
    assert "skipped: 'Rain is'" in result.stderr
    assert [edit.prompt for edit in EditedModel.from_pretrained(new).history] == ["Snow is", "Hail is"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "malformed JSON"),
        ('{"prompt": "a"}', "'target': is missing"),
        ('{"promt": "a", "target": "b"}', "did you mean"),
    ],
)
def test_a_malformed_line_is_named(model, new, tmp_path, text, says):
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "Snow is", "target": "red"}\n' + text + "\n")
    line = refused("edit", "--model", model, "--method", "grace", "--edits", path, "--output", new)
    assert f"{path}:2" in line
    assert says in line
    assert not new.exists()
    result = run(
        "edit",
        "--model",
        model,
        "--method",
        "grace",
        "--edits",
        path,
        "--output",
        new,
        "--on-error",
        "skip",
        *ANY,
        code=0,
    )
    assert f"skipped: {path}:2" in result.stderr


def test_a_file_that_does_not_exist(model, new):
    assert "nowhere.jsonl cannot be read" in refused(
        "edit", "--model", model, "--edits", "nowhere.jsonl", "--output", new
    )


def test_duplicate_and_contradicting_edits(model, new, tmp_path):
    path = tmp_path / "edits.jsonl"
    jsonl.write(path, [Edit("Snow is", "red"), Edit("Snow is", "red"), Edit("Snow is", "blue")])
    result = run("edit", "--model", model, "--method", "grace", "--edits", path, "--output", new, *ANY, code=0)
    assert "skipped: 1 duplicate edit" in result.stderr
    assert "replaces 'red', the answer of an earlier edit" in result.stderr
    after = EditedModel.from_pretrained(new)
    assert [edit.target for edit in after.history] == ["red", "blue"]
    assert [edit.target for edit in after.edits] == ["blue"]


def test_the_same_edit_again(acme):
    before = contents(acme)
    result = run("edit", "--prompt", EDITS[0].prompt, "--target", EDITS[0].target, "--output", acme, code=0)
    assert "already in force: nothing was done" in result.output
    assert contents(acme) == before


@pytest.mark.parametrize(
    ("method", "options"), [("grace", ["lr=1e38"]), ("ft_l", ["lr=1e38", "epsilon=none"]), ("memoir", ["lr=1e40"])]
)
def test_a_loss_that_is_not_finite_is_rolled_back(model, tmp_path, new, method, options):
    path = tmp_path / "edits.jsonl"
    jsonl.write(path, EDITS[:1])
    settings = [word for option in options for word in ("--set", option)]
    line = refused("edit", "--model", model, "--method", method, *ONE, "--output", new, *settings, code=1)
    assert "smaller learning rate" in line
    assert contents(new) == {}
    assert lines(run("log", new, "--json", code=0))[-1]["event"] == "failed"


def test_after_a_failed_edit_the_directory_and_the_model_are_as_before(acme, monkeypatch):
    before = contents(acme)
    monkeypatch.setattr(methods.find("grace"), "edit", _failing)
    refused("edit", *ONE, "--output", acme, code=1)
    assert contents(acme) == before


def _failing(self, model, edits):
    from errata.errors import EditFailed

    raise EditFailed("the loss became nan at step 0")


# -- directories -------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    write_tiny(tmp_path / "other", seed=1)
    return tmp_path / "other"


@pytest.mark.parametrize("command", [("edit", *ONE, "--output"), ("ask",), ("explain",)])
def test_edits_of_another_base_model(acme, other, command):
    before = contents(acme)
    question = () if command[0] == "edit" else ("Snow is",)
    line = refused(*command, acme, *question, "--model", other, code=1)
    assert "tiny" in line
    assert str(other) in line
    assert contents(acme) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "ft_l"), "begun with method 'grace'"),
        (("--seed", "5"), "begun with seed 0"),
        (("--set", "lr=0.25"), "begun with lr 1.0"),
        (("--dtype", "bfloat16"), "begun in float32"),
    ],
)
def test_a_directory_is_not_continued_differently(acme, arguments, says):
    before = contents(acme)
    assert says in refused("edit", *ONE, "--output", acme, *arguments)
    assert contents(acme) == before


def test_a_directory_with_other_things_is_left_alone(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert "holds other things" in refused("edit", "--model", model, *ONE, "--output", tmp_path)
    assert contents(tmp_path) == {"README.md": b"mine"}


def test_a_new_directory_needs_a_model(new):
    assert "--model" in refused("edit", *ONE, "--output", new)


def test_ask_where_there_is_nothing(new):
    assert "no errata.json" in refused("ask", new, "Snow is")


def test_an_empty_question(acme):
    assert run("ask", acme, " ", code=2).stdout == ""


def test_a_truncated_safetensors_file(acme):
    (path,) = (acme / "ledger").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    for command in (("ask", acme, EDITS[0].prompt), ("edit", *ONE, "--output", acme)):
        assert f"warning: {path} is damaged" in run(*command, code=0).stderr, "and the edits are made again"
    assert run("ask", acme, EDITS[0].prompt, code=0).stdout.startswith("Melpo")


def test_a_truncated_safetensors_file_without_a_ledger(acme):
    shutil.rmtree(acme / "ledger")
    (path,) = acme.glob("memories-*")
    path.write_bytes(path.read_bytes()[:100])
    for command in (("ask", acme, "Snow is"), ("edit", *ONE, "--output", acme)):
        assert f"{path.name} is damaged" in refused(*command, code=1)


def test_truncated_weights_of_the_base(model, new, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "weights" in refused("edit", "--model", copy, *ONE, "--output", new, code=1)


def test_a_newer_format(acme):
    told = json.loads((acme / "errata.json").read_text())
    (acme / "errata.json").write_text(json.dumps(told | {"format": 99}))
    assert "update errata" in refused("ask", acme, "Snow is", code=1)


def test_a_full_disk(acme, monkeypatch):
    before = contents(acme)

    def write(path, content):
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write", write)
    line = refused("edit", *ONE, "--output", acme, code=1)
    assert "No space left on device; the edits saved there before are kept" in line
    assert contents(acme) == before
    monkeypatch.undo()
    assert run("ask", acme, EDITS[0].prompt, code=0).stdout.startswith("Melpo")


def test_an_unexpected_error_is_one_line_without_debug(acme, monkeypatch):
    monkeypatch.setattr(EditedModel, "answer", lambda *_, **__: 1 / 0)
    assert "ZeroDivisionError" in refused("ask", acme, "Snow is", code=1)
    result = CliRunner().invoke(app, ["--debug", "ask", str(acme), "Snow is"])
    assert isinstance(result.exception, ZeroDivisionError)
    monkeypatch.setenv("ERRATA_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["ask", str(acme), "Snow is"]).exception, ZeroDivisionError)


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_stream_keeps_what_was_done_and_resumes_to_the_same_bits(model, new, tmp_path, root):
    stream = [Edit(f"The number {i} is", f"word{i}") for i in range(30)]
    jsonl.write(tmp_path / "edits.jsonl", stream)
    common = ["edit", "--model", str(model), "--method", "grace", "--edits", str(tmp_path / "edits.jsonl"), "--json"]
    common += ["--set", "steps=10", *ANY]
    process = subprocess.Popen(
        [sys.executable, "-m", "errata", *common, "--output", str(new), "--save-every", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    for _ in range(3):
        assert process.stdout.readline(), process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert 3 <= len(EditedModel.from_pretrained(new).history) < 30
    run(*common, "--output", new, code=0)
    run(*common, "--output", tmp_path / "straight", code=0)
    assert contents(new) == contents(tmp_path / "straight")


def test_ctrl_c_before_anything_was_done(acme, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    before = contents(acme)
    monkeypatch.setattr(EditedModel, "answer", interrupted)
    assert refused("ask", acme, "Snow is", code=130) == "error: interrupted"
    refused("edit", *ONE, "--output", acme, code=130)
    assert contents(acme) == before


def test_a_second_ctrl_c_stops_at_once():
    from errata.cli.session import stop_asked

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), stop_asked() as asked:  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.wait(1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
