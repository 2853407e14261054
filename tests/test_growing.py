"""Rows appended in place: equal to torch.cat, and invisible to whoever holds what was there before."""

import torch

from errata.growing import ROOM, appended, behind, replaced


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


def test_rows_that_nobody_else_sees_are_replaced_where_they_are() -> None:
    front = torch.arange(6.0).reshape(3, 2)
    grown = appended(front, torch.zeros(2, 2))
    rows, places = torch.tensor([[7.0, 8.0], [5.0, 6.0]]), torch.tensor([4, 3])
    assert replaced(grown, 3, places, rows) is grown
    assert torch.equal(grown, torch.tensor([[0.0, 1], [2, 3], [4, 5], [5, 6], [7, 8]]))


def test_rows_that_were_there_before_are_replaced_in_a_copy() -> None:
    front = torch.arange(6.0).reshape(3, 2)
    grown = appended(front, torch.zeros(1, 2))
    found = replaced(grown, 3, torch.tensor([3, 1]), torch.ones(2, 2))
    assert torch.equal(found, torch.tensor([[0.0, 1], [1, 1], [4, 5], [1, 1]]))
    assert torch.equal(grown[:3], front) and not grown[3].any()
