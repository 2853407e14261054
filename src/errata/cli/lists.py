"""Lists: numbers or names that are written one after another in an option, such as 0,2,4."""

from collections.abc import Callable
from typing import Any

from errata.errors import BadOption


def numbers(text: str) -> tuple[int, ...]:
    """Positive numbers from a list such as 1,10,100. Raises `BadOption`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BadOption(f"--edits {text!r}: a number such as 100, or several such as 1,10,100")
    return tuple(sorted({int(part) for part in parts}))


def names(text: str) -> list[str]:
    """The methods of a list such as memoir,none. Raises `BadOption`, and `UnknownName` for one that there is not."""
    from errata import methods

    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise BadOption("--method names no method; see `errata methods`")
    for name in found:
        if name != "none":
            methods.find(name)
    return found


def integers(text: str, name: str, least: int = 0) -> list[int]:
    """Integers from `least`, in the order in which they are written. Raises `BadOption`."""
    return _listed(text, name, int, f"numbers from {least}, such as 2,3", lambda value: value >= least)


def shares(text: str, name: str) -> list[float]:
    """Numbers above 0 and at most 1. Raises `BadOption`."""
    return _listed(text, name, float, "shares in (0, 1], such as 0.2,0.5", lambda value: 0 < value <= 1)


def fraction(text: str, name: str) -> tuple[int, int]:
    """N and D of N/D. Raises `BadOption`."""
    parts = text.strip().split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 0 < int(parts[0]) <= int(parts[1]):
        raise BadOption(f"--{name} {text!r}: N/D with 1 <= N <= D, such as 4096/14336")
    return int(parts[0]), int(parts[1])


def _listed(text: str, name: str, kind: Callable[[str], Any], what: str, good: Callable[[Any], bool]) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or not all(good(value) for value in values):
        raise BadOption(f"--{name} {text!r}: {what}")
    return values
