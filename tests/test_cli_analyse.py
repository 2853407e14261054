"""`errata analyse`: numbers on the disk, a figure where one can be drawn, and one line for what cannot be done."""

import json
import re
import sys
from functools import partial

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import commands
from errata.analysis import summary
from errata.analysis.figures import FIGURES
from errata.analysis.findings import FORMAT, Findings
from errata.analysis.summary import SUMMARIES
from errata.cli import app
from errata.data import jsonl
from errata.edit import Edit
from test_superposition import FACTS
from tiny import EDITS, write_tiny

run = partial(commands.run, "analyse")
refused = partial(commands.refused, "analyse")

COMMANDS = ("superposition", "tracing", "overlap", "routing")
SMALL = ("--rows", "32", "--columns", "64", "--masks", "16/64", "--edits", "20", "--queries", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("analyse") / "tiny"
    return write_tiny(path)


@pytest.fixture(scope="module")
def facts(model):
    jsonl.write(model.parent / "facts.jsonl", FACTS)
    return model.parent / "facts.jsonl"


@pytest.fixture(scope="module")
def edits(model):
    jsonl.write(model.parent / "edits.jsonl", EDITS)
    return model.parent / "edits.jsonl"


def written(result, output, name):
    """What the command wrote, which is what it said."""
    record = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
    assert json.loads(result.stdout) == record
    assert record["analysis"] == name
    assert record["provenance"]["errata"]
    return record


@pytest.mark.parametrize("command", COMMANDS)
def test_every_analysis_has_help_a_summary_and_a_figure_and_is_documented(command, root):
    text = run(command, "--help").stdout
    assert f"errata analyse {command}" in text
    assert "Example" in text
    assert command in SUMMARIES
    assert command in FIGURES
    told = (
        (root / "docs" / "cli.md").read_text(encoding="utf-8").partition("## `errata analyse`")[2].partition("\n## ")[0]
    )
    for option in re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE):
        assert option in told or option == "--help", option


def test_superposition(model, facts, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("superposition", model, "--facts", facts, "--output", tmp_path, "--tokens", "1.5", "--resamples", "20")
    record = written(
        run(*arguments, "--layers", "0,2", "--stream", "2", "--matrices", "--json"), tmp_path, "superposition"
    )
    assert [layer["layer"] for layer in record["found"]["layers"]] == [0, 2]
    assert all(layer["interference"]["relative_error"] < 1e-4 for layer in record["found"]["layers"])
    assert {"base_fingerprint", "data_sha256", "torch", "time"} <= set(record["provenance"])
    p = load_file(tmp_path / "superposition.safetensors")
    assert {tuple(each.shape) for each in p.values()} == {(len(FACTS), len(FACTS))}
    assert (tmp_path / "superposition.svg").exists() and (tmp_path / "superposition.png").exists()
    again = run(*arguments, "--layers", "0", "--stream", "0")
    assert again.stdout.startswith(f"{len(FACTS)} facts")
    assert "interference" not in json.loads((tmp_path / "superposition.json").read_text())["found"]["layers"][0]


def test_tracing(model, edits, tmp_path):
    pytest.importorskip("matplotlib")
    jsonl.write(tmp_path / "facts.jsonl", [Edit(edit.prompt, edit.target, edit.subject) for edit in EDITS])
    arguments = ("tracing", model, "--facts", tmp_path / "facts.jsonl", "--output", tmp_path, "--samples", "2")
    record = written(run(*arguments, "--json"), tmp_path, "tracing")
    assert record["found"]["facts"] == record["found"]["asked"] == 4
    assert set(record["found"]["kinds"]) == {"states", "mlp", "attention"}
    assert len(record["found"]["kinds"]["states"]["last"]["aie"]) == 3
    assert (tmp_path / "tracing.svg").exists()
    assert "4 of 4 facts are known" in run(*arguments, "--kinds", "states").stdout


def test_overlap(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("overlap", *SMALL, "--rho", "0.2,0.5", "--k", "2", "--repeat", "2", "--output", tmp_path)
    record = written(run(*arguments, "--json"), tmp_path, "overlap")
    assert [(one["rho"], one["k"]) for one in record["found"]["subspaces"]] == [(0.2, 2), (0.2, 2), (0.5, 2), (0.5, 2)]
    assert len({one["seed"] for one in record["found"]["subspaces"]}) == 4
    assert record["found"]["top_hash"][0]["active"] == 16
    assert (tmp_path / "overlap.svg").exists()
    assert "4 draws" in run(*arguments).stdout
    assert "nothing is shared" in run(*arguments, "--disjoint").stdout


@pytest.mark.parametrize("method", ["memoir", "wise"])
def test_routing_of_edits_that_are_made_for_it(model, edits, tmp_path, method):
    pytest.importorskip("matplotlib")
    arguments = ("routing", model, method, "--data", edits, "--edits", "3", "--output", tmp_path)
    record = written(run(*arguments, "--set", "steps=5", "--json"), tmp_path, "routing")
    assert record["settings"]["options"]["steps"] == 5
    assert record["found"]["edits"] == record["found"]["groups"]["edits"]["prompts"] == 3
    assert ("columns" in record["found"]) == (method == "memoir")
    assert (tmp_path / "routing.svg").exists()


def test_routing_of_a_directory_is_that_of_its_edits(model, edits, tmp_path):
    made = tmp_path / "made"
    arguments = ["edit", "--model", model, "--method", "grace", "--edits", edits, "--limit", "2", "--output", made]
    result = CliRunner().invoke(app, [*map(str, arguments), "--min-reliability", "0"])
    assert result.exit_code == 0, result.output
    text = run("routing", made, "--output", tmp_path).stdout
    assert text.startswith("grace, 2 edits (0 failed)")
    record = json.loads((tmp_path / "routing.json").read_text())
    assert record["settings"]["directory"] == str(made)
    assert record["found"]["groups"]["edits"]["passed"] == 1.0


def test_without_matplotlib_there_are_numbers_and_a_line_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("overlap", *SMALL, "--rho", "0.2", "--k", "2", "--output", tmp_path)
    assert "no figure: drawing needs 'matplotlib', which is not installed: pip install 'errata[plots]'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["overlap.json"]


def test_a_file_is_written_whole(tmp_path):
    findings = Findings("overlap", {"k": 2}, {"z": [1, 2]})
    assert json.loads(findings.write(tmp_path / "new").read_text()) == findings.to_record()


def test_the_committed_findings_are_told_and_have_their_figures(root):
    files = sorted((root / "benchmarks" / "results" / "analysis").rglob("*.json"))
    assert {path.stem for path in files} == set(COMMANDS)
    for path in files:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record.pop("format") == FORMAT
        assert summary.told(Findings(**record))
        assert path.with_suffix(".svg").exists()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_subject_that_is_not_in_its_prompt(model, tmp_path):
    rows = [{"src": fact.prompt, "alt": "Melpo", "subject": "Nobody", "rephrase": "?"} for fact in FACTS]
    (tmp_path / "zsre.json").write_text(json.dumps(rows))
    line = refused("superposition", model, "--facts", f"zsre:{tmp_path / 'zsre.json'}", "--output", tmp_path)
    assert "the subject 'Nobody' does not occur in the prompt" in line
    line = refused(
        "tracing", model, "--facts", f"zsre:{tmp_path / 'zsre.json'}", "--on-error", "skip", "--output", tmp_path
    )
    assert "0 facts about different subjects are too few" in line


def test_too_few_facts(model, edits, tmp_path):
    line = refused("superposition", model, "--facts", edits, "--output", tmp_path)
    assert "4 facts about different subjects are too few: at least 8 are needed" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "9"), "layer 9 is out of range: the model has layers 0 to 2"),
        (("--layers", "first"), "--layers 'first': numbers from 0"),
        (("--stream", "99"), "--stream 99: there are 10 facts"),
    ],
)
def test_superposition_that_cannot_be_measured(model, facts, tmp_path, arguments, message):
    assert message in refused("superposition", model, "--facts", facts, "--output", tmp_path, *arguments)
    assert not (tmp_path / "superposition.json").exists()


def test_texts_that_are_too_few(model, facts, tmp_path):
    (tmp_path / "texts.txt").write_text("Snow is white\n")
    line = refused("superposition", model, "--facts", facts, "--texts", tmp_path / "texts.txt", "--output", tmp_path)
    assert "too few to invert the covariance" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rho", "1.5"), "--rho '1.5': shares in (0, 1]"),
        (("--k", "0"), "--k '0': numbers from 1"),
        (("--masks", "9/8"), "--masks '9/8': N/D with 1 <= N <= D"),
        (("--rho", "0.5", "--k", "3", "--disjoint"), "k=3, rho=0.5: disjoint subspaces need k * rho <= 1"),
    ],
)
def test_overlaps_that_cannot_be_measured(tmp_path, arguments, message):
    assert message in refused("overlap", "--output", tmp_path, *arguments)


def test_a_kind_of_state_that_there_is_not(model, edits, tmp_path):
    line = refused("tracing", model, "--facts", edits, "--kinds", "states,mpl", "--output", tmp_path)
    assert "no kind of state is called 'mpl'. Did you mean 'mlp'?" in line


def test_facts_that_the_model_does_not_know(model, edits, tmp_path):
    assert "the model knows none of these 4 facts" in refused("tracing", model, "--facts", edits, "--output", tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (("atlas", "memior"), "Did you mean 'memoir'?"),
        (("a", "b", "c"), "analyse routing takes DIR, or MODEL METHOD"),
    ],
)
def test_routing_of_what_there_is_not(tmp_path, what, message):
    assert message in refused("routing", *what, "--output", tmp_path)


def test_routing_of_a_method_that_is_always_on(model, edits, tmp_path):
    line = refused("routing", model, "ft_l", "--data", edits, "--edits", "1", "--output", tmp_path)
    assert "ft_l decides by no score after 1 edits" in line
