"""Growing: rows put behind a tensor, at a cost that does not grow with it.

A memory's tensors are replaced, never changed in place, and one row more would mean a copy of all of them. So the tensors
here are the front part of a longer one with room behind it: a new row goes into that room, which nobody else sees, and the
tensor that was there goes on to be the front part that it is. Only the longest front part can grow so; one that was gone
back to, after an edit that failed, is copied once.
"""

from typing import Any

import torch
from torch import Tensor

ROOM = 256
"""Rows of room that a new tensor has at most; where it is short, a quarter of its length."""


def appended(front: Tensor, rows: Tensor) -> Tensor:
    """`torch.cat([front, rows])`: (n, ...), (m, ...) -> (n + m, ...). `front` is as it was."""
    total = len(front) + len(rows)
    whole: Any = front._base
    if whole is None or getattr(whole, "taken", None) != len(front) or total > len(whole):
        whole = front.new_empty(total + min(ROOM, total // 4 + 1), *front.shape[1:])
        whole[: len(front)] = front
    whole[len(front) : total] = rows
    whole.taken = total
    return torch.as_tensor(whole[:total])


def replaced(grown: Tensor, first: int, places: Tensor, rows: Tensor) -> Tensor:
    """`grown.index_copy(0, places, rows)` where the rows of `grown` from `first` on are those that nobody else sees yet:
    if all `places` are among them, they are written where they are.
    """
    if int(places.min()) < first:
        return grown.index_copy(0, places, rows)
    grown[places] = rows
    return grown


def behind(longer: Tensor, front: Tensor) -> Tensor | None:
    """The rows of `longer` that come after `front`, where it grew from that; None where it did not, or nobody can say."""
    if longer is front:
        return longer[len(front) :]
    same = longer._base is not None and longer._base is front._base and longer.data_ptr() == front.data_ptr()
    return longer[len(front) :] if same and len(longer) >= len(front) else None
