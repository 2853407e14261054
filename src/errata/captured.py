"""Captured: the steps of an optimisation as one CUDA graph, which a GPU replays by itself.

The kernels of a step are short at the size of an edit, so that starting them may take a host longer than they take. So a
step is run once as it is, then recorded, and from there on replayed whole. What the host would decide between two steps is
decided on the device: a step that finds the end reached leaves everything as it is. The host looks every few steps whether
it has.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

EVERY = 4
"""Steps that are replayed between two looks; no more than these are not recorded at all."""

_wanted = ContextVar("steps are recorded", default=False)


@contextmanager
def recording(wanted: bool) -> Iterator[None]:
    """Scope: whether optimisations on a GPU record their steps."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def recorded_on(tensor: Tensor) -> bool:
    """Whether an optimisation of this tensor is to record its steps: in the scope, on a GPU."""
    return _wanted.get() and tensor.is_cuda


def repeated(step: Callable[[], None], over: Tensor, most: int) -> None:
    """Call `step` until it has set `over` (() bool), at most `most` times; a GPU replays it from the second time on.

    A step must do the same each time, in place, and never ask the host for a value.
    """
    if not over.is_cuda or most <= EVERY:
        for _ in range(most):
            step()
            if over:
                return
        return
    here, aside = torch.cuda.current_stream(over.device), torch.cuda.Stream(over.device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        step()
        if not over:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=aside):
                step()  # is only recorded
            for done in range(1, most, EVERY):
                for _ in range(min(EVERY, most - done)):
                    graph.replay()
                if over:
                    break
    here.wait_stream(aside)
