"""Pretraining: steps of the optimizers, whoever shares the work, and texts in batches."""

from random import Random

import pytest
import torch

from errata.pretraining.batches import IGNORED, Row, grouped, padded
from errata.pretraining.fitting import Fitting, Rates, fit
from errata.pretraining.llama import Shape, build

SHAPE = Shape(vocabulary=40, width=32, layers=2, heads=1, ffn_width=64)
RATES = Rates(3e-3, 2e-3, 0.01)


def batch(seed, rows=6):
    random = Random(seed)
    return padded([Row([random.randrange(3, 40) for _ in range(4 + i)], 2) for i in range(rows)], pad=2)


def stepped(workers=1, sparse=False, parts=None):
    model = build(SHAPE, 0)
    fitting = Fitting(model, RATES, workers, sparse=sparse)
    losses = [fitting.step(parts or [batch(step), batch(-step - 1)], 1.0) for step in range(3)]
    fitting.close()
    return losses, [p.detach().clone() for p in model.parameters()]


def test_a_batch_is_padded_on_the_right_and_has_a_loss_on_what_is_not_given():
    made = padded([Row([5, 6, 7], 1), Row([8], 0)], pad=2)
    assert made.ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert made.labels.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


def test_groups_hold_every_row_once_and_no_more_tokens_than_allowed():
    rows = [Row([i] * (1 + i % 7), 0) for i in range(50)]
    groups = grouped(list(rows), 20, Random(0))
    assert sorted(row for group in groups for row in group) == sorted(rows)
    assert max(len(group) * max(len(row.ids) for row in group) for group in groups) <= 20
    assert grouped(list(rows), 20, Random(0)) == groups != grouped(list(rows), 20, Random(1))


@pytest.mark.parametrize(("workers", "sparse"), [(2, False), (1, True), (2, True)])
def test_workers_and_sparse_logits_change_no_more_than_last_bits(workers, sparse):
    losses, weights = stepped(workers, sparse)
    reference, expected = stepped()
    assert losses == pytest.approx(reference, rel=1e-4)
    for found, wanted in zip(weights, expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-3)


def test_a_worker_without_a_part_does_no_harm():
    losses, _ = stepped(workers=3, parts=[batch(0)])
    assert losses == pytest.approx(stepped(workers=1, parts=[batch(0)])[0], rel=1e-4)
    assert losses[2] < losses[0]


def test_moments_that_are_remembered_give_the_same_bits():
    whole, halves = build(SHAPE, 0), build(SHAPE, 0)
    first = Fitting(whole, RATES, 2)
    for step in range(4):
        first.step([batch(step), batch(step + 9)], 1.0)
    before = Fitting(halves, RATES, 2)
    for step in range(2):
        before.step([batch(step), batch(step + 9)], 1.0)
    after = Fitting(halves, RATES, 2)
    after.remember(before.moments())
    for step in range(2, 4):
        after.step([batch(step), batch(step + 9)], 1.0)
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)


def test_fitting_counts_losses_and_tokens():
    rows = [Row([5, 6, 7, 8], 1), Row([9, 10, 11], 1)]
    losses = [(seen.smooth, seen.tokens) for seen in fit(build(SHAPE, 0), iter([rows] * 9), 2, [1.0] * 9, RATES)]
    assert [tokens for _, tokens in losses] == [7 * (i + 1) for i in range(9)]
    assert losses[-1][0] < losses[0][0]
