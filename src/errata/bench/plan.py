"""Plan: what a benchmark is to measure, checked before anything is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from errata.answers import BATCH
from errata.chat import ChatTokens
from errata.edit import Edit, Probe
from errata.editor import Editor
from errata.errors import BadOption

UNEDITED = "none"
"""The method of a row whose model was not edited at all."""


@dataclass(frozen=True)
class Plan:
    """What to measure: one method on one model, over the first edits of one data set.

    Raises `BadOption` for checkpoints that the data cannot fill, and for a chat with a model that has no template.
    """

    base: nn.Module
    tokenizer: Any
    editor: Editor | None
    """The method with its options; None for the model as it is."""
    model: str
    """What rows call the model ..."""
    data: str
    """... and the data."""
    edits: Sequence[Edit]
    irrelevant: Sequence[Probe] = ()
    checkpoints: Sequence[int] = ()
    """After how many edits to score all of them; by default at the end."""
    seed: int = 0
    batch_size: int = 1
    """Edits made at once. A batch never crosses a checkpoint."""
    chunks: int = 1
    """1: one stream, scored on the way. More: for each T, the average over as many disjoint chunks of T edits as the
    data holds, at most this many, each from the unedited model (the protocol of the papers for T < 1000)."""
    rows_at_once: int = BATCH
    """Rows a forward call when scoring; changes no score."""
    chat: bool = False
    """Whether all prompts are what a user says in the tokenizer's chat template, in edits as in scores."""

    def __post_init__(self) -> None:
        points = tuple(sorted(set(self.checkpoints or (len(self.edits),))))
        object.__setattr__(self, "checkpoints", points)
        for name in ("batch_size", "chunks", "rows_at_once"):
            if getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.chat and self.tokenizer is not None:
            ChatTokens(self.tokenizer)
        if not 1 <= points[0] <= points[-1] <= len(self.edits):
            raise BadOption(f"checkpoints {list(points)} of {len(self.edits)} edits: from 1 to {len(self.edits)}")

    @property
    def method(self) -> str:
        """The name of the method."""
        return UNEDITED if self.editor is None else self.editor.name

    @property
    def edits_to_make(self) -> int:
        """Edits in all its streams, where none of its rows are there."""
        return sum(run.length * len(run.starts) for run in self.runs())

    def runs(self) -> list["Run"]:
        """The streams from the unedited model that this plan is made of."""
        if self.chunks == 1:
            return [Run((0,), tuple(self.checkpoints))]
        counts = {t: min(self.chunks, len(self.edits) // t) for t in self.checkpoints}
        return [Run(tuple(range(0, t * count, t)), (t,)) for t, count in counts.items()]


class Run(NamedTuple):
    """Streams of like length that are averaged."""

    starts: tuple[int, ...]
    """Index of the first edit of each."""
    checkpoints: tuple[int, ...]

    @property
    def length(self) -> int:
        """Edits in each stream."""
        return self.checkpoints[-1]


def model_name(model: str) -> str:
    """What rows call a model: the name of its directory, wherever that lies; else the name as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
