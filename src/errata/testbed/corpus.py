"""Corpus: everything of use that lies in a directory: facts, natural text, and text to measure perplexity on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from errata.data.record import read_text
from errata.errors import UsageError
from errata.testbed.facts import Fact, consistent
from errata.testbed.sources import SOURCES, TEXTS, VALIDATION

SHARES: Mapping[str, int] = {source.name: source.share for source in SOURCES}


@dataclass(frozen=True)
class Corpus:
    """What was read."""

    directory: Path
    facts: tuple[Fact, ...]
    text: str
    """Natural text to train on; may be empty."""
    validation: str
    """WikiText-2's validation text; may be empty."""

    def of(self, source: str) -> list[Fact]:
        """The facts of one source, in the order of its files."""
        return [fact for fact in self.facts if fact.source == source]

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of all that training may see."""
        told = [[fact.source, fact.wordings, fact.answer] for fact in self.facts]
        digest = hashlib.sha256(json.dumps(told, ensure_ascii=False).encode())
        digest.update(self.text.encode())
        return digest.hexdigest()[:16]


def read(directory: Path) -> Corpus:
    """All facts and texts under a directory, at whatever depth.

    Raises `UsageError` for a directory that is missing or holds no facts, and for a file that cannot be read.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory; --data wants one that holds files of facts")
    facts = consistent(fact for source in SOURCES for fact in source.read(found(directory, *source.files)))
    if not facts:
        looked = ", ".join(pattern for source in SOURCES for pattern in source.files)
        raise UsageError(f"no facts under {directory}; looked, at any depth, for {looked}")
    text, validation = (
        "\n".join(read_text(path) for path in found(directory, *patterns)) for patterns in (TEXTS, (VALIDATION,))
    )
    return Corpus(directory, tuple(facts), text, validation)


def found(directory: Path, *patterns: str) -> list[Path]:
    """The files of these globs, pattern after pattern, each in the order of their paths."""
    return [path for pattern in patterns for path in sorted(directory.rglob(pattern)) if path.is_file()]
