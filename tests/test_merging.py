"""Merge operators (methods.md, section 3), as properties of pure functions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from errata.merging import OPERATORS, linear, sign, ties, trim


def shifts(seed: int, k: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(k, size, generator=generator))


def test_the_worked_example() -> None:
    """methods.md 3.3: Sign keeps what does not conflict whole, Linear halves it."""
    taus = [torch.tensor([3.0, -1, 0, 2]), torch.tensor([-1.0, -2, 4, 2])]
    assert sign(taus).tolist() == [3, -1.5, 4, 2]
    assert linear(taus).tolist() == [1, -1.5, 2, 2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 4), size=st.integers(1, 30), name=st.sampled_from(sorted(OPERATORS)))
def test_merging_equal_shifts_gives_that_shift(seed: int, k: int, size: int, name: str) -> None:
    tau = shifts(seed, 1, size)[0]
    expected = trim(tau, 0.53) if name == "ties" else tau
    torch.testing.assert_close(OPERATORS[name]([tau] * k), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(4, 40))
def test_disjoint_shifts_are_kept_whole(seed: int, size: int) -> None:
    one, two = shifts(seed, 2, size)
    mask = torch.arange(size) % 4 == 0
    other = torch.arange(size) % 4 == 2
    one, two = one * mask, two * other
    merged = ties([one, two])
    assert torch.equal(merged[mask], one[mask])
    assert torch.equal(merged[other], two[other])
    assert torch.equal(merged[~mask & ~other], torch.zeros(int((~mask & ~other).sum())))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(2, 4), size=st.integers(1, 30), name=st.sampled_from(sorted(OPERATORS)))
def test_the_order_does_not_matter_and_inputs_are_not_changed(seed: int, k: int, size: int, name: str) -> None:
    taus = shifts(seed, k, size)
    before = [tau.clone() for tau in taus]
    merged = OPERATORS[name](taus)
    torch.testing.assert_close(merged, OPERATORS[name](taus[::-1]))
    assert all(torch.equal(a, b) for a, b in zip(taus, before, strict=True))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 50), density=st.floats(0, 1))
def test_trimming_keeps_the_largest(seed: int, size: int, density: float) -> None:
    tau = shifts(seed, 1, size)[0]
    kept = trim(tau, density)
    assert int((kept != 0).sum()) == int(density * size)
    if 0 < int(density * size) < size:
        assert float(kept[kept != 0].abs().min()) >= float(tau[kept == 0].abs().max())


def test_weights_count() -> None:
    taus = [torch.tensor([1.0]), torch.tensor([4.0])]
    assert linear(taus, [3, 1]).item() == 1.75
    assert sign(taus, [3, 1]).item() == 1.75
