"""Bitmaps are added up rightly, compiled or not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata import bitmaps
from errata.bitmaps import Counts, compiled, places, shared, turned


@pytest.fixture(params=["NumPy", "Numba"], autouse=True, scope="module")
def engine(request):
    """Both do the same; Numba comes with an extra."""
    if request.param == "Numba" and compiled() is None:
        pytest.skip("Numba is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "NumPy":
            patch.setattr(bitmaps, "compiled", lambda: None)
        yield request.param


def packed(bits):
    return np.packbits(bits, axis=1, bitorder="little")


@settings(max_examples=50, deadline=None)
@given(data=st.data(), rows=st.integers(1, 40), words=st.sampled_from([1, 3]), least=st.integers(0, 45))
def test_counting_is_adding(engine, data, rows, words, least):
    bits = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 2, (rows, 64 * words), dtype=np.uint8)
    maps = packed(bits).view(np.uint64)
    before, counts, at = maps.copy(), Counts(words), 0
    while at < rows:
        some = data.draw(st.integers(1, 11))
        counts.add(maps, np.arange(at, min(at + some, rows)))
        at += some
    assert (maps == before).all()
    sums = bits.sum(axis=0)
    assert (np.unpackbits(counts.reached(least).view(np.uint8), bitorder="little") == (sums >= least)).all()
    most = np.unpackbits(counts.most(~np.zeros(words, dtype=np.uint64)).view(np.uint8), bitorder="little")
    assert (most == (sums == sums.max())).all()


def test_counts_of_many_bitmaps_over_many_words_are_right_in_some_of_them(engine, monkeypatch):
    monkeypatch.setattr(bitmaps, "WORDS", 7)
    monkeypatch.setattr(bitmaps, "BLOCK", 7)
    bits = np.random.default_rng(0).integers(0, 2, (300, 64 * 20), dtype=np.uint8)
    maps, kept = packed(bits).view(np.uint64), np.array([3, 4, 19])
    counts = Counts(20)
    counts.add(maps, np.arange(150))
    counts = counts.at(kept)
    counts.add(maps[:, kept], np.arange(150, 300))
    sums = bits.reshape(300, 20, 64)[:, kept].sum(axis=0).reshape(-1)
    for least in (0, 100, int(sums.max()), 1000):
        assert (np.unpackbits(counts.reached(least).view(np.uint8), bitorder="little") == (sums >= least)).all()
    where = places(counts.reached(int(sums.max())), kept)
    assert where.tolist() == [64 * kept[i // 64] + i % 64 for i in (sums == sums.max()).nonzero()[0]]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("width", [1024, 1000, 1004])
def test_rows_are_turned_into_bitmaps_and_compared(engine, count, width):
    rng = np.random.default_rng(count)
    bits = rng.integers(0, 2, (count, width), dtype=np.uint8)
    rows, features = packed(bits), rng.permutation(width)[:50]
    found = np.unpackbits(turned(rows, features).view(np.uint8), axis=1, bitorder="little")
    assert (found[:, :count] == bits[:, features].T).all() and not found[:, count:].any()
    which = rng.integers(count, size=min(count, 30))
    assert shared(rows, which, rows[0]).tolist() == (bits[which] & bits[0]).sum(axis=1).tolist()
    assert shared(rows, which[:0], rows[0]).tolist() == []
