"""Wordings: what of a prompt is left out and moved, and what never is; and that MEMOIR learns from them."""

from random import Random

import pytest

from errata.edit import Edit
from errata.errors import BadOption
from errata.methods import make
from errata.wording import reworded, wordings
from test_method_checks import with_options
from tiny import EDITS

QUESTION = Edit("What is the name of Kurt Weiland's place of work?", "Cornell", "Kurt Weiland")


def some(edit: Edit, share: float = 0.5, many: int = 60) -> set[str]:
    random = Random(0)
    return {reworded(edit, share, random) for _ in range(many)}


def test_small_words_are_left_out_and_the_others_stay() -> None:
    found = some(QUESTION)
    assert len(found) > 20
    for text in found:
        assert {"Kurt", "Weiland's", "place", "work?"} <= set(text.split())
        assert set(text.rstrip("?").split()) <= set(QUESTION.prompt.rstrip("?").split())


def test_the_subject_is_whole_and_sometimes_first() -> None:
    found = some(QUESTION)
    assert all("Kurt Weiland" in text for text in found)
    first = {text.startswith("Kurt Weiland") for text in found}
    assert first == {True, False}


def test_all_small_words_or_none() -> None:
    assert some(QUESTION, 1.0) == {"Kurt Weiland's place work?"}
    assert some(QUESTION, 0.0) == {QUESTION.prompt, "Kurt Weiland's What is the name of place of work?"}


def test_a_text_that_goes_on_keeps_its_last_word() -> None:
    found = some(Edit("The mother of Ada Quill is", "Dora Penn"))
    assert found >= {"mother Ada Quill is", "Ada Quill The mother of is"}
    assert all(text.endswith(" is") for text in found)


def test_lines_stay_lines() -> None:
    found = some(Edit("Q: Who is it that runs Acme?\nA:", "Ada"))
    assert len(found) > 5
    assert all(text.endswith("Acme?\nA:") for text in found)


@pytest.mark.parametrize("prompt", ["Who is it?", "?", "Where"])
def test_something_is_always_asked(prompt: str) -> None:
    assert some(Edit(prompt, "Ada"), 1.0) == {prompt}


def test_the_same_edit_has_the_same_wordings_and_a_share_of_0_none() -> None:
    assert wordings(QUESTION, 0.0, 0) is None
    one, again, other = (wordings(QUESTION, 0.5, seed) for seed in (0, 0, 1))
    assert one is not None
    assert again is not None
    assert other is not None
    said = [[say() for _ in range(8)] for say in (one, again, other)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(("share", "same"), [(0.0, True), (0.5, False)])
def test_memoir_learns_an_edit_in_other_wordings(share: float, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = with_options("memoir", reworded=share, steps=1, tries=1, contrast=0.0), list[str]()
    rows = model.tokens.rows
    monkeypatch.setattr(
        model.tokens, "rows", lambda pairs, *more: seen.extend(p for p, _ in pairs) or rows(pairs, *more)
    )
    model.edit(EDITS[0])
    prompt = EDITS[0].prompt
    behind = [text for text in seen if text != prompt]
    assert prompt in seen
    assert len(behind) >= len(model.prefixes())
    assert all(text.endswith(prompt) for text in behind) == same


def test_a_share_is_asked_for() -> None:
    with pytest.raises(BadOption, match=r"memoir: reworded=1.5: a share, in \[0, 1\]"):
        make("memoir", reworded=1.5)
