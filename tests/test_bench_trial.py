"""Trials of a plan, and what an estimate makes of them."""

import pytest

from errata import methods
from errata.bench import Plan
from errata.bench.estimate import estimate
from errata.bench.stream import Bench, Step
from errata.bench.trial import Pace, tried
from errata.edit import Edit
from errata.errors import EditFailed
from errata.metrics import Reference
from tiny import tiny_llama, tiny_tokenizer

EDITS = [
    Edit(f"The capital of {name} is", "Rome", subject=name) for name in ("Italy", "France", "Peru", "Chad", "Cuba")
]


def plan(editor=None, **named):
    return Plan(tiny_llama(), tiny_tokenizer(), editor, "tiny", "five", EDITS, **named)


def test_two_edits_are_tried_of_a_stream_or_two_batches(monkeypatch):
    made = []
    real = Bench._step

    def spy(self, model, batch, log) -> Step:
        made.append(len(batch))
        return real(self, model, batch, log)

    monkeypatch.setattr(Bench, "_step", spy)
    grace = methods.make("grace", steps=2)
    pace = tried(plan(grace, checkpoints=(1, 5), chunks=2), Reference())
    assert made == [1, 1]
    assert pace.setting_up >= 0 < pace.editing
    assert pace.scoring > 0
    made.clear()
    tried(plan(grace, batch_size=2))
    assert made == [2, 2]
    made.clear()
    tried(plan(grace, batch_size=4))
    assert made == [4, 1], "as many as there are"


def test_edits_that_fail_have_no_pace(monkeypatch):
    grace = methods.make("grace")

    def fail(model, edits):
        raise EditFailed("as asked")

    monkeypatch.setattr(grace, "edit", fail)
    with pytest.raises(EditFailed, match="as asked"):
        tried(plan(grace))


def test_streams_set_up_once_and_every_measurement_scores_all():
    chunked = plan(methods.make("grace"), checkpoints=(1, 2), chunks=2)
    once = estimate([chunked], paces=[Pace(10.0, 1.0, 0.1, 512.0)])
    assert once.streams == 4, "two of one edit, two of two"
    assert once.seconds == 4 * 10 + (2 * 1 + 2 * 2) * 1
    assert once.scoring == pytest.approx((2 * 1 + 2 * 2) * 0.1)
    assert once.peak_memory_mb == 512
    along = estimate([plan(methods.make("grace"), checkpoints=(1, 5))], paces=[Pace(10.0, 1.0, 0.1, None)])
    assert along.seconds == 15
    assert along.scoring == pytest.approx(0.6), "one edit after the first, five at the end"
    assert along.peak_memory_mb is None
    unknown = estimate([chunked, chunked], paces=[Pace(10.0, 1.0, 0.1, 512.0), None])
    assert unknown.unknown == ("grace",)
    assert unknown.seconds == once.seconds
    assert estimate([chunked]).scoring is None
