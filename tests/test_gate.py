"""The gate: an edit is asked for before it is acknowledged, and one that is not good enough is refused."""

import pytest

from errata import methods, replay
from errata.audit import differences
from errata.contrast import SUBJECTS, WITNESSES
from errata.edit import Edit, Probe
from errata.editor import Check
from errata.errors import BadOption
from errata.gate import FRAMES, LENGTH, Gate, Watch
from errata.model import EditedModel
from tiny import EDITS, tiny_llama, tiny_tokenizer

A, B, C, _ = EDITS


@pytest.fixture(scope="module")
def model():
    """A model with one edit that holds."""
    made = EditedModel(tiny_llama(), tiny_tokenizer(), "grace", prefixes=(), seed=1)
    made.edit(A)
    return made


def check(**found):
    usual = {"answered": True, "answer": "", "rephrasings": (0, 4), "earlier": (8, 8), "locality": (16, 16)}
    return Check(**(usual | found))


@pytest.mark.parametrize(
    ("gate", "found", "says"),
    [
        (Gate(), check(), None),
        (Gate(), check(answered=False, answer="Tolk"), "Arvadia is' is answered with 'Tolk', not with 'Melpo'"),
        (Gate(), check(earlier=(0, 8), locality=(0, 16)), None),
        (Gate(0), check(answered=False, earlier=(0, 8)), None),
        (Gate(0.5), check(answered=False), "is answered with"),
        (Gate(0.9), check(earlier=(7, 8)), "reliability 0.89 < 0.9: of 8 earlier edits 7 hold"),
        (Gate(0.8), check(earlier=(7, 8)), None),
        (Gate(1), check(earlier=(0, 0)), None),
        (Gate(min_locality=0.9), check(locality=(14, 16)), "locality 0.88 < 0.9: 14 of 16 answers are unchanged"),
        (Gate(min_locality=0.9), check(locality=(15, 16)), None),
        (Gate(min_locality=1), check(locality=(0, 0)), None),
    ],
)
def test_what_is_good_enough(gate, found, says):
    problem = gate.problem(A, found)
    assert problem is None if says is None else says in problem


@pytest.mark.parametrize("bad", [{"min_reliability": 1.1}, {"min_reliability": -0.1}, {"min_locality": 2}])
def test_thresholds_are_shares(bad):
    with pytest.raises(BadOption, match=r"a share, in \[0, 1\]"):
        Gate(**bad)


def test_what_is_asked(model):
    watch = Watch(model, Gate(watched=3))
    new = Edit("The capital of Belmar is", "Melpo", rephrases=(A.prompt, " "), locality=(Probe(A.prompt), Probe(" ")))
    before = watch.before([new])
    assert before.earlier == [A]
    assert len(before.said) == 1 + 3
    (found,) = watch.after([new], before)
    assert found.rephrasings == (1, 1 + len(FRAMES)), "its rephrasing is the prompt of an edit with the same target"
    assert found.earlier == (1, 1)
    assert found.locality == (4, 4)
    assert not found.answered
    assert found.answer != "Melpo"
    assert found.seconds > 0


def test_an_edit_that_holds_is_found_to_hold(model):
    watch = Watch(model, Gate())
    (found,) = watch.after([A], watch.before([A]))
    assert (found.answered, found.answer) == (True, "Melpo")
    assert found.earlier == (0, 0), "the edit itself is no earlier one"
    assert watch.holding([A, B]) == [True, False]


def test_an_earlier_edit_that_did_not_hold_before_does_not_count(model):
    watch = Watch(model, Gate())
    model.history.append(B)
    try:
        assert watch.before([C]).earlier == [A]
    finally:
        model.history.pop()


def test_answers_that_change_are_seen(model):
    watch = Watch(model, Gate(watched=0))
    probe = Edit("x is", "y", locality=(Probe(A.prompt), Probe("Snow is")))
    before = watch.before([probe])
    assert [len(said) for said in before.said] == [LENGTH, LENGTH] or before.said
    with model.lifted():
        (found,) = watch.after([probe], before)
    assert found.locality == (1, 2)


def test_irrelevant_prompts_are_asked_once_in_each_state(monkeypatch):
    made = EditedModel(tiny_llama(), tiny_tokenizer(), methods.make("grace", steps=2), prefixes=(), seed=1)
    watch, asked = Watch(made, Gate(watched=3)), []
    real = Watch._say
    monkeypatch.setattr(Watch, "_say", lambda self, probes: (asked.append(len(probes)), real(self, probes))[1])
    before = watch.before([C])
    made.edit(C)
    watch.after([C], before)
    watch.before([A])
    assert asked.count(3) == 2, "before the first edit and after it"
    made.revert(C.id)
    again = watch.before([C])
    assert asked.count(3) == 3
    assert again.said == before.said


def test_asking_never_writes(model):
    before = replay.flat(model._tensors())
    watch = Watch(model, Gate())
    watch.after([B], watch.before([B]))
    assert differences(replay.flat(model._tensors()), before) == []
    assert model.history == [A]


def test_the_sample_depends_on_seed_and_place_alone(model):
    gate = Gate(watched=2)
    assert Watch(model, gate)._watched == Watch(model, gate)._watched
    other = EditedModel(tiny_llama(), tiny_tokenizer(), methods.make("grace"), prefixes=(), seed=2)
    assert Watch(other, gate)._watched != Watch(model, gate)._watched


@pytest.mark.parametrize(("method", "spared"), [("grace", True), ("ft_m", False)])
def test_what_becomes_of_other_subjects_is_told(method, spared):
    """By a method that answers its own prompt alone, and by one that moves a weight."""
    made = EditedModel(tiny_llama(), tiny_tokenizer(), method, prefixes=(), seed=1)
    watch = Watch(made, Gate())
    before = watch.before([A])
    made.edit(A)
    (found,) = watch.after([A], before)
    same, asked = found.neighbours
    assert asked == len(WITNESSES)
    assert (same == asked) == spared
    assert Gate().problem(A, found) is None


def test_no_method_learns_from_the_witnesses():
    assert not set(WITNESSES) & set(SUBJECTS)
