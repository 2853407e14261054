"""Parallel: a base whose weights are on several devices (`device_map`), or split over processes (`tp_plan`).

Of a model on several devices, inputs go to the main one, and memories are there. Of one that is split, every process runs
the same program, reads the same texts, and has the same memories. Its FFN output projections are split by their inputs
(row-wise), so a process sees some of the features alone. They are gathered here, because a memory reads all of them; what
a projection gives back is whole already.
"""

from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import NoSite


def main_device(base: nn.Module) -> torch.device:
    """Where the inputs of a model go: its first GPU, where its weights are on several devices or on none."""
    places = getattr(base, "hf_device_map", None)
    if places:
        place = next((place for place in places.values() if place not in ("cpu", "disk")), "cpu")
        return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return next(base.parameters()).device


def whole_input(a: Tensor, base: nn.Module) -> Tensor:
    """All features (..., ff) of the input of a map that is split by them; of any other map, the input as it is.

    Carries gradients: each process gives back those of its own features.
    """
    weight = _split(base)
    if weight is None:
        return a
    from torch.distributed.tensor import DTensor, Shard

    features = base.in_features
    assert isinstance(features, int)
    if isinstance(a, DTensor) or a.shape[-1] == features:
        return a.full_tensor() if isinstance(a, DTensor) else a
    shape = torch.Size((*a.shape[:-1], features))
    stride = torch.empty(shape, device="meta").stride()
    split = DTensor.from_local(a, weight.device_mesh, [Shard(-1)], run_check=False, shape=shape, stride=stride)
    return split.full_tensor()


def check_outputs(base: nn.Module, path: str) -> None:
    """Raise `NoSite` for a map that is split by its outputs: of these, a process has some alone."""
    weight = _split(base)
    if weight is not None and any(placement.is_shard(0) for placement in weight.placements):
        raise NoSite(
            f"{path} is split over processes by its outputs; load the model with device_map instead of tp_plan"
        )


def whole(values: Tensor) -> Tensor:
    """A tensor as it is in one process; to be called in all of them."""
    gather = getattr(values, "full_tensor", None)
    return values if gather is None else gather()


def _split(base: nn.Module) -> Any:
    """The weight of a map that is split over processes. Its values are not read."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    weight = getattr(base, "weight", None)
    return weight if hasattr(weight, "device_mesh") else None
