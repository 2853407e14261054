"""Masks: which input features an edit may use, as packed bits, and the nearest stored mask."""

import torch
from torch import Tensor

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

    Packed (batch, bytes) and (edits, bytes) -> (batch, edits) int32. Rows are taken one after another, so that the
    work space stays at one byte a stored byte.
    """
    table = _POPCOUNT.to(stored.device)
    return torch.stack([table[(row & stored).int()].sum(-1, dtype=torch.int32) for row in mask])
