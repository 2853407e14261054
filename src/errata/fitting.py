"""fit, fit_each: the one inner optimisation loop of every editor that learns by gradient.

Where steps are recorded (`errata.captured`), what a method hands over, its loss above all, must do the same at every step
and ask for no value of a tensor. `tests/test_captured.py` holds every method to that.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from errata.captured import recorded_on, repeated
from errata.errors import EditFailed
from errata.room import is_full


class Adalayer(torch.optim.Optimizer):
    """Adam with one second moment for each tensor rather than for each entry.

    Its steps are as long as Adam's, and in the direction of the averaged gradients: of their rank, where Adam's move
    every entry. Zhao, Morwani, Brandfonbrener, Vyas, Kakade, ICLR 2025, arXiv 2407.07972.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; `weight_decay` is an L2 penalty, as in Adam."""
        for group in self.param_groups:
            (first, second), lr = group["betas"], group["lr"]
            for parameter in group["params"]:
                grad = parameter.grad + group["weight_decay"] * parameter
                state = self.state[parameter]
                if not state:
                    state |= {"m": torch.zeros_like(parameter), "v": parameter.new_zeros(())}
                    state["steps"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
                state["steps"] += 1
                state["m"].lerp_(grad, 1 - first)
                state["v"].lerp_(grad.square().mean(), 1 - second)
                in_m, in_v = ((1 - rate ** state["steps"]).to(grad) for rate in (first, second))
                length = (state["v"] / in_v).sqrt() + group["eps"]
                parameter.sub_(lr * state["m"] / in_m / length)


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adalayer": Adalayer,
}


class Trace(NamedTuple):
    """How an optimisation went."""

    losses: tuple[float, ...]
    """The loss before each step, and after the last."""
    each: "tuple[Trace, ...]" = ()
    """Of a batch whose edits were learnt each by itself, how each of them went; `losses` are then the last one's."""

    @classmethod
    def of_each(cls, traces: "Sequence[Trace]") -> "Trace":
        """That of a batch of edits which were learnt each by itself."""
        return cls(traces[-1].losses, tuple(traces))

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses) - 1


class Stop(NamedTuple):
    """When to stop early: the loss is at most `loss`, and has moved by at most `change` since the step before.

    Where a step sees one of `over` mini-batches, the loss is the mean of the last `over` steps.
    """

    loss: float
    change: float = math.inf
    over: int = 1

    def reached(self, losses: Sequence[float]) -> bool:
        """Whether these losses, the newest last, end the optimisation."""
        moved = abs(losses[-1] - losses[-2]) if len(losses) > 1 else math.inf
        recent = losses[-self.over :]
        return len(recent) == self.over and sum(recent) / self.over <= self.loss and moved <= self.change


def fit(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    optimizer: str = "sgd",
    clip: float | None = None,
    weight_decay: float = 0.0,
    stop: Stop | None = None,
    gradient: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> Trace:
    """Minimise `loss` over leaf tensors, in place.

    `gradient` runs between the backward pass and the clipping, to mask gradients; `after` follows each step, to project
    the parameters. Raises `EditFailed` on a loss that is not finite.
    """
    return fit_each(
        [parameters], lambda _: loss()[None], steps=steps, lr=lr, optimizer=optimizer, clip=clip,
        weight_decay=weight_decay, stop=stop, gradient=gradient, after=after,
    )[0]  # fmt: skip


def fit_each(
    problems: Sequence[Sequence[Tensor]],
    losses: Callable[[Sequence[int]], Tensor],
    *,
    steps: int,
    lr: float,
    optimizer: str = "sgd",
    clip: float | None = None,
    weight_decay: float = 0.0,
    stop: Stop | None = None,
    gradient: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> list[Trace]:
    """Several problems at once, each with leaf tensors, a loss and an end of its own: as `fit` would solve each alone.

    `losses` is given the numbers of the problems that still move, (moving,) losses in that order are wanted. A problem that
    has stopped never moves again.
    """
    recorded = len(problems) == 1 and (stop is None or stop.over == 1) and recorded_on(problems[0][0])
    optims = [_optimizer(optimizer, own, lr, weight_decay, recorded) for own in problems]
    if recorded:
        return [
            fit_alone(
                problems[0], lambda: losses([0])[0], steps, optims[0], clip=clip, stop=stop, gradient=gradient, after=after
            )
        ]  # fmt: skip
    found: list[list[float]] = [[] for _ in problems]
    moving = list(range(len(problems)))
    for step in range(steps + 1):
        values = losses(moving)
        for i, value in zip(moving, values.tolist(), strict=True):
            _check(value, step, lr)
            found[i].append(value)
        going = [n for n, i in enumerate(moving) if stop is None or not stop.reached(found[i])]
        if step == steps or not going:
            break
        moving = [moving[n] for n in going]
        free = [parameter for i in moving for parameter in problems[i]]
        for parameter, grad in zip(free, torch.autograd.grad(values[going].sum(), free), strict=True):
            parameter.grad = grad
        if gradient is not None:
            gradient()
        with _in_range(step, lr):
            for i in moving:
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(list(problems[i]), clip)
                optims[i].step()
        if after is not None:
            with torch.no_grad():
                after()
    return [Trace(tuple(each)) for each in found]


def fit_alone(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    steps: int,
    optimizer: torch.optim.Optimizer,
    *,
    clip: float | None = None,
    stop: Stop | None = None,
    gradient: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> Trace:
    """`fit` with an optimizer of these parameters, all of whose decisions are taken where they are, and none by the host.

    The same steps to the same end; one that is taken beyond it moves nothing. `stop` is about the last loss alone.
    """
    device, lr = parameters[0].device, optimizer.param_groups[0]["lr"]
    losses = torch.full((steps + 1,), math.nan, device=device)
    last = torch.full((), math.inf, device=device)
    at = torch.zeros((), dtype=torch.long, device=device)
    over = torch.zeros((), dtype=torch.bool, device=device)

    def step() -> None:
        value = loss()
        with torch.no_grad():
            now = value.detach().to(losses)
            losses.index_copy_(0, at[None], now[None])
            over.logical_or_((at >= steps) | ~now.isfinite())
            if stop is not None:
                over.logical_or_((now <= stop.loss) & ((now - last).abs() <= stop.change))
            last.copy_(now)
            before = [parameter.clone() for parameter in parameters]
        for parameter, grad in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = grad
        if gradient is not None:
            gradient()
        with _in_range(0, lr):  # later ones are not called
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(list(parameters), clip)
            optimizer.step()
        with torch.no_grad():
            if after is not None:
                after()
            for parameter, held in zip(parameters, before, strict=True):
                parameter.copy_(torch.where(over, held, parameter))
            at.add_(~over)

    repeated(step, over, steps + 1)
    found = losses[: int(at) + 1].tolist()
    _check(found[-1], len(found) - 1, lr)
    return Trace(tuple(found))


def _optimizer(
    name: str, parameters: Sequence[Tensor], lr: float, weight_decay: float, recorded: bool
) -> torch.optim.Optimizer:
    """An optimizer of this name; one whose steps are recorded counts them on the device."""
    options: dict[str, Any] = {"capturable": True} if recorded and name == "adam" else {}
    return OPTIMIZERS[name](list(parameters), lr=lr, weight_decay=weight_decay, **options)  # type: ignore[call-arg]


@contextmanager
def _in_range(step: int, lr: float) -> Iterator[None]:
    """Scope: a step whose size is beyond the range of the dtype raises `EditFailed`."""
    try:
        yield
    except RuntimeError as error:
        if is_full(error):
            raise
        raise EditFailed(f"step {step} failed: {error}; try a smaller learning rate (lr={lr:g})") from error


def _check(loss: float, step: int, lr: float) -> None:
    """Raise `EditFailed` for a loss that is not finite."""
    if not math.isfinite(loss):
        raise EditFailed(f"the loss became {loss} at step {step}; try a smaller learning rate (lr={lr:g})")
