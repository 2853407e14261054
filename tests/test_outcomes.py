"""Which edits failed, and how."""

import pytest

from errata import outcomes
from errata.answers import Question, Said
from errata.edit import Edit
from errata.outcomes import EXAMPLES, KINDS, Answer, contested, together

TARGET = (5, 6, 7)


def answer(prompt, greedy):
    return Answer(prompt, Question((1, 2), TARGET, "Rome"), Said(greedy, 0.1, greedy, f"said {greedy}", ended=True))


def edit(i=0, **more):
    return Edit(f"Where is {more.get('subject', 'Acme')} {i}?", **({"target": "Rome"} | more))


@pytest.mark.parametrize(
    ("kind", "direct", "others", "shown"),
    [
        ("held", TARGET, (TARGET, TARGET), None),
        ("held", TARGET, (), None),
        ("rephrasing", TARGET, (TARGET, (1, 1, 1)), "other 1"),
        ("prompt", (5, 6, 1), ((1, 1, 1), TARGET), "own"),
        ("part", (5, 6, 1), ((1, 1, 1),), "own"),
        ("part", (1, 6), (), "own"),
        ("whole", (6, 7, 5), ((5, 6, 1),), "own"),
        ("whole", (), (), "own"),
    ],
)
def test_an_edit_is_of_one_kind_by_what_is_right_of_its_answers(kind, direct, others, shown):
    reworded = [answer(f"other {i}", greedy) for i, greedy in enumerate(others)]
    found = outcomes.outcomes([edit()], [answer("own", direct)], [reworded])
    assert list(found) == [kind]
    assert found[kind]["edits"] == 1
    assert [example["prompt"] for example in found[kind]["examples"]] == ([] if shown is None else [shown])
    if shown is not None:
        (example,) = found[kind]["examples"]
        wrong = direct if shown == "own" else others[1]
        assert example == {"id": edit().id, "prompt": shown, "target": "Rome", "said": f"said {wrong}"}


def test_contested_edits_are_those_whose_subject_is_given_another_target_for_the_same_answer():
    edits = [
        edit(0, subject="Acme"), edit(1, subject="acme", target="Oslo"), edit(2, subject="Zeta"), edit(3, subject="Zeta"),
        edit(4), edit(5, target="Oslo"),
        edit(6, subject="Ixo", target_old="Bonn"), edit(7, subject="Ixo", target_old="bonn", target="Oslo"),
        edit(8, subject="Ixo", target_old="1950", target="1951"),
    ]  # fmt: skip
    assert contested(edits) == {*edits[:2], *edits[6:8]}, "the last is about something else"
    found = outcomes.outcomes(edits, [answer("own", (1, 1, 1))] * 9, [[]] * 9)
    assert (found["whole"]["edits"], found["whole"]["contested"]) == (9, 4)
    assert len(found["whole"]["examples"]) == EXAMPLES < 9


def test_of_long_texts_the_end_of_the_prompt_and_the_beginning_of_the_answer_are_kept():
    long = Edit("x" * 500 + "Where?", "Rome" + "y" * 500)
    asked = answer(long.prompt, (1, 1, 1))._replace(said=Said((1, 1, 1), 0.1, (1, 1, 1), "z" * 500, ended=False))
    (example,) = outcomes.outcomes([long], [asked], [[]])["whole"]["examples"]
    assert example["prompt"].endswith("xWhere?")
    assert example["target"].startswith("Romey")
    assert {len(example[name]) for name in ("prompt", "target", "said")} == {outcomes.LONG}


def test_those_of_several_streams_are_added_up_in_the_order_of_kinds():
    held = outcomes.outcomes([edit()], [answer("own", TARGET)], [[]])
    whole = outcomes.outcomes([edit()] * 4, [answer("own", (1, 1, 1))] * 4, [[]] * 4)
    both = together([whole, held, whole])
    assert list(both) == ["held", "whole"] == [kind for kind in KINDS if kind in both]
    assert (both["held"]["edits"], both["whole"]["edits"], len(both["whole"]["examples"])) == (1, 8, EXAMPLES)
    assert len(whole["whole"]["examples"]) == 4, "what is added up is not changed"
    assert together([]) == {}
