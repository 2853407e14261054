"""Forgetting: which earlier edits a memory holds worst, so that they can be trained once more.

Continual learning knows it as maximally interfered retrieval (Aljundi et al. 2019, arXiv 1908.04742); here no trial step
is taken first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from errata.edit import Edit
from errata.memory import Memory
from errata.objective import target_log_probability
from errata.suffix import Correction, Suffix
from errata.tokens import Rows

if TYPE_CHECKING:
    from errata.model import EditedModel


class Looked(NamedTuple):
    """Earlier edits that were looked at, a row each."""

    edits: Sequence[Edit]
    order: Tensor
    """(edits,) the worst held first."""
    rows: Rows
    suffix: Suffix

    def worst(self, count: int) -> list[Edit]:
        """Those that are held worst, worst first."""
        return [self.edits[i] for i in self.order[:count].tolist()]


@torch.no_grad()
def look(model: "EditedModel", memory: Memory, correction: Correction, edits: Sequence[Edit]) -> Looked:
    """How probable the targets of these edits, at least one, are with this correction in the memory's place."""
    rows = model.rows([(edit.prompt, edit.target) for edit in edits])
    suffix = model.suffix(memory, rows)
    held = target_log_probability(suffix.logits(correction), rows.labels, rows.row_of_label)
    return Looked(edits, held.argsort(stable=True), rows, suffix)
