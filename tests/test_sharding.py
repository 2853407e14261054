"""Random subspaces (methods.md 3.4): their sizes and overlaps, and how what they hold is stored."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.sharding import HELD, beyond, edits_in, expected_overlap, gather, mask, spread

SHAPE = (256, 1024)
SIZE = SHAPE[0] * SHAPE[1]


def test_a_matrix_that_is_given_more_than_it_holds_is_told() -> None:
    assert beyond(4096 * 11008, 7_600) == ""
    assert "past some 7,665; mode=retrieve" in beyond(4096 * 11008, 8_000)


@pytest.mark.parametrize(("rho", "k"), [(0.2, 2), (0.3, 2), (0.33, 3)])
def test_independent_subspaces_overlap_as_the_theorem_says(rho: float, k: int) -> None:
    masks = [mask(SHAPE, rho, seed=7, shard=i) for i in range(k)]
    mean, sd = expected_overlap(SIZE, rho, k)
    assert abs(int(torch.stack(masks).all(0).sum()) - mean) <= 4 * sd
    for one in masks:
        assert abs(int(one.sum()) - rho * SIZE) <= 4 * math.sqrt(SIZE * rho * (1 - rho))


def test_the_overlap_on_llama_2() -> None:
    """45.09 M entries, rho .2, k 2: 1.8036 M, give or take 1.3 k."""
    mean, sd = expected_overlap(4096 * 11008, 0.2, 2)
    assert round(mean / 1e6, 4) == 1.8036
    assert round(sd / 1e3, 1) == 1.3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 5))
def test_disjoint_subspaces_share_nothing_and_may_fill_the_matrix(seed: int, k: int) -> None:
    masks = torch.stack([mask((16, 40), 1 / k, seed, i, disjoint=True) for i in range(k)])
    assert int(masks.sum(0).max()) == 1
    assert masks.any(0).all()


def test_a_mask_follows_from_its_seed() -> None:
    assert torch.equal(mask(SHAPE, 0.2, 3, 1), mask(SHAPE, 0.2, 3, 1))
    assert not torch.equal(mask(SHAPE, 0.2, 3, 1), mask(SHAPE, 0.2, 3, 0))
    assert not torch.equal(mask(SHAPE, 0.2, 4, 1), mask(SHAPE, 0.2, 3, 1))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 4))
def test_values_are_stored_without_the_zeros(seed: int, k: int) -> None:
    masks = [mask((8, 30), 0.3, seed, i) for i in range(k)]
    dense = torch.randn(k, 8, 30, generator=torch.Generator().manual_seed(seed)) * torch.stack(masks)
    values = gather(dense, masks)
    assert len(values) == sum(int(one.sum()) for one in masks)
    assert torch.equal(torch.stack(spread(values, masks)), dense)


@pytest.mark.parametrize(
    ("expected", "weights", "edits"),
    [
        (None, None, 500),  # released
        (1001, None, 501),  # one round
        (3000, 4096 * 11008, 500),  # three rounds [paper: 3,000 edits in memories of 1,000]
        (1000, 256 * 2304, 50),  # ten rounds of a hundred, which is what so few weights hold
        (None, 256 * 2304, 50),
        (9, 0, 1),
    ],
)
def test_a_shard_has_so_many_edits_that_a_matrix_of_its_own_holds_them(
    expected: int | None, weights: int | None, edits: int
) -> None:
    assert edits_in(2, expected, weights) == edits
    assert weights is None or edits == 1 or 2 * edits <= HELD * weights
