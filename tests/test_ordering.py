"""Order planning (methods.md, section 4): batches of like edits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.ordering import dealt, measured, plan


def clouds(seed: int, count: int, each: int) -> torch.Tensor:
    """Points around `count` directions, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(count, 12).repeat_interleave(each, 0)
    points = centres + 0.05 * torch.randn(centres.shape, generator=generator)
    return points[torch.randperm(len(points), generator=generator)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 30), size=st.integers(1, 9))
def test_every_edit_is_in_one_batch_and_none_is_too_large(seed: int, n: int, size: int) -> None:
    points = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    order = plan(points, size, torch.Generator().manual_seed(seed))
    assert sorted(i for batch in order.batches for i in batch) == list(range(n))
    assert max(map(len, order.batches)) <= size
    assert min(map(len, order.batches)) >= 1
    assert len(order.batches) == -(-n // size)


def test_like_edits_go_together() -> None:
    points = clouds(0, 4, 5)
    order = plan(points, 5, torch.Generator().manual_seed(0))
    kinds = points[:, :4].argmax(1)
    assert all(len(set(kinds[list(batch)].tolist())) == 1 for batch in order.batches)
    assert order.within > 0.9
    assert abs(order.between) < 0.2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_a_planned_order_is_more_alike_within_than_a_random_one(seed: int) -> None:
    points = clouds(seed, 3, 6) + 0.2
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(points), generator=generator).split(6)
    planned, random = plan(points, 6, generator), measured(points, [batch.tolist() for batch in shuffled])
    assert planned.within / planned.between > random.within / random.between


def test_the_most_alike_batch_comes_first() -> None:
    tight, loose = torch.eye(2, 8)[[0] * 4], torch.eye(2, 8)[[1] * 4]
    loose = loose + 0.3 * torch.randn(loose.shape, generator=torch.Generator().manual_seed(0))
    order = plan(torch.cat([loose, tight]), 4, torch.Generator().manual_seed(1))
    assert order.batches == ((4, 5, 6, 7), (0, 1, 2, 3))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(2, 30), size=st.integers(1, 9))
def test_dealing_out_keeps_every_edit_and_the_sizes(seed: int, n: int, size: int) -> None:
    points = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    order = plan(points, size, torch.Generator().manual_seed(seed))
    found = dealt(points, order)
    assert sorted(i for batch in found.batches for i in batch) == list(range(n))
    assert len(found.batches) == len(order.batches)
    assert max(map(len, found.batches)) <= size


def test_dealing_out_puts_unlike_edits_together() -> None:
    points = clouds(0, 4, 4)
    order = dealt(points, plan(points, 4, torch.Generator().manual_seed(0)))
    kinds = points[:, :4].argmax(1)
    assert all(len(set(kinds[list(batch)].tolist())) == 4 for batch in order.batches)
    assert order.within < order.between


def test_equal_points_are_shared_out() -> None:
    order = plan(torch.ones(5, 3), 2, torch.Generator().manual_seed(0))
    assert sorted(map(len, order.batches)) == [1, 2, 2]
    assert order.within > 0.999
    assert order.between > 0.999
