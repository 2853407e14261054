"""Findings: what an analysis has found, with all that is needed to find it again; one JSON file."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import errata
from errata.bench import provenance
from errata.disk import replace_all
from errata.edit import Edit
from errata.errors import DamagedFile

FORMAT = 1
"""Of the files."""


def made_alone() -> dict[str, Any]:
    """The provenance of numbers that no model was needed for."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"errata": errata.__version__, "torch": torch.__version__, "platform": platform.platform(), "time": now}


@dataclass(frozen=True)
class Findings:
    """The numbers of one analysis."""

    analysis: str
    """`superposition`, `tracing`, `overlap` or `routing`: also the name of the file."""
    settings: Mapping[str, Any]
    """What was asked."""
    found: Mapping[str, Any]
    """What was found."""
    provenance: Mapping[str, Any] = field(default_factory=made_alone)

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.analysis}.json"

    def write(self, directory: Path) -> Path:
        """Write the file, whole or not at all, and give back its path."""
        directory.mkdir(parents=True, exist_ok=True)
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_record().items()]
        replace_all(directory, {self.file: ("{\n" + ",\n".join(lines) + "\n}\n").encode()})
        return directory / self.file

    def to_record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "format": FORMAT,
            "analysis": self.analysis,
            "settings": dict(self.settings),
            "found": dict(self.found),
            "provenance": dict(self.provenance),
        }


def found_before(directory: Path, analysis: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of an analysis in a directory holds, if the same was asked then; nothing where there is none.

    Raises `DamagedFile` for a file of that name which holds something else.
    """
    path = directory / Findings(analysis, {}, {}).file
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return dict(told["found"]) if told["settings"] == json.loads(json.dumps(settings)) else {}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{path} holds no findings, or is damaged ({error}); remove it, or give another directory"
        ) from None


def made_on(base: nn.Module, edits: Iterable[Edit]) -> dict[str, Any]:
    """The provenance of numbers that were found on a base model, which has no edits at present, with this data."""
    return {
        **provenance.of_base(base),
        "data_sha256": provenance.hash_of_edits(edits),
        **provenance.surroundings(base),
    }
