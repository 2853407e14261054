"""The index of stored masks finds what comparing all of them finds."""

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.errors import DamagedFile
from errata.mask_index import RISK, MaskIndex, cutoff
from errata.masks import nearest, overlaps, pack

WIDTH, ACTIVE = 1024, 292


def masks(count, seed=0):
    """Packed random masks of `ACTIVE` features."""
    rng = np.random.default_rng(seed)
    order = rng.random((count, WIDTH)).argsort(axis=1)
    return np.packbits(order < ACTIVE, axis=1, bitorder="little")


def near(row, share, seed=0):
    """A mask of as many features that shares this share of them."""
    rng = np.random.default_rng(seed)
    bits = np.unpackbits(row, bitorder="little").astype(bool)
    gone = rng.choice(bits.nonzero()[0], round((1 - share) * ACTIVE), replace=False)
    bits[rng.choice((~bits).nonzero()[0], len(gone), replace=False)] = True
    bits[gone] = False
    return np.packbits(bits, bitorder="little")


def by_comparing_all(query, rows):
    shared = overlaps(torch.from_numpy(query)[None], torch.from_numpy(rows))[0]
    best = int(shared.max())
    return best, {i for i, s in enumerate(shared.tolist()) if s == best}


@pytest.mark.parametrize("share", [1.0, 0.9, 0.7, 0.55, 0.45])
def test_it_finds_the_nearest_of_many(share):
    rows = masks(3000)
    index = MaskIndex.of(rows, WIDTH, sample=512)
    for seed in range(20):
        query = near(rows[seed * 100], share, seed)
        best, which = by_comparing_all(query, rows)
        found = index.nearest(query)
        assert found.overlap == best and found.which in which


@pytest.mark.parametrize("floor", [84, 100, 120, 150, 200, 292])
def test_a_query_that_is_near_to_nothing_finds_what_reaches_the_floor_or_nothing(floor):
    rows = masks(3000)
    index = MaskIndex.of(rows, WIDTH, sample=512)
    for query in masks(20, seed=1):
        best, which = by_comparing_all(query, rows)
        found = index.nearest(query, floor)
        assert (found is not None) == (best >= floor)
        assert found is None or (found.overlap == best and found.which in which)


@given(sizes=st.lists(st.integers(1, 150), min_size=1, max_size=5), gone=st.sets(st.integers(0, 149)))
@settings(max_examples=30, deadline=None)
def test_it_grows_and_forgets_one_by_one(sizes, gone):
    rows = masks(sum(sizes))
    index, known = MaskIndex(WIDTH), 0
    for size in sizes:
        known += size
        index.grow(rows[:known])
        assert len(index) == known
    gone = {i for i in gone if i < known}
    for i in gone:
        index.remove(i)
    for i in range(0, known, 7):
        found = index.nearest(rows[i], floor=ACTIVE)
        assert (found is None) if i in gone else (found.which == i)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_numbers_of_bits_do_not_matter(count):
    rows = masks(count)
    assert [MaskIndex.of(rows, WIDTH).nearest(row).which for row in rows] == list(range(count))


def test_an_empty_index_finds_nothing():
    assert MaskIndex(WIDTH).nearest(masks(1)[0]) is None


def test_it_is_kept_in_a_file(tmp_path):
    rows = masks(300)
    index = MaskIndex.of(rows[:200], WIDTH)
    index.remove(5)
    index.save(tmp_path / "masks.index")
    again = MaskIndex.load(tmp_path / "masks.index", rows[:200])
    again.grow(rows)
    assert [again.nearest(row, ACTIVE) for row in rows] == [(i, ACTIVE) if i != 5 else None for i in range(300)]


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b[:5], lambda b: b[:-3] + b"xyz", lambda b: b""])
def test_a_damaged_file_is_named_and_the_masks_are_enough(tmp_path, harm):
    path = tmp_path / "masks.index"
    MaskIndex.of(masks(100), WIDTH).save(path)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"masks\.index.*MaskIndex\.of"):
        MaskIndex.load(path, masks(100))


def test_a_file_of_other_masks_is_refused(tmp_path):
    MaskIndex.of(masks(100), WIDTH).save(tmp_path / "masks.index")
    with pytest.raises(DamagedFile, match="of 100 masks, not of 90"):
        MaskIndex.load(tmp_path / "masks.index", masks(90))


@pytest.mark.parametrize(("k", "shared", "active"), [(50, 200, 400), (100, 120, 400), (200, 3200, 4000), (4, 2, 5)])
def test_the_cutoff_is_safe_but_not_idle(k, shared, active):
    """No draw of a million is below it, and one more would be too much for the risk."""
    drawn = np.random.default_rng(0).hypergeometric(shared, active - shared, k, 1_000_000)
    least = cutoff(k, shared, active)
    assert 0 < least <= drawn.min()
    below = [comb(shared, x) * comb(active - shared, k - x) / comb(active, k) for x in range(least + 1)]
    assert sum(below[:-1]) <= RISK < sum(below)


def test_the_gate_asks_the_index_where_there_are_many_masks(monkeypatch):
    rows = torch.from_numpy(masks(500))
    queries = torch.stack([rows[3], torch.from_numpy(near(masks(500)[7], 0.8)), torch.from_numpy(masks(1, seed=9)[0])])
    by_index = nearest(queries, rows, ACTIVE // 2, MaskIndex.of(rows.numpy(), WIDTH))
    by_all = nearest(queries, rows, ACTIVE // 2, None)
    assert by_index[0][:2, 0].tolist() == by_all[0][:2, 0].tolist() == [292, 234]
    assert by_index[1][:2, 0].tolist() == by_all[1][:2, 0].tolist() == [3, 7]
    assert by_index[0][2, 0] < ACTIVE // 2
    assert torch.equal(pack(torch.ones(1, 8, dtype=torch.bool)), torch.tensor([[255]], dtype=torch.uint8))
