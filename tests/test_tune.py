"""Tuning: one budget for all, a log that is resumed, and settings that are refused for the rows they were tuned on."""

import dataclasses
import json

import pytest

from errata.bench import Plan, read
from errata.bench.tune import FILE, Settings, Trial, best_of, prompt_hash, trials, tune, validation
from errata.data.dataset import Dataset
from errata.edit import Edit, Probe
from errata.errors import BadOption, DamagedFile, UnknownName, UsageError
from errata.methods import find, names
from test_every_method import IRRELEVANT
from tiny import EDITS, tiny_llama, tiny_tokenizer

SPACE = {"lr": (1e-6, 0.1), "steps": (2, 20)}


def plan(**options):
    given = {"model": "tiny", "data": "four", "edits": EDITS[:2], "irrelevant": IRRELEVANT}
    return Plan(tiny_llama(), tiny_tokenizer(), None, **{**given, **options})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned")
    return output, tune(plan(), "ft_m", 3, output, space=SPACE)


def test_the_defaults_are_tried_first_and_nothing_twice():
    drawn = trials("ft_l", 100)
    space = find("ft_l").search
    assert drawn[0] == {}
    assert len({json.dumps(options, sort_keys=True) for options in drawn}) == len(drawn)
    assert len(drawn) == len(space["lr"]) * len(space["epsilon"]) * len(space["drift"]), "the defaults are in the space"
    assert all(value in space[name] for options in drawn for name, value in options.items())


def test_the_same_seed_draws_the_same_settings_and_the_budget_is_kept():
    assert trials("ft_l", 5) == trials("ft_l", 9)[:5]
    assert trials("ft_l", 9, seed=1) != trials("ft_l", 9)
    assert len(trials("ft_m", 4, space={"lr": (1.0,)})) == 2


def test_values_must_be_there_and_be_of_options_that_exist():
    with pytest.raises(BadOption, match="declares no values to search"):
        trials("ft_m", 4, space={})
    with pytest.raises(UnknownName, match="learning"):
        trials("ft_m", 4, space={"learning": (1,)})


def test_the_best_trial_is_chosen_and_every_trial_is_logged(tuned):
    output, best = tuned
    rows = read(output)
    assert len(rows) == 3
    assert best.score == max(row.scores["generated_exact"]["average"] for row in rows)
    assert {row.method for row in rows} == {"ft_m"}
    chosen = json.loads((output / FILE).read_text())["methods"]["ft_m"]
    assert chosen["options"] == best.options
    assert chosen["trials"] == 3
    assert chosen["score"] >= chosen["default_score"]


def test_a_setting_that_edits_nothing_does_not_win(tuned):
    row = read(tuned[0])[0]

    def trial(name, reliability, average):
        scores = {"generated_exact": {"reliability": reliability, "average": average}}
        return Trial(name, {}, (dataclasses.replace(row, scores=scores),))

    idle, poor, good = trial("idle", 0.04, 0.33), trial("poor", 0.1, 0.2), trial("good", 0.1, 0.25)
    assert best_of([idle, poor, good]) is good
    assert best_of([idle]) is idle
    assert best_of([poor, trial("the same", 0.1, 0.2)]) is poor


def test_the_same_search_again_measures_nothing_anew(tuned):
    output, best = tuned
    before = (output / "results.jsonl").read_bytes()
    steps = []
    again = tune(plan(), "ft_m", 3, output, space=SPACE, step=steps.append)
    assert (again.options, again.score) == (best.options, best.score)
    assert (output / "results.jsonl").read_bytes() == before
    assert steps == []


def test_another_method_joins_the_file_under_the_same_protocol_only(tuned):
    output, best = tuned
    with pytest.raises(BadOption, match="tuned with another budget"):
        tune(plan(), "ft_l", 2, output, space=SPACE)
    with pytest.raises(BadOption, match="another validation"):
        tune(plan(edits=EDITS[1:3]), "ft_l", 3, output, space=SPACE)
    tune(plan(), "ft_l", 3, output, space=SPACE)
    settings = Settings.read(output / FILE)
    assert sorted(settings.chosen) == ["ft_l", "ft_m"]
    assert settings.options("ft_m") == best.options
    assert settings.options("grace") == {}


def test_rows_that_were_tuned_on_are_refused(tuned):
    settings = Settings.read(tuned[0] / FILE)
    settings.check_disjoint(EDITS[2:], "here")
    with pytest.raises(BadOption, match="1 of the 3 edits to be scored were tuned on by here"):
        settings.check_disjoint(EDITS[1:], "here")
    same_prompt = dataclasses.replace(EDITS[0], target="other")
    assert prompt_hash(same_prompt) == prompt_hash(EDITS[0])


def test_validation_takes_the_end_of_a_file_and_no_probe_of_its_beginning():
    edits = [Edit(f"Fact {i} is", "so", locality=(Probe(f"Near {i} is", "it"),)) for i in range(10)]
    chosen, irrelevant = validation(Dataset("ten", tuple(edits)), 2)
    assert chosen == edits[-2:]
    assert [probe.prompt for probe in irrelevant] == [f"Near {i} is" for i in range(4, 8)]
    with pytest.raises(UsageError, match="too few"):
        validation(Dataset("ten", tuple(edits)), 6)


def test_a_file_that_holds_no_settings_is_told_in_a_line(tmp_path):
    with pytest.raises(UsageError, match="errata tune"):
        Settings.read(tmp_path / FILE)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(DamagedFile, match="is no settings file"):
        Settings.read(tmp_path / FILE)


@pytest.mark.parametrize("method", names())
def test_every_method_says_what_to_search_with_its_default_among_the_values(method):
    editor = find(method)
    defaults = {f.name: f.default for f in dataclasses.fields(editor)}
    assert len(trials(method, 4)) == 4
    for name, values in editor.search.items():
        assert defaults[name] in values
        for value in values:
            assert editor.with_options({name: value}).options()[name] == value
