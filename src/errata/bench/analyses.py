"""Analyses: the numbers that files of findings hold, for claims of which rows of results can say nothing.

`errata analyse` and scripts under `benchmarks/` write such files (`errata.analysis.findings`), one JSON object each.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from errata.errors import UsageError

EACH = "*"
"""In a path of keys: every item of a list, or every value of an object."""
OVER: dict[str, Callable[[Iterable[float]], float]] = {
    "least": min,
    "most": max,
    "median": statistics.median,
    "largest": lambda values: max(map(abs, values)),
}
"""What is taken of several numbers; `largest` is the most in size."""

PARTS = ("settings", "found")
"""What an analysis is made of: what was asked, and what was found."""


class Analysis(NamedTuple):
    """One file of findings."""

    name: str
    """Of the analysis: `superposition`, `routing`, ..."""
    method: str
    """Whose edits were looked at; empty where there were none."""
    model: str
    data: str
    found: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})
    """What was asked."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Analysis":
        """From the object of a file."""
        asked, found = told["settings"], told["found"]
        model = asked.get("model") or f"{asked.get('rows')} x {asked.get('columns')} masks"
        data = asked.get("data") or asked.get("facts") or f"rho {asked.get('rho')} and k {asked.get('k')}"
        return cls(told["analysis"], asked.get("method") or found.get("method", ""), model, data, found, asked)


@dataclass(frozen=True)
class Look:
    """A number in findings: under these keys, one after another."""

    at: tuple[str, ...]
    over: str = "most"
    """What is taken where there are several: a key of `OVER`."""

    def value(self, found: Mapping[str, Any]) -> float | None:
        """The number, or None where the findings have none."""
        values = list(_under(found, self.at))
        return OVER[self.over](values) if values else None

    def __str__(self) -> str:
        told = " ".join(key for key in self.at if key != EACH)
        return f"{self.over} {told}" if EACH in self.at else told


def _under(found: Any, keys: Sequence[str]) -> Iterator[float]:
    if not keys:
        if isinstance(found, int | float):
            yield float(found)
        return
    key, *rest = keys
    if isinstance(found, Mapping):
        inner = list(found.values()) if key == EACH else [found[key]] if key in found else []
    else:
        inner = list(found) if key == EACH and isinstance(found, list) else []
    for each in inner:
        yield from _under(each, rest)


def read(folders: Iterable[Path]) -> list[Analysis]:
    """All findings in these directories and those inside them, in the order of their paths.

    Raises `UsageError` for a JSON file that is damaged. One that holds something else is passed over.
    """
    found = []
    for path in sorted({path for folder in folders if folder.is_dir() for path in folder.rglob("*.json")}):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is not JSON ({error}): remove it, or make it again") from None
        if isinstance(told, dict) and "analysis" in told and all(isinstance(told.get(part), dict) for part in PARTS):
            found.append(Analysis.of(told))
    return found
