"""Edit: the frozen record of one change to what a model says. It knows nothing of tokens or models."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from errata.errors import BadEdit

LOCALITY_KINDS = ("far", "same_relation", "same_subject")
"""What a locality probe shares with the edit: nothing, the relation, or the subject."""
OOD = "ood"
"""The kind of a portability probe whose answer is natural text about the edit's subject (see `errata.data.temporal`)."""


@dataclass(frozen=True)
class Probe:
    """A question whose answer is looked at after an edit."""

    prompt: str
    answer: str | None = None
    """The reference answer, where the data has one. Locality compares with the unedited model instead."""
    kind: str | None = None
    """For locality: one of `LOCALITY_KINDS`, where the data says so."""


@dataclass(frozen=True)
class Edit:
    """One correction: after it, `prompt` is answered with `target`.

    Raises `BadEdit` when the prompt or the target is empty, or the subject does not occur in the prompt.
    """

    prompt: str
    target: str
    subject: str | None = None
    target_old: str | None = None
    rephrases: tuple[str, ...] = ()
    """Other wordings that should carry the new answer. Never used for editing, only for scoring."""
    locality: tuple[Probe, ...] = ()
    """Prompts whose answers must not change. Never used for editing, only for scoring."""
    portability: tuple[Probe, ...] = ()
    """Prompts whose answers follow from the edit."""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Who, why, from where: author, source, reason, tags, or whatever the data set says."""

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise BadEdit(f"the {name} of an edit is empty (prompt {self.prompt!r}, target {self.target!r})")
        if self.subject is not None and self.subject not in self.prompt:
            raise BadEdit(f"the subject {absent(self.subject, self.prompt)}")
        for name in ("rephrases", "locality", "portability"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of the hash of (prompt, target, subject): the same change has the same id."""
        content = json.dumps([self.prompt, self.target, self.subject], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def contradicts(self, other: "Edit") -> bool:
        """Whether both answer the same prompt, differently."""
        return self.prompt == other.prompt and self.target != other.target


def absent(subject: str, prompt: str) -> str:
    """That a subject is not in a prompt, and how it is written there if that is all."""
    at = prompt.lower().find(subject.lower())
    there = f"; it is written {prompt[at : at + len(subject)]!r} there" if at >= 0 else ""
    return f"{subject!r} does not occur in the prompt {prompt!r}{there}"
