"""`errata tune` and `errata bench --settings`: from a search to a benchmark that uses what it found."""

import json

import pytest

from errata.bench import read
from errata.data import jsonl
from errata.edit import Edit
from test_cli import lines, model, run

__all__ = ["model"]

FACTS = [Edit(f"The {thing} of Arvadia is", word, rephrases=(f"Arvadia has the {thing}",)) for thing, word in (
    ("river", "Osk"), ("king", "Ivo"), ("bread", "rye"), ("tower", "Ned"), ("song", "Mira"), ("stone", "flint"),
)]  # fmt: skip


@pytest.fixture(scope="module")
def facts(model):
    jsonl.write(model.parent / "facts.jsonl", FACTS)
    return model.parent / "facts.jsonl"


@pytest.fixture(scope="module")
def tuned(model, facts):
    output = model.parent / "tuned"
    common = ("--model", model, "--data", facts, "--edits", "2", "--budget", "2", "--output", output)
    return output, run("tune", "ft_m,ft_l", *common, "--search", "steps=1,30", "--search", "lr=0.1", "--json")


def test_every_method_gets_the_same_budget_and_a_place_in_the_settings(tuned, model):
    output, result = tuned
    assert [told["method"] for told in lines(result)] == ["ft_m", "ft_l"]
    assert len(read(output)) == 4
    settings = json.loads((output / "settings.json").read_text())
    assert {name: entry["trials"] for name, entry in settings["methods"].items()} == {"ft_l": 2, "ft_m": 2}
    assert (settings["protocol"]["budget"], settings["protocol"]["model"]) == (2, model.name)


def test_the_benchmark_takes_tuned_settings_and_an_option_of_its_own_goes_before(tuned, model, facts):
    settings = tuned[0] / "settings.json"
    chosen = json.loads(settings.read_text())
    chosen["methods"]["ft_m"]["options"] = {"steps": 7, "lr": 0.2}
    other = settings.with_name("other.json")
    other.write_text(json.dumps(chosen))
    common = ("--model", model, "--data", facts, "--method", "ft_m", "--edits", "2", "--settings", other, "--json")
    (row,) = lines(run("bench", *common, "--set", "lr=0.3"))
    assert (row["options"]["steps"], row["options"]["lr"]) == (7, 0.3)


def test_rows_that_were_tuned_on_are_not_scored(tuned, model, facts):
    common = ("--model", model, "--data", facts, "--method", "ft_m", "--settings", tuned[0] / "settings.json")
    assert "1 of the 5 edits to be scored were tuned on" in run("bench", *common, "--edits", "5", code=2).stderr


def test_what_cannot_be_searched_is_told_in_a_line(tmp_path):
    said = run("tune", "ft_m", "--output", tmp_path, "--search", "lr", code=2).stderr
    assert said == "error: --search lr: write NAME=VALUE,VALUE\n"
    assert (
        "no option of ft_m is called 'rate'"
        in run("tune", "ft_m", "--output", tmp_path, "--search", "rate=1", code=2).stderr
    )
    assert "no method is called 'nope'" in run("tune", "nope", "--output", tmp_path, code=2).stderr
    assert "holds no settings" in run("bench", "--settings", tmp_path / "no.json", code=2).stderr
