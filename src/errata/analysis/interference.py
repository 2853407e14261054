"""Interference: what a stream of ROME edits does to the facts that it does not edit, and to those edited before.

Each edit i turns the output at its key k_i by delta_i = W_i k_i - W_(i-1) k_i. In a linear associative memory this, and

    W_n k - W_0 k     = sum over i <= n  of  p(k_i, k) delta_i         for a fact that is never edited
    W_n k_j - W_j k_j = sum over i > j   of  p(k_i, k_j) delta_i       for edit j: older edits suffer more

are identities (arXiv 2408.07413). Here the left sides are read off a real model that is being edited, by forward calls,
and the right sides are worked out of keys and covariances that were read from the model before its first edit.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from errata.analysis.keys import place, read
from errata.associative import Associative
from errata.edit import Edit
from errata.errors import BadOption, EditFailed
from errata.methods import make
from errata.model import EditedModel
from errata.sites import Site

if TYPE_CHECKING:
    from errata.editor import Receipt


class Stream(NamedTuple):
    """n edits, made one after another, and what the edited site answered to the keys of m facts after each of them."""

    outputs: Tensor
    """(n + 1, m, model) float64: before the first edit, and after each."""
    receipts: "tuple[Receipt, ...]"
    moved: float
    """The largest change of any key, relative to its norm: 0, as nothing below the site is edited."""

    @property
    def edits(self) -> int:
        """n."""
        return len(self.outputs) - 1

    @property
    def deltas(self) -> Tensor:
        """delta_i, (n, model): how edit i turned the output at its own key."""
        i = torch.arange(self.edits)
        return self.outputs[1:][i, i] - self.outputs[:-1][i, i]

    @property
    def measured(self) -> Tensor:
        """(m, model): the drift of each fact, of an edited one since its own edit, of the others since the beginning."""
        facts = torch.arange(self.outputs.shape[1])
        since = torch.where(facts < self.edits, facts + 1, 0)
        return self.outputs[-1] - self.outputs[since, facts]


def predicted(P: Tensor, deltas: Tensor) -> Tensor:
    """The right sides: (m, m) of p(k_i, k_j), the n edited facts first, and (n, model) -> (m, model)."""
    n, m = len(deltas), len(P)
    i, j = torch.arange(n, device=P.device)[:, None], torch.arange(m, device=P.device)
    after = (i > j) | (j >= n)
    return (P[:n] * after).mT @ deltas


def stream(model: EditedModel, facts: Sequence[Edit], site: Site, S: Tensor, edits: int, contexts: int = 0) -> Stream:
    """Make the first `edits` of these facts by ROME at one site, beside a model without edits, which stays as it is.

    `S` (ff, ff) is the inverse covariance there. All facts are looked at after each edit. Raises `BadOption` where there
    are fewer facts than edits, `EditFailed` where one cannot be made.
    """
    if not 0 < edits <= len(facts):
        raise BadOption(f"a stream of {edits} edits: there are {len(facts)} facts, so say 1 to {len(facts)}")
    edited = EditedModel(
        model.base, model.tokens.tokenizer, make("rome", layer=site.layer, place="subject", contexts=contexts),
        irrelevant=model.sampling.irrelevant, prefixes=model.prefixes(), seed=model.sampling.seed,
    )  # fmt: skip
    try:
        (memory,) = edited.memories.values()
        assert isinstance(memory, Associative)
        memory.first = S
        return _made(edited, facts, site, edits, contexts)
    finally:
        edited.detach()


def _made(edited: EditedModel, facts: Sequence[Edit], site: Site, edits: int, contexts: int) -> Stream:
    """The stream on a model that has ROME at the site."""
    placed = place(edited, facts, contexts)
    seen = [read(edited, [site], placed)[site.path]]
    receipts = []
    for i, fact in enumerate(facts[:edits], start=1):
        try:
            receipts.append(edited.edit(fact))
        except EditFailed as error:
            raise EditFailed(f"edit {i} of the stream at {site.path} failed: {error}") from error
        seen.append(read(edited, [site], placed)[site.path])
    first = seen[0].keys
    moved = max(float(((one.keys - first).norm(dim=1) / first.norm(dim=1)).max()) for one in seen)
    return Stream(torch.stack([one.outputs for one in seen]), tuple(receipts), moved)


def compared(found: Stream, P: Tensor) -> dict[str, Any]:
    """How well the identities hold, as numbers for a file; norms of drifts are relative to the mean |delta|."""
    said, is_ = predicted(P.cpu(), found.deltas.cpu()), found.measured.cpu()
    unit = found.deltas.norm(dim=1).mean().item()
    edited = torch.arange(len(is_)) < found.edits
    rounding = torch.finfo(torch.float32).eps * found.outputs.norm(dim=-1).amax()
    probabilities = [(r.probability_before, r.probability_after) for r in found.receipts]
    return {
        "edits": found.edits,
        "facts": len(is_),
        "relative_error": float((said - is_).norm() / is_.norm()),
        "largest_error": float((said - is_).norm(dim=1).max() / unit),
        "rounding": float(rounding / unit),
        "keys_moved": found.moved,
        "drift_of_edited": float(is_[edited][:-1].norm(dim=1).mean() / unit) if found.edits > 1 else None,
        "drift_of_others": float(is_[~edited].norm(dim=1).mean() / unit) if (~edited).any() else None,
        "target_probability": [sum(p or 0.0 for p in each) / len(each) for each in zip(*probabilities, strict=True)],
        "predicted": (said.norm(dim=1) / unit).tolist(),
        "measured": (is_.norm(dim=1) / unit).tolist(),
    }
