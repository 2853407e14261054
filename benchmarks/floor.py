"""The floor under an edit: what its matrix products take at the least on a machine.

A product of (m, k) and (k, n) computes 2 m k n operations, and moves its operands and its result once. It takes no less
than the longer of the two at the machine's ceilings, which are measured here and now.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
LARGE = {"cuda": (8192, 1 << 30), "cpu": (1024, 1 << 18)}
"""Rows of the square matrices whose product is a device's ceiling, and bytes of the copy that is. A processor copies what
is in its cache: it finds the weights of a small model there.
"""


class Product(NamedTuple):
    """The operands of one product, batched or not."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    other: tuple[int, ...]
    other_stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def operations(self) -> int:
        """2 m k n, of every pair in a batch."""
        count: int = 2 * self.other[-1]
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Of both operands and the result."""
        *batch, m, k = self.shape
        n = self.other[-1]
        count = m * k + k * n + m * n
        for size in batch:
            count *= size
        return count * self.dtype.itemsize


class Products(TorchDispatchMode):
    """Counts matrix products by their operands' shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the operation as it is."""
        if func._schema.name in PRODUCTS:
            a, b = args[-2:]
            self.seen[Product(tuple(a.shape), a.stride(), tuple(b.shape), b.stride(), a.dtype)] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self, device: torch.device) -> float:
        """Of all that were seen, each as fast as it was in a few runs by itself."""
        return sum(count * alone(product, device) for product, count in self.seen.items())

    def operations(self) -> int:
        """Of all that were seen."""
        return sum(count * product.operations for product, count in self.seen.items())

    def bytes(self) -> int:
        """Of all that were seen."""
        return sum(count * product.bytes for product, count in self.seen.items())

    def floor(self, ceilings: "Ceilings") -> float:
        """Seconds that all that were seen must take."""
        return sum(
            count * max(product.operations / ceilings.operations[product.dtype], product.bytes / ceilings.bytes)
            for product, count in self.seen.items()
            if product.dtype in ceilings.operations
        )


class Ceilings(NamedTuple):
    """What a machine does at most."""

    operations: dict[torch.dtype, float]
    """Floating-point operations a second in large matrix products."""
    bytes: float
    """Bytes a second, read and written, in a large copy."""


def ceilings(device: torch.device, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> Ceilings:
    """The best of several large products of each kind, and of several large copies."""
    size, count = LARGE[device.type]
    found = {}
    for dtype in dtypes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[dtype] = 2 * size**3 / best(lambda a=a, b=b: a @ b, device, 10)
    source = torch.randn(count // 4, device=device)
    into = torch.empty_like(source)
    return Ceilings(found, 2 * count / best(lambda: into.copy_(source), device, 10))


def alone(product: Product, device: torch.device) -> float:
    """Seconds of one product of operands that are laid out so, the best of several."""
    a = torch.empty_strided(product.shape, product.stride, dtype=product.dtype, device=device).normal_()
    b = torch.empty_strided(product.other, product.other_stride, dtype=product.dtype, device=device).normal_()
    return best(lambda: a @ b, device, 5)


def best(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds of a call, the least of so many; on a GPU by its own clock, after one call that is not counted."""
    if device.type != "cuda":
        return min(clocked(call, device) for _ in range(times))
    call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    for begin, end in marks:
        begin.record()  # type: ignore[no-untyped-call]
        call()
        end.record()  # type: ignore[no-untyped-call]
    wait(device)
    return min(begin.elapsed_time(end) for begin, end in marks) / 1000  # type: ignore[no-untyped-call]


def clocked(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call on the clock, to the end of what it started."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given; a processor has when it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
