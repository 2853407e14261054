"""Rows appended in place: equal to torch.cat, and invisible to whoever holds what was there before."""

import torch

from errata.growing import ROOM, appended, behind


def test_appending_is_concatenating() -> None:
    grown = together = torch.randn(0, 3)
    for count in (1, 2, 1, 5, 1, 1, 30):
        rows = torch.randn(count, 3)
        grown, together = appended(grown, rows), torch.cat([together, rows])
        assert torch.equal(grown, together)
        assert grown.is_contiguous()


def test_what_was_there_is_left_alone() -> None:
    first = appended(torch.randn(4, 2), torch.randn(1, 2))
    before = first.clone()
    appended(first, torch.randn(1, 2))
    assert torch.equal(first, before)


def test_one_front_part_can_grow_in_two_ways() -> None:
    first = appended(torch.zeros(8, 2), torch.zeros(1, 2))
    ones, twos = appended(first, torch.ones(1, 2)), appended(first, 2 * torch.ones(1, 2))
    assert ones[-1].tolist() == [1, 1], "the branch that was gone back from keeps its own row"
    assert twos[-1].tolist() == [2, 2]
    assert behind(twos, ones) is None


def test_it_is_rarely_copied() -> None:
    grown, copies, place = torch.zeros(0, 2), 0, 0
    for _ in range(1000):
        grown = appended(grown, torch.ones(1, 2))
        copies, place = copies + (grown.data_ptr() != place), grown.data_ptr()
    assert copies < 40
    assert grown.untyped_storage().nbytes() <= grown.nbytes + ROOM * 2 * 4


def test_what_is_behind_a_front_part_is_known_where_it_grew_from_it() -> None:
    first = appended(torch.zeros(8, 2), torch.zeros(1, 2))
    longer = appended(first, torch.ones(2, 2))
    new = behind(longer, first)
    assert new is not None
    assert new.tolist() == [[1, 1], [1, 1]]
    assert behind(first, first) is not None
    assert behind(first.clone(), first) is None
    assert behind(first, longer) is None
