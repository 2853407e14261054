"""Overlaps of random subspaces: theorem 2.1 of WISE, and MEMOIR's masks against chance (methods.md 1h, 3.4)."""

from itertools import combinations

import pytest

from errata.analysis.overlap import chance, scatter, subspaces, top_hash_masks
from errata.errors import BadOption


@pytest.mark.parametrize(("rho", "k"), [(0.2, 2), (0.3, 3), (0.5, 4)])
def test_what_masks_share_is_what_the_theorem_says(rho: float, k: int) -> None:
    found = subspaces(256, 1024, rho, k, seed=3)
    n = 256 * 1024
    assert found["all"]["expected"] == pytest.approx(n * rho**k)
    assert found["all"]["sd"] == pytest.approx((n * rho**k * (1 - rho**k)) ** 0.5)
    assert abs(found["all"]["z"]) < 4
    assert len(found["pairs"]) == k * (k - 1) // 2
    assert all(abs(pair["z"]) < 4 and pair["expected"] == pytest.approx(n * rho**2) for pair in found["pairs"])
    assert found["covered"] == pytest.approx(found["expected_covered"], rel=0.01)


def test_counts_are_counts() -> None:
    """Inclusion and exclusion, exactly."""
    found = subspaces(64, 64, 0.4, 3, seed=1)
    pairs = sum(pair["measured"] for pair in found["pairs"])
    assert found["covered"] == sum(found["sizes"]) - pairs + found["all"]["measured"]


def test_disjoint_masks_share_nothing() -> None:
    found = subspaces(64, 256, 0.25, 4, disjoint=True)
    assert found["all"] == {"measured": 0, "expected": 0.0, "sd": 0.0, "z": None}
    assert found["covered"] == sum(found["sizes"]) == 64 * 256
    assert scatter([found])["counts"] == 0


def test_over_many_draws_counts_scatter_as_a_binomial_does() -> None:
    z = scatter([subspaces(64, 512, 0.3, 2, seed=10 * i) for i in range(60)])
    assert z["counts"] == 60
    assert abs(z["mean"]) < 4 / 60**0.5
    assert 0.7 < z["rms"] < 1.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 0.0, 2), "rho=0.0 must be in"),
        ((8, 8, 1.5, 2), "rho=1.5 must be in"),
        ((8, 8, 0.5, 0), "k=0"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(arguments: tuple[int, int, float, int], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        subspaces(*arguments)


def test_disjoint_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadOption, match=r"k=3, rho=0.5: disjoint subspaces need k \* rho <= 1"):
        subspaces(8, 8, 0.5, 3, disjoint=True)


def test_chance_is_the_hypergeometric_distribution_by_enumeration() -> None:
    width, active = 7, 3
    sets = list(combinations(range(width), active))
    overlaps = [len(set(sets[0]) & set(other)) / active for other in sets]
    found = chance(width, active)
    mean = sum(overlaps) / len(overlaps)
    assert found.mean == pytest.approx(mean)
    assert found.sd == pytest.approx((sum((o - mean) ** 2 for o in overlaps) / len(overlaps)) ** 0.5)
    assert found.largest == sorted(overlaps)[len(overlaps) // 2]
    below = [sum(o <= level for o in overlaps) / len(overlaps) for level in (0, 1 / 3, 2 / 3, 1)]
    assert chance(width, active, trials=10).largest == pytest.approx(
        next(i / 3 for i, share in enumerate(below) if share**10 >= 0.5)
    )


@pytest.mark.parametrize(
    ("width", "active", "mean", "most"),
    [(14336, 4096, 0.286, 0.31), (16384, 4096, 0.25, 0.27), (11008, 4096, 0.372, 0.40)],
)
def test_chance_at_the_published_sizes(width: int, active: int, mean: float, most: float) -> None:
    """methods.md, 1 (h2): the means, and the largest of 15,000."""
    found = chance(width, active, 15_000)
    assert found.mean == pytest.approx(mean, abs=5e-4)
    assert found.sd == pytest.approx(0.006, abs=5e-4)
    assert found.largest == pytest.approx(most, abs=6e-3)


def test_masks_of_unrelated_features_overlap_by_chance() -> None:
    found = top_hash_masks(512, 146, edits=300, queries=20)
    theory, measured = found["chance"], found["measured"]
    assert measured["mean"] == pytest.approx(theory["mean"], abs=4 * theory["sd"] / 6000**0.5)
    assert measured["sd"] == pytest.approx(theory["sd"], rel=0.1)
    assert measured["largest"] == pytest.approx(theory["largest"], abs=2 * theory["sd"])


def test_masks_of_more_features_than_there_are_are_refused() -> None:
    with pytest.raises(BadOption, match=r"active=9 must be in 1 \.\. 8"):
        top_hash_masks(8, 9, 1, 1)
