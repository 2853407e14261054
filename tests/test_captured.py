"""Captured: a step that a GPU can replay is the step that the host would take, and no method's step asks the host."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from errata import fitting, methods
from errata.errors import EditFailed, MissingExtra
from errata.fitting import OPTIMIZERS, Stop, fit, fit_alone
from errata.model import EditedModel
from tiny import EDITS, tiny_llama, tiny_tokenizer

ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique", "equal", "lift_fresh")
"""Operations that wait for a GPU, or copy to it from the host, by the beginnings of their names."""


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on the processor: keeps the operations of a step with the tensors that they read and write.

    `asked` names those that a GPU could not replay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the operation as it is."""
        name = func._schema.name.removeprefix("aten::")
        places = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ()
        if name.startswith(ASKS) or any(place is not None and place.dtype == torch.bool for place in places):
            self.asked.append(name)
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tensors(found)))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        """All of it again, into the same tensors; nothing else of the step is run."""
        for func, args, kwargs, before in self.calls:
            for old, new in zip(before, tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(found: Any) -> list[Tensor]:
    """Those that an operation gave back."""
    several = found if isinstance(found, (list, tuple)) else [found]
    return [one for one in several if isinstance(one, Tensor)]


def test_what_asks_the_host_is_noticed() -> None:
    x, mask = torch.arange(3.0), torch.tensor([True, False, True])
    for asks in (x.sum().item, lambda: x[mask], x.nonzero, lambda: torch.tensor([1.0]), lambda: bool(x[0])):
        with Tape() as tape:
            asks()
        assert tape.asked
    with Tape() as tape:
        torch.where(mask, x, 0.0).sum().add(1)
    assert not tape.asked


def test_a_tape_replays_what_was_done() -> None:
    x = torch.zeros(2)
    with Tape() as tape:
        x.add_(1).mul_(2)
        y = x[:1] * 10
    tape.replay()
    assert x.tolist() == [6, 6]
    assert y.tolist() == [60]


@pytest.mark.parametrize("method", methods.names())
def test_the_steps_of_every_method_can_be_replayed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that was recorded once, and is replayed from there on, makes the edits that the same steps make when they are
    called; and it asks the host for nothing.
    """
    steps = {"steps": 6} if hasattr(methods.find(method), "steps") else {}
    asked: list[str] = []
    replays: list[int] = []

    def edited() -> dict[str, dict[str, Tensor]]:
        try:
            model = EditedModel(
                tiny_llama(), tiny_tokenizer(), methods.make(method, **steps), prefixes=("It is said that", "Yes,"),
                expected=len(EDITS),
            )  # fmt: skip
        except MissingExtra as missing:
            pytest.skip(str(missing))
        model.edit_many(EDITS[:2])
        return model._tensors()

    def replayed(step: Callable[[], None], over: Tensor, most: int) -> None:
        step()
        with Tape() as tape:
            step()
        asked.extend(tape.asked)
        for _ in range(most - 2):
            tape.replay()
            replays.append(1)

    # A GPU's way through an optimisation, on the processor: transformers does not look whether a mask is needed, and Adam
    # counts its steps in a tensor.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda **_: ["cpu"])
    monkeypatch.setattr(fitting, "recorded_on", lambda tensor: True)
    called = edited()
    monkeypatch.setattr(fitting, "repeated", replayed)
    found = edited()
    assert not asked
    assert bool(replays) == (method not in ("in_context", "mend", "ultraedit")), "these descend in no or one step"
    for name, held in called.items():
        for key, tensor in held.items():
            assert torch.equal(found[name][key], tensor), f"{name}/{key}"


def bowl(x: Tensor) -> Tensor:
    """A loss that is least where all of x is 1."""
    return (x - 1).square().mean()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [None, Stop(0.05), Stop(0.05, change=1e-3), Stop(9.0)])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_steps_that_decide_for_themselves_are_those_of_the_host(
    optimizer: str, stop: Stop | None, clip: float | None
) -> None:
    def begin() -> Tensor:
        return torch.linspace(-1.0, 0.5, 6).requires_grad_()

    def box(x: Tensor) -> Callable[[], None]:
        def within() -> None:
            x.clamp_(max=0.9)

        return within

    host, device = begin(), begin()
    told = fit(
        [host],
        lambda: bowl(host),
        steps=40,
        lr=0.2,
        optimizer=optimizer,
        clip=clip,
        weight_decay=0.01,
        stop=stop,
        after=box(host),
    )
    optim = OPTIMIZERS[optimizer]([device], lr=0.2, weight_decay=0.01)  # type: ignore[call-arg]
    found = fit_alone([device], lambda: bowl(device), 40, optim, clip=clip, stop=stop, after=box(device))
    assert found == told
    assert torch.equal(device, host)


def test_a_step_beyond_the_end_moves_nothing() -> None:
    x = torch.zeros(3).requires_grad_()
    seen: list[Tensor] = []

    def loss() -> Tensor:
        seen.append(x.detach().clone())
        return bowl(x)

    optim = OPTIMIZERS["adam"]([x], lr=0.3)
    steps = fit_alone([x], loss, 30, optim, stop=Stop(0.3)).steps
    assert 0 < steps < 30
    assert torch.equal(seen[steps], x), "the parameters at which the end was seen"


def test_a_step_beyond_the_range_of_numbers_fails_the_edit() -> None:
    x = torch.zeros(3).requires_grad_()
    with pytest.raises(EditFailed, match=r"step 0 failed: .*; try a smaller learning rate"):
        fit_alone([x], lambda: bowl(x), 5, OPTIMIZERS["sgd"]([x], lr=1e300))


def test_a_loss_that_is_not_finite_fails_the_edit() -> None:
    x = torch.zeros(3).requires_grad_()
    with pytest.raises(EditFailed, match=r"the loss became (nan|inf) at step \d+; try a smaller learning rate"):
        fit_alone([x], lambda: bowl(x / x.detach()), 5, OPTIMIZERS["sgd"]([x], lr=0.1))
