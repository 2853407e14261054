"""Room: what is said when the memory of a machine or of a GPU does not hold something, and what would fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from errata.errors import OutOfMemory

COUNTS = ("contexts", "replay", "negatives", "batch")
"""Options of methods that say how many rows are held at once."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a class of its own for GPUs, and only words for the CPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


@contextmanager
def room_for(what: str, ways: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Scope: running out of memory raises `OutOfMemory`, which names these ways to need less of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_full(error):
            raise
        said = str(error).strip().partition("\n")[0]
        raise OutOfMemory(
            f"{what} does not fit into memory; try {', or '.join(ways())}" + (f" ({said})" if said else "")
        ) from error


def smaller_edit(options: Mapping[str, Any], count: int, *, half: bool) -> list[str]:
    """What takes less memory when a method with these options makes `count` edits at once."""
    counts = {"batch_size": count} | {name: options[name] for name in COUNTS if name in options}
    return [*(f"{name} below {value}" for name, value in counts.items() if value > 1), *smaller_model(half=half)]


def smaller_model(*, half: bool) -> list[str]:
    """What takes less memory for the weights of a model, which may be in 16 bits already."""
    return [*([] if half else ["dtype bfloat16"]), "device auto, which offloads weights"]
