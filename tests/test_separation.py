"""Routing as it is shown: the decisions that the model itself makes, and how edits spread over MEMOIR's columns."""

import functools
import math

import pytest
import torch

from errata.analysis.columns import columns
from errata.analysis.separation import area, ask, memory_of, questions, separation
from errata.edit import Edit
from errata.errors import BadOption
from errata.masks import unpack
from errata.model import EditedModel
from test_every_method import IRRELEVANT, edited, fresh
from tiny import EDITS

ROUTED = ("memoir", "wise", "grace")
shown = functools.cache(lambda method: separation(edited(method, "llama")))


def model(method: str) -> EditedModel:
    return edited(method, "llama")


# -- decisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ROUTED)
def test_what_is_shown_is_what_explain_says(method: str) -> None:
    prompts = [text for edit in EDITS[:2] for text in (edit.prompt, edit.rephrases[0], edit.locality[0].prompt)]
    name = memory_of(model(method))
    found = ask(model(method), name, prompts)
    for i, prompt in enumerate(prompts):
        (told,) = model(method).explain(prompt)["memories"]
        assert told["memory"] == name
        assert told["answers"] == bool(found.passed[i])
        assert told["score"] == pytest.approx(float(found.score[i]), abs=2e-3)
        assert told["threshold"] == pytest.approx(float(found.threshold[i]), abs=2e-3)
        assert told.get("nearest", [{"id": None}])[0]["id"] == found.nearest[i]


@pytest.mark.parametrize("method", ROUTED)
def test_every_prompt_is_in_one_group(method: str) -> None:
    groups = shown(method)["groups"]
    assert groups["edits"]["prompts"] == len(EDITS)
    assert groups["rephrasings"]["prompts"] == sum(len(edit.rephrases) for edit in EDITS)
    assert groups["irrelevant: same_relation"]["prompts"] == 3
    assert groups["irrelevant: far"]["prompts"] == 2
    assert groups["calibration"]["prompts"] == len(IRRELEVANT)
    assert all(len(told["scores"]) == told["prompts"] for told in groups.values())


@pytest.mark.parametrize("method", ["memoir", "grace"])
def test_edits_pass_and_are_nearest_to_themselves(method: str) -> None:
    told = shown(method)["groups"]["edits"]
    assert told["passed"] == told["own_edit"] == 1.0
    assert told["margin"]["least"] >= 0


def test_a_memory_without_separate_edits_has_no_nearest() -> None:
    assert shown("wise")["groups"]["edits"]["own_edit"] is None


def test_the_share_that_passes_is_that_of_scores_that_reach_the_threshold() -> None:
    for method in ROUTED:
        for told in shown(method)["groups"].values():
            assert (told["margin"]["most"] >= 0) == (told["passed"] > 0)
            assert (told["margin"]["least"] >= 0) == (told["passed"] == 1)


def test_areas_are_those_of_the_scores_that_are_told() -> None:
    found = shown("memoir")
    groups = found["groups"]
    edits, far = (torch.tensor(groups[name]["scores"]) for name in ("edits", "irrelevant: far"))
    assert found["auc"]["edits"]["irrelevant: far"] == pytest.approx(area(edits, far))
    assert set(found["auc"]["rephrasings"]) == {
        "irrelevant", "irrelevant: far", "irrelevant: same_relation", "irrelevant: same_subject", "calibration",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [([1, 2], [0, 1], 3.5 / 4), ([3, 4], [1, 2], 1.0), ([1], [2, 3], 0.0), ([5, 5], [5], 0.5)],
)
def test_area_under_the_curve(positive: list[int], negative: list[int], expected: float) -> None:
    assert area(torch.tensor(positive).double(), torch.tensor(negative).double()) == expected


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_method_that_is_always_on_is_refused() -> None:
    with pytest.raises(BadOption, match="ft_l decides by no score after 4 edits"):
        separation(edited("ft_l", "llama"))


def test_a_model_without_edits_is_refused() -> None:
    with pytest.raises(BadOption, match="memoir decides by no score after 0 edits"):
        separation(fresh("memoir"))


def test_nothing_to_set_the_edits_against_is_refused() -> None:
    with pytest.raises(BadOption, match="no irrelevant prompt"):
        questions([Edit("Snow is", "red", rephrases=("What is snow?",))], [])


def test_a_prompt_counts_in_the_first_of_its_groups() -> None:
    asked = questions([Edit("Snow is", "red", rephrases=("Snow is", "What is snow?"))], ["What is snow?", "Tea is"])
    assert [(one.prompt, one.group) for one in asked] == [
        ("Snow is", "edits"), ("What is snow?", "rephrasings"), ("Tea is", "calibration"),
    ]  # fmt: skip


# -- columns -----------------------------------------------------------------------------------------------------------


def test_every_mask_is_counted_in_the_columns_that_it_holds() -> None:
    """Those of the W_m that is written now: this model's is so small that the first edits are in one that is closed."""
    memory = model("memoir").memories["memoir"]
    told, here = columns(memory), memory.here()
    T, N, D = int(here.sum()), memory.active, memory.site.in_features
    used = unpack(memory.masks[0, here], D).sum(0)
    assert 0 < T < len(EDITS)
    assert told["uses"]["mean"] == pytest.approx(T * N / D)
    assert told["uses"]["sd"] == pytest.approx(float(used.double().std(correction=0)))
    assert told["uses"]["sd_by_chance"] == pytest.approx(math.sqrt(T * N / D * (1 - N / D)))
    assert told["histogram"] == [int((used == n).sum()) for n in range(T + 1)]
    assert told["norms"]["written"] == D - told["uses"]["unused"]
    assert 0.1 <= told["norms"]["top_share_of_squares"] <= 1
