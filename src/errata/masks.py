"""Masks: which input features an edit may use, as packed bits, and the nearest stored mask."""

import numpy as np
import torch
from torch import Tensor

from errata.bitmaps import words
from errata.mask_index import MaskIndex
from errata.routing import NEAR

AT_ONCE = 1 << 20
"""Bytes of stored masks that are compared at once on the CPU ..."""
AT_ONCE_ELSEWHERE = 1 << 25
"""... and on a GPU, where less would be over before the next is started."""
_POPCOUNT = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.uint8)


def top_hash(feature: Tensor, permutation: Tensor, active: int) -> Tensor:
    """MEMOIR's TopHash: the images under a fixed permutation of the `active` largest |entries| of a feature.

    (..., ff), (ff,) -> (..., ff) bool. Similar features share most of their masks; which inputs a mask selects is random.
    """
    largest = feature.abs().topk(active, dim=-1).indices
    return torch.zeros_like(feature, dtype=torch.bool).scatter_(-1, permutation[largest], value=True)


def pack(mask: Tensor) -> Tensor:
    """(..., ff) bool -> (..., ceil(ff / 8)) uint8."""
    width = mask.shape[-1]
    padded = torch.nn.functional.pad(mask, (0, -width % 8)).view(*mask.shape[:-1], -1, 8)
    powers = (2 ** torch.arange(8, device=mask.device)).to(torch.uint8)
    return (padded.to(torch.uint8) * powers).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, width: int) -> Tensor:
    """(..., ceil(width / 8)) uint8 -> (..., width) bool."""
    powers = (2 ** torch.arange(8, device=bits.device)).to(torch.uint8)
    return (bits.unsqueeze(-1) & powers).ne(0).flatten(-2)[..., :width]


def overlaps(mask: Tensor, stored: Tensor) -> Tensor:
    """How many features each query shares with each stored mask.

    Packed (batch, bytes) and (edits, bytes) -> (batch, edits) int32. Rows are taken one after another, and stored masks
    some at a time, so that the work space stays small.
    """
    if stored.device.type == "cpu" and not torch.compiler.is_compiling():
        few = max(1, AT_ONCE // max(1, stored.shape[1]))
        parts = [words(part.numpy()) for part in stored.split(few)]
        rows = [words(row[None].numpy()) for row in mask]
        counts = [[np.bitwise_count(row & part).sum(-1, dtype=np.int32) for part in parts] for row in rows]
        return torch.from_numpy(np.stack([np.concatenate(count) for count in counts]))
    return overlaps_elsewhere(mask, stored)


def overlaps_elsewhere(mask: Tensor, stored: Tensor) -> Tensor:
    """The same of tensors that NumPy does not reach, as on a GPU."""
    few = max(1, AT_ONCE_ELSEWHERE // max(1, stored.shape[1]))
    parts = [_in_words(part) for part in stored.split(few)]
    return torch.stack([torch.cat([_ones(row & part) for part in parts]) for row in _in_words(mask)])


def _ones(bits: Tensor) -> Tensor:
    """How many bits are set in each row: (..., words) int32 -> (...) int32.

    Added up in pairs, fours and bytes of every word at once (Warren, Hacker's Delight, 5-1): torch has no popcount.
    """
    x = bits - ((bits >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).sum(-1, dtype=torch.int32)


def _in_words(packed: Tensor) -> Tensor:
    """(..., bytes) uint8 as (..., words) int32, filled up with zeros."""
    return torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 4)).contiguous().view(torch.int32)


def shared(mask: Tensor, other: Tensor) -> Tensor:
    """How many features masks have in common, one by one: packed (..., bytes) twice -> (...) long."""
    return _POPCOUNT.to(mask.device)[(mask & other).int()].sum(-1)


def nearest(mask: Tensor, stored: Tensor, floor: int, index: MaskIndex | None = None) -> tuple[Tensor, Tensor]:
    """How many features each query shares with the nearest stored masks, and which these are, nearest first.

    Packed (batch, bytes) and (edits, bytes) -> (batch, few) int32 and (batch, few) long. With an `index` of the stored
    masks only the nearest is told, and where none shares at least `floor` features, `floor` - 1 with the first.
    """
    if index is None:
        best = overlaps(mask, stored).topk(min(NEAR, len(stored)), dim=-1)
        return best.values, best.indices
    found = [index.nearest(row.numpy(), floor) for row in mask]
    shared = [floor - 1 if each is None else each.overlap for each in found]
    picks = [0 if each is None else each.which for each in found]
    return torch.tensor(shared, dtype=torch.int32)[:, None], torch.tensor(picks)[:, None]
