"""Dataset: edits in the order of their file, and the prompts that have nothing to do with them."""

from collections.abc import Iterable
from dataclasses import dataclass

from errata.edit import Edit, Probe
from errata.errors import BadRecord, UsageError


@dataclass(frozen=True)
class Dataset:
    """What `load` read. Nothing in it is shuffled: the same file gives the same stream."""

    name: str
    edits: tuple[Edit, ...]
    irrelevant: tuple[Probe, ...] = ()
    """Prompts that were given as irrelevant; empty for a data set that comes with none."""
    skipped: tuple[BadRecord, ...] = ()
    """The records that are no edits, where skipping them was asked for."""

    def stream(self, n: int) -> tuple[list[Edit], list[Probe]]:
        """The first `n` edits, and prompts that are irrelevant to all of them (may be none).

        They are `irrelevant`, or else the locality probes of the edits after the first `n`. One that begins with a
        prompt, a rephrasing or a probe of the first `n` edits is left out, because it would leak what is scored.
        Raises `UsageError` where there are fewer than `n` edits.
        """
        if not 0 <= n <= len(self.edits):
            raise UsageError(f"{n} edits were asked for, but {self.name} has {len(self.edits)}")
        edits, later = self.edits[:n], self.edits[n:]
        probes = self.irrelevant or [probe for edit in later for probe in edit.locality]
        scored = set(_scored(edits))
        return list(edits), [probe for probe in probes if not _begins_with_one_of(scored, probe.prompt)]


def _scored(edits: Iterable[Edit]) -> Iterable[str]:
    for edit in edits:
        for prompt in (edit.prompt, *edit.rephrases, *(p.prompt for p in (*edit.locality, *edit.portability))):
            yield prompt.strip()


def _begins_with_one_of(prompts: set[str], text: str) -> bool:
    """Whether some prompt is the whole text or its beginning, up to the end of a word. Linear in the words."""
    text = text.strip()
    ends = [i for i, character in enumerate(text) if character.isspace()]
    return any(text[:end] in prompts for end in (*ends, len(text)))
