"""How long an answer takes, with the edits and without."""

import time

import pytest

from errata import EditedModel
from errata.answers import generate
from errata.bench import answering
from errata.edit import Edit
from errata.memory import Edited
from errata.methods import make
from tiny import EDITS, tiny_llama, tiny_tokenizer


@pytest.fixture
def model():
    made = EditedModel(tiny_llama(layers=2), tiny_tokenizer(), make("grace", steps=1))
    made.edit(EDITS[0])
    return made


def test_each_prompt_is_asked_with_the_edits_and_without(model, monkeypatch):
    asked = []

    def slowly(model, questions, spare):
        (question,) = questions
        with_edits = any(isinstance(module, Edited) for module in model.base.modules())
        asked.append((question.text, with_edits, spare))
        time.sleep(0.05 if with_edits else 0.001)
        return {question: (1, 2)}

    monkeypatch.setattr(answering, "generate", slowly)
    found = answering.answering(model, EDITS[:2])
    targets = [EDITS[0].target, *[EDITS[0].target] * 4, *[EDITS[1].target] * 4]
    assert asked == [(target, with_edits, 0) for target in targets for with_edits in (True, False)], "one to warm up"
    assert found["edited"] >= 0.05 / 2 > found["unedited"] > 0


def test_of_many_edits_some_from_all_over_the_stream_are_asked(model, monkeypatch):
    asked = []

    def noted(model, questions, spare):
        asked.append(questions[0].text)
        return {questions[0]: (1,)}

    monkeypatch.setattr(answering, "generate", noted)
    answering.answering(model, [Edit(f"Where is number {i}?", f"Rome {i}") for i in range(80)])
    assert asked[::2] == ["Rome 0", *(f"Rome {i}" for i in range(0, 80, 10))]


def test_answers_are_really_made(model):
    found = answering.answering(model, EDITS)
    assert set(found) == {"edited", "unedited"}
    assert min(found.values()) > 0
    assert answering.generate is generate
