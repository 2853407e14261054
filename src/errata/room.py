"""Room: what is said when the memory of a machine or of a GPU does not hold something, and what would fit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from errata.errors import OutOfMemory

if TYPE_CHECKING:
    from errata.model import EditedModel

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


def smaller_edit(model: "EditedModel", count: int) -> list[str]:
    """What takes less memory when `count` edits are made at once."""
    ways = [f"a batch size below {count}"] if count > 1 else []
    options = model.editor.options() if model.editor is not None else {}
    ways += [
        f"{name} below {options[name]}" for name in COUNTS if isinstance(options.get(name), int) and options[name] > 1
    ]
    return [*ways, *smaller_model(half=next(model.base.parameters()).dtype.itemsize == 2)]


def smaller_model(*, half: bool) -> list[str]:
    """What takes less memory for the weights of a model, which may be in 16 bits already."""
    return [*([] if half else ["dtype bfloat16"]), "device auto, which offloads weights"]
