"""Checkpoint: a training as it stands after some step, in one safetensors file; going on from it gives the same bits."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from errata import disk
from errata.errors import DamagedFile, StoreError
from errata.pretraining.fitting import Fitting, Losses

NAME = "training.safetensors"


class State(NamedTuple):
    """How far a training is."""

    step: int
    losses: Losses
    seconds: float
    """Spent on the steps so far, over all sittings."""


def write(directory: Path, fitting: Fitting, state: State) -> None:
    """Put the checkpoint in the place of the one before, which is lost only when this one is on the disk."""
    tensors = {f"model/{name}": tensor for name, tensor in _weights(fitting.model).items()}
    tensors |= {f"moment/{name}": tensor for name, tensor in fitting.moments().items()}
    told = {"step": state.step, "smooth": state.losses.smooth, "tokens": state.losses.tokens, "seconds": state.seconds}
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"state": json.dumps(told)}
    )
    try:
        disk.replace_all(directory, {NAME: content})
    except OSError as error:
        raise StoreError(f"no checkpoint can be written to {directory}: {error.strerror or error}") from error


def resume(directory: Path, fitting: Fitting) -> State:
    """Bring model and optimizers to where the checkpoint is; the beginning, where there is none. Raises `DamagedFile`."""
    path = directory / NAME
    if not path.is_file():
        return State(0, Losses(), 0.0)
    try:
        with safetensors.safe_open(path, "pt", device=str(fitting.model.device)) as file:
            told = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        own = _weights(fitting.model)
        for name, tensor in own.items():
            tensor.data.copy_(tensors[f"model/{name}"])
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise DamagedFile(f"{path} cannot be read; delete it to begin the training again") from error
    fitting.remember({n.removeprefix("moment/"): t for n, t in tensors.items() if n.startswith("moment/")})
    return State(told["step"], Losses(told["smooth"], told["tokens"]), told["seconds"])


def forget(directory: Path) -> None:
    """A finished training needs no checkpoint, and nothing that was being written when it was killed."""
    (directory / NAME).unlink(missing_ok=True)
    for path in directory.iterdir():
        if disk.is_leftover(path):
            path.unlink()


def _weights(model: Any) -> dict[str, Tensor]:
    """Every weight once, tied ones under their first name."""
    return dict(model.named_parameters())
