"""TopHash masks, packed bits and overlaps (methods.md, section 1)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata import masks as module
from errata.masks import overlaps, overlaps_elsewhere, pack, top_hash, unpack


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 70), rows=st.integers(1, 4), seed=st.integers(0, 1000))
def test_packing_loses_nothing(width: int, rows: int, seed: int) -> None:
    mask = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(unpack(pack(mask), width), mask)
    assert pack(mask).shape == (rows, (width + 7) // 8)


def test_overlap_counts_shared_features() -> None:
    masks = torch.rand(5, 100, generator=torch.Generator().manual_seed(0)) < 0.3
    found = overlaps(pack(masks[:2]), pack(masks))
    assert torch.equal(found, (masks[:2, None] & masks[None]).sum(-1).int())


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 300), edits=st.integers(0, 40), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_overlaps_are_the_same_without_numpy(width: int, edits: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = pack(torch.rand(edits + 2, width, generator=generator) < share)
    asked, stored = masks[:2], masks[2:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE_ELSEWHERE", 100)
        assert torch.equal(overlaps_elsewhere(asked, stored), overlaps(asked, stored))


def test_a_mask_holds_the_images_of_the_largest_entries() -> None:
    feature = torch.tensor([0.1, -5.0, 0.2, 3.0])
    permutation = torch.tensor([2, 0, 3, 1])
    assert top_hash(feature, permutation, 2).nonzero().flatten().tolist() == [0, 1]
    identity = torch.arange(4)  # the "no permutation" ablation: the features themselves
    assert top_hash(feature, identity, 2).nonzero().flatten().tolist() == [1, 3]


def test_random_masks_overlap_by_chance() -> None:
    """Two random N-subsets of D overlap in N/D on average, with the deviation that methods.md (1, h2) gives."""
    D, N = 14336, 4096
    generator = torch.Generator().manual_seed(0)
    permutation = torch.randperm(D, generator=generator)
    packed = pack(top_hash(torch.randn(60, D, generator=generator), permutation, N))
    shared = overlaps(packed, packed).float() / N
    off = shared[~torch.eye(60, dtype=torch.bool)]
    assert abs(float(off.mean()) - N / D) < 0.001
    assert 0.004 < float(off.std()) < 0.008
    assert torch.equal(shared.diagonal(), torch.ones(60))
