"""The command line: every command does what its help says, data on stdout, messages on stderr."""

import json
import os
import re
import subprocess
import sys

import pytest

import errata
from commands import lines, run
from errata import methods
from errata.cli import app, settings
from errata.cli.session import remaining
from errata.data import jsonl
from errata.edit import Edit
from errata.errors import BadOption, UnknownName
from errata.model import EditedModel
from tiny import EDITS, write_tiny

COMMANDS = (
    "demo", "edit", "ask", "explain", "log", "revert", "diff", "verify", "export", "import", "bench", "report", "tune",
    "train", "ability", "testbed", "methods", "sites", "analyse",
)  # fmt: skip


ANY = ("--min-reliability", "0")
"""The tiny model takes few edits; most tests here are not about its gate."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model as a directory."""
    path = tmp_path_factory.mktemp("cli") / "tiny"
    return write_tiny(path)


@pytest.fixture(scope="module")
def edits(model):
    """Four edits as a file."""
    jsonl.write(model.parent / "edits.jsonl", EDITS)
    return model.parent / "edits.jsonl"


@pytest.fixture(scope="module")
def acme(model, edits):
    """A directory with four GRACE edits."""
    output = ("--output", model.parent / "acme", *ANY)
    run("edit", "--model", model, "--method", "grace", "--edits", edits, *output)
    return model.parent / "acme"


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command):
    text = run(command, "--help").stdout
    assert f"errata {command}" in text
    assert "Example" in text
    assert "--json" in text


def test_every_command_is_known_to_this_test_and_documented(root):
    listed = run("--help").stdout.partition("Commands:")[2]
    assert set(re.findall(r"^  (\w+)  ", listed, re.MULTILINE)) == set(COMMANDS)
    told = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"## `errata {command}`" in told for command in COMMANDS)


def test_every_option_is_documented(root):
    told = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        for option in re.findall(r"^  (?:-h, )?(--[a-z-]+)", run(command, "--help").stdout, re.MULTILINE):
            assert option in told, (command, option)


def test_version():
    assert run("--version").stdout == f"errata {errata.__version__}\n"


def test_help_is_fast_and_does_not_import_torch():
    code = (
        "import sys\nfrom errata.cli import app\ntry:\n    app(['edit', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)"
    )
    assert _seconds(code) < 1.0  # of CPU time, which a busy machine does not change much; 0.2 s was measured


def _seconds(code):
    start = sum(os.times()[2:4])
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | {"PYTHONPATH": "src"}
    )
    return sum(os.times()[2:4]) - start


def test_python_m_errata():
    done = subprocess.run(
        [sys.executable, "-m", "errata", "--version"], check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": "src"},
    )  # fmt: skip
    assert done.stdout.startswith("errata ")
    from errata import __main__

    assert __main__.app is app


# -- edit --------------------------------------------------------------------------------------------------------------

ONE = ("--prompt", "The capital of Arvadia is", "--target", "Melpo")


def test_one_edit_prints_its_receipt(model, tmp_path):
    result = run(
        "edit", "--model", model, "--method", "grace", *ONE, "--rephrase", "Arvadia?", "--output", tmp_path / "d"
    )
    assert re.search(r"before .*\n  after   Melpo", result.stdout)
    assert "Arvadia?" in result.stdout
    assert re.search(r"grace: P\(target\) 0\.\d+ -> 0\.\d+, \d+ steps, \d+\.\d+ s", result.stdout)
    assert "1 of 1 edits" in result.stderr


def test_an_edit_of_which_nobody_knows_what_it_is_about_is_told(model, tmp_path):
    one = ("edit", "--model", model, "--method", "grace", "--target", "Melpo", *ANY)
    told = "warning: the edit neither says its subject nor shows a name"
    assert told in run(*one, "--prompt", "the capital of arvadia is", "--output", tmp_path / "unknown").stderr
    named = ("--prompt", "the capital of arvadia is", "--subject", "arvadia")
    assert "warning" not in run(*one, *named, "--output", tmp_path / "named").stderr
    rows = [{"prompt": "snow is", "target": "red"}, {"prompt": "Arvadia is", "target": "red"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = ("edit", "--model", model, "--method", "grace", "--edits", tmp_path / "edits.jsonl", *ANY)
    told = "warning: 1 of 2 edits ('snow is' is one) neither say their subject"
    assert told in run(*stream, "--output", tmp_path / "stream").stderr


def test_one_edit_as_json(model, tmp_path):
    (told,) = lines(run("edit", "--model", model, "--method", "grace", *ONE, "--output", tmp_path / "d", "--json"))
    assert told["method"] == "grace"
    assert told["target"] == "Melpo"
    assert told["probability_after"] > told["probability_before"]
    assert told["answers"][0]["after"].startswith("Melpo")


def test_a_directory_is_continued_without_saying_model_or_method(acme, tmp_path):
    import shutil

    shutil.copytree(acme, tmp_path / "d")
    run("edit", "--prompt", "Snow is", "--target", "red", "--output", tmp_path / "d", *ANY)
    history = EditedModel.from_pretrained(tmp_path / "d").history
    assert [edit.prompt for edit in history] == [*(edit.prompt for edit in EDITS), "Snow is"]


def test_options_are_typed_and_kept(model, tmp_path):
    options = ["--set", "steps=2", "--set", "lr=0.5", "--set", "start=warm", "--set", "loss=none"]
    options += ANY
    run("edit", "--model", model, "--method", "grace", *ONE, "--output", tmp_path / "d", *options)
    kept = EditedModel.from_pretrained(tmp_path / "d").editor
    assert kept == methods.make("grace", steps=2, lr=0.5, start="warm", loss=None)


def test_a_stream_is_continued_after_the_edits_that_are_there(model, edits, tmp_path):
    common = ("edit", "--model", model, "--method", "grace", "--edits", edits, "--output", tmp_path / "d", *ANY)
    assert len(lines(run(*common, "--limit", 1, "--json"))) == 1
    result = run(*common, "--save-every", 1, "--json")
    assert [line["prompt"] for line in lines(result)] == [edit.prompt for edit in EDITS[1:]]
    assert "1 of these edits are in" in result.stderr
    assert len(EditedModel.from_pretrained(tmp_path / "d").history) == 4
    assert lines(run(*common, "--json")) == []


def test_more_edits_than_a_memory_holds_are_told_before_they_are_made(model, edits, tmp_path):
    common = ("edit", "--model", model, "--edits", edits, "--limit", 2, *ANY)
    told = "warning: 2 edits to make: one side memory of this size loses edits past some 1; mode=retrieve adds one"
    wise = (*common, "--method", "wise", "--set", "steps=1")
    assert told in run(*wise, "--output", tmp_path / "merge").stderr
    assert "warning" not in run(*wise, "--set", "mode=retrieve", "--output", tmp_path / "retrieve").stderr


def test_irrelevant_texts_are_kept(model, tmp_path):
    (tmp_path / "texts").write_text("One text.\nAnother one.\n")
    run(
        "edit",
        "--model",
        model,
        "--method",
        "grace",
        *ONE,
        "--output",
        tmp_path / "d",
        "--irrelevant",
        tmp_path / "texts",
    )
    assert [p.prompt for p in EditedModel.from_pretrained(tmp_path / "d").sampling.irrelevant] == [
        "One text.",
        "Another one.",
    ]


def stream(*letters):
    return [Edit(f"{letter[0]}?", letter[1]) for letter in letters]


@pytest.mark.parametrize(
    ("history", "edits", "todo", "done", "repeated"),
    [
        ([], ["Ax", "By"], ["Ax", "By"], 0, 0),
        (["Ax"], ["Ax", "By"], ["By"], 1, 0),
        (["Ax"], ["Ax", "Ax", "By"], ["By"], 1, 1),
        ([], ["Ax", "Ay"], ["Ax", "Ay"], 0, 0),
        (["Ax", "Ay"], ["Ax", "Ay", "Ax"], ["Ax"], 2, 0),
        (["Ax", "Ay", "Ax"], ["Ax", "Ay", "Ax"], [], 3, 0),
        (["Zz", "Ax"], ["Ax", "By"], ["By"], 1, 0),
    ],
)
def test_what_remains_of_a_stream(history, edits, todo, done, repeated):
    assert remaining(stream(*history), stream(*edits)) == (stream(*todo), done, repeated)


# -- looking -----------------------------------------------------------------------------------------------------------


def test_ask(acme):
    assert run("ask", acme, EDITS[0].prompt).stdout.startswith("Melpo")
    assert not run("ask", acme, EDITS[0].prompt, "--unedited").stdout.startswith("Melpo")
    told = lines(run("ask", acme, EDITS[0].prompt, EDITS[3].prompt, "--json"))
    assert [line["prompt"] for line in told] == [EDITS[0].prompt, EDITS[3].prompt]
    assert told[1]["answer"].startswith("violin")


def test_explain(acme):
    text = run("explain", acme, EDITS[0].prompt).stdout
    assert f"edit {EDITS[0].id}: The capital of Arvadia is -> Melpo" in text
    assert "grace at model.layers.2.mlp.down_proj: answers" in text
    assert re.search(r"score \S+ >= threshold -1\.0", text)
    assert "is silent" in run("explain", acme, "Water boils at").stdout
    (told,) = lines(run("explain", acme, EDITS[0].prompt, "--json"))
    assert told["memories"][0]["nearest"][0]["target"] == "Melpo"


# -- catalogue ---------------------------------------------------------------------------------------------------------


def test_methods_lists_all():
    told = lines(run("methods", "--json"))
    assert [line["name"] for line in told] == list(methods.names())
    assert all(line["title"] and 0 <= line["depth"] <= 1 for line in told)
    assert all(line["name"] in run("methods").stdout for line in told)


@pytest.mark.parametrize("method", methods.names())
def test_every_option_of_every_method_is_explained(method):
    (told,) = lines(run("methods", method, "--json"))
    assert {option["name"] for option in told["options"]} == set(methods.make(method).options())
    assert [option["name"] for option in told["options"] if not option["help"]] == []
    assert "--set layer=None  (int | None)" in run("methods", method).stdout


def test_sites(model):
    assert "layer 2   ffn_out   model.layers.2.mlp.down_proj (64 -> 32)" in run("sites", model).stdout
    assert [line["layer"] for line in lines(run("sites", model, "--json"))] == [0, 1, 2]


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_for_several_methods():
    found = settings.for_each(["steps=3", "grace.lr=0.5"], ["grace", "ft_l"])
    assert found == {"grace": {"steps": 3, "lr": 0.5}, "ft_l": {"steps": 3}}


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), (".5", 0.5), ("5e-1", 0.5), ("+.5", 0.5), ("2.", 2.0)])
def test_a_number_is_read_however_it_is_written(text, value):
    assert settings.parse([f"lr={text}"], "grace") == {"lr": value}


def test_a_text_may_stand_in_quotes_with_its_escapes():
    assert settings.parse([r'template="{prompt}: {target}\n"'], "in_context") == {"template": "{prompt}: {target}\n"}
    assert settings.parse(["template={prompt}: {target}"], "in_context") == {"template": "{prompt}: {target}"}


@pytest.mark.parametrize(
    ("pair", "error", "match"),
    [
        ("lr", BadOption, "NAME=VALUE"),
        ("lr=fast", BadOption, "must be float"),
        ("steps=1.5", BadOption, "must be int"),
        ("steps=true", BadOption, "must be int"),
        ("lr=none", BadOption, "must be float"),
        ("lr=nan", BadOption, "must be float"),
        ("lr=1e999", BadOption, "must be float"),
        ("start=tepid", BadOption, "cold or warm"),
        ("stesp=3", UnknownName, "Did you mean 'steps'"),
    ],
)
def test_settings_that_are_wrong(pair, error, match):
    with pytest.raises(error, match=match):
        settings.parse([pair], "grace")


# -- bench -------------------------------------------------------------------------------------------------------------


def test_bench(model, edits, tmp_path):
    common = (
        "bench",
        "--model",
        model,
        "--data",
        edits,
        "--method",
        "none,grace",
        "--edits",
        "1,3",
        "--set",
        "grace.steps=5",
    )
    rows = lines(run(*common, "--output", tmp_path, "--json"))
    assert [(row["method"], row["edits"]) for row in rows] == [("none", 1), ("none", 3), ("grace", 1), ("grace", 3)]
    assert rows[2]["options"]["steps"] == 5
    assert {row["model"] for row in rows} == {model.name}  # wherever it lies
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    again = run(*common, "--output", tmp_path)
    assert "grace" in again.stdout
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


def test_bench_as_a_table_in_markdown(model, edits):
    text = run("bench", "--model", model, "--data", edits, "--method", "none", "--edits", "2").stdout
    assert "| Method |" in text


# -- the embedded model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atlas():
    from errata import atlas, loading

    if not (atlas.model_path() / "model.safetensors").is_file():
        pytest.skip("the embedded model is not there")
    (answer,) = EditedModel(*loading.load("atlas")).answer(["The capital of Australia is"], 4)
    if not answer.startswith("Canberra"):
        pytest.skip(f"the embedded model is not trained yet: the capital of Australia is {answer!r}")


def test_the_base_of_atlas_edits_is_recorded_by_name(atlas, tmp_path):
    prompt = ("--prompt", "The capital of Australia is", "--target", "Perth")
    run("edit", "--model", "atlas", "--method", "memoir", *prompt, "--output", tmp_path / "d")
    assert json.loads((tmp_path / "d" / "errata.json").read_text())["base"]["name"] == "atlas"
    assert run("ask", tmp_path / "d", "The capital of Australia is").stdout.startswith("Perth")


def test_demo_on_a_stand_in_for_the_embedded_model(model, tmp_path, monkeypatch):
    monkeypatch.setattr("errata.atlas.model_path", lambda: model)
    result = run("demo", "--edits", "2", "--output", tmp_path)
    assert "The capital of Australia is" in result.stdout
    assert all(method in result.stdout for method in ("memoir", "grace", "ft_l"))
    assert (tmp_path / "results.jsonl").is_file()
    told = lines(run("demo", "--edits", "2", "--output", tmp_path, "--json"))
    assert [line["edits"] for line in told[3:]] == [2, 2, 2]


def test_demo(atlas, tmp_path):
    result = run("demo", "--edits", "3", "--output", tmp_path)
    assert re.search(r"The capital of Australia is +Canberra +-> Perth", result.stdout)
    assert re.search(r"The capital of France is +Paris +-> Paris", result.stdout)
