"""Residual memory: MEMOIR's W_m beside one FFN output projection, and the masks through which it is read.

What an edit writes lies in the columns that its mask selects. A request is routed by comparing masks of its features with
the stored ones; it is read through the mask that the nearest edit was written through. When W_m is full the round is over:
it is closed, never written again, and the next edits have an empty one.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from errata.mask_index import MaskIndex
from errata.masks import nearest, overlaps, pack, shared, top_hash, unpack
from errata.memory import Gated, add
from errata.routing import Decision, decide_best
from errata.sites import Site

MANY = 20_000
"""Edits from which on the nearest mask is looked up in an index rather than by comparing all of them."""
FEATURES = {
    "any": ("blend", "centred_mean", "last"), "blend": ("blend",), "centred_mean": ("centred_mean",), "mean": ("mean",),
    "last": ("last",),
}  # fmt: skip
"""What masks can be made of, and the views that each stands for: one mask a view is stored."""
COMMON = 0.25
"""A feature that so large a share of other subjects has in the same prompt says nothing of the subject; nor of what is
asked, one that so large a share of other questions about it has."""
EXACT = 0.98
"""Overlap from which on two masks are of the same prompt: numerical noise moves a few features in or out."""


def held(capacity: float, weights: float) -> int:
    """Edits that a W_m of so many weights takes, at least one; `capacity` is their number for every million."""
    return max(1, math.ceil(capacity * weights / 1e6))


class ResidualMemory(Gated):
    """W_m (model, width), and the masks (views, masks, width bits) that index it; `owners` are their edits.

    Its width is that of the site's input, or the number of `kept` features of it. It is read through the masks of the
    first view; or, where edits have several masks or `apart` ones to write through, through those in `written`
    (edits, width bits), of which `home` (masks,) says whose is whose. `moment` (width, width), where there is one, is K K^T
    of what its edits read. `distinct` (views, masks, width bits), where there is one, is the part of each mask that is of
    its edit's subject, and `relation` that of what is asked about it; empty where the subject is not known. `closed`
    (rounds, model, width), where there is one, are the W_m of rounds that are over; `rounds` (masks,) says in which of
    them, or in this one, the edit of each mask was made.
    """

    weight: Tensor
    closed: Tensor | None
    rounds: Tensor | None
    permutation: Tensor
    kept: Tensor | None
    background: Tensor
    masks: Tensor
    distinct: Tensor | None
    relation: Tensor | None
    owners: Tensor
    irrelevant: Tensor
    noise: Tensor
    threshold: Tensor
    written: Tensor
    home: Tensor
    moment: Tensor | None

    def __init__(
        self, site: Site, active: int, feature: str, permutation: Tensor, device: torch.device, *, raw: bool = False,
        apart: bool = False, kept: Tensor | None = None, protected: bool = False, contrast: float = 0.0,
        asked: float | None = None, in_rounds: bool = False,
    ) -> None:  # fmt: skip
        """`raw`: overlaps are scored as they are, not corrected for chance. `kept`: the input features that are used.

        `protected`: there is a `moment`. `contrast`: the share of an edit's distinct features, corrected for chance, that a
        prompt must have; 0 asks for none. `asked`: the same of the features of what is asked; None asks for none.
        `in_rounds`: W_m may be closed, and another begun.
        """
        super().__init__(site)
        self.active, self.feature, self.apart, self.contrast, self.asked = active, feature, apart, contrast, asked
        self.width = len(permutation)
        self.chance = 0.0 if raw else active / self.width
        """The overlap R that counts as none."""
        self._indexes: list[MaskIndex] = []
        width, packed, views = self.width, (self.width + 7) // 8, len(FEATURES[feature])
        self.register_buffer("weight", torch.zeros(site.out_features, width, device=device))
        self.register_buffer("closed", torch.zeros(0, *self.weight.shape, device=device) if in_rounds else None)
        self.register_buffer("rounds", torch.zeros(0, dtype=torch.long, device=device) if in_rounds else None)
        self.register_buffer("permutation", permutation.to(device))
        self.register_buffer("kept", None if kept is None else kept.to(device))
        self.register_buffer("background", torch.zeros(2, width, device=device))  # mean and last-token feature
        self.register_buffer("masks", torch.zeros(views, 0, packed, dtype=torch.uint8, device=device))
        self.register_buffer("distinct", self.masks.clone() if contrast else None)
        self.register_buffer("relation", None if asked is None else self.masks.clone())
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer(
            "irrelevant", torch.zeros(views, 0, packed, dtype=torch.uint8, device=device)
        )  # their masks
        self.register_buffer(
            "noise", torch.zeros(views, 0, device=device)
        )  # the best score of each irrelevant prompt so far
        self.register_buffer("threshold", torch.ones(views, device=device))
        self.register_buffer("moment", torch.zeros(width, width, device=device) if protected else None)
        if apart:
            self.register_buffer("written", torch.zeros(0, packed, dtype=torch.uint8, device=device))
            self.register_buffer("home", torch.zeros(0, dtype=torch.long, device=device))

    def weights(self) -> int:
        """Those of W_m, in all rounds."""
        return self.weight.numel() * (1 if self.closed is None else 1 + len(self.closed))

    def read(self, a: Tensor) -> Tensor:
        """The features that are used: (batch, seq, ff) -> (batch, seq, width)."""
        return a if self.kept is None else a[..., self.kept]

    def features(self, a: Tensor) -> Tensor:
        """The mean over the prompt and the last prompt token of each row: (batch, seq, ff) -> (batch, 2, width)."""
        a = self.read(a).float()
        return torch.stack([self.routing.over_prompt(a), self.routing.last_of_prompt(a)], dim=1)

    def mask(self, features: Tensor) -> Tensor:
        """The TopHash masks of each row's prompt, packed: (batch, 2, width) -> (views, batch, bytes)."""
        centred = features - self.background
        z = {
            "blend": F.normalize(centred, dim=-1).sum(dim=1),
            "centred_mean": centred[:, 0],
            "mean": features[:, 0],
            "last": centred[:, 1],
        }
        views = [top_hash(z[view], self.permutation, self.active) for view in FEATURES[self.feature]]
        return torch.stack([pack(view) for view in views])

    def score(self, mask: Tensor, stored: Tensor) -> Tensor:
        """Overlap corrected for chance, R' = (R - N/D) / (1 - N/D): 0 for unrelated masks, 1 for equal ones.

        Packed (batch, bytes), (edits, bytes) -> (batch, edits). The overlap R itself in a `raw` memory.
        """
        return self.corrected(overlaps(mask, stored))

    def corrected(self, shared: Tensor) -> Tensor:
        """R' of a number of shared features."""
        return (shared / self.active - self.chance) / max(1 - self.chance, 1 / self.width)

    def exact(self) -> float:
        """The score from which on a prompt is the stored one itself."""
        return float(self.corrected(torch.tensor(EXACT * self.active)))

    def known(self, mask: Tensor) -> Tensor:
        """Which stored masks these are, in all views: (views, 1, bytes) -> (masks,) bool."""
        return (self.masks == mask).all(dim=2).all(dim=0)

    def distinguished(self, mask: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The part of masks that at most `COMMON` of `others`, masks of prompts like theirs, have.

        Packed (views, masks, bytes) and, in batches, (views, others, bytes) -> (views, masks, bytes); empty without others.
        """
        if not others:
            return torch.zeros_like(mask)
        rare = unpack(torch.cat(tuple(others), dim=1), self.width).float().mean(dim=1, keepdim=True) <= COMMON
        return mask & pack(rare)

    def _lacks(self, mask: Tensor, pick: Tensor) -> Tensor:
        """Which rows lack what is distinct of the stored masks picked: (views, batch, bytes), (batch, views) -> like it.

        Of the subject in the view in which it was picked; or, where what is asked counts too, of both on the mean of all.
        """
        lacks = torch.zeros_like(pick, dtype=torch.bool)
        if self.distinct is not None and self.asked is None:
            own = self.distinct.gather(1, pick.T[..., None].expand_as(mask))
            lacks |= (self._share(mask, own) < self.contrast).T
        elif self.distinct is not None:
            lacks |= self._share(mask[:, :, None], self.distinct[:, pick]).mean(dim=0) < self.contrast
        if self.relation is not None and self.asked is not None:
            lacks |= self._share(mask[:, :, None], self.relation[:, pick]).mean(dim=0) < self.asked
        return lacks

    def _share(self, mask: Tensor, own: Tensor) -> Tensor:
        """The share of these features that a mask has, corrected for chance, by which it has N/D; 1 of none.

        Packed (..., bytes) twice -> (...).
        """
        size, chance = shared(own, own), self.active / self.width
        share = torch.where(size > 0, shared(mask, own) / size.clamp(min=1), 1.0)
        return (share - chance) / (1 - chance)

    # -- writing -----------------------------------------------------------------------------------------------------

    def make_room(self, capacity: float) -> None:
        """Begin a round, if this one has as many edits as W_m takes."""
        assert self.closed is not None
        if len(self.owners[self.here()].unique()) >= held(capacity, self.weight.numel()):
            empty = {"weight": torch.zeros_like(self.weight)}
            empty |= {} if self.moment is None else {"moment": torch.zeros_like(self.moment)}
            self.put({"closed": torch.cat([self.closed, self.weight[None]])} | empty)

    def here(self) -> Tensor:
        """The masks of edits that were made in this round: (masks,) bool."""
        if self.closed is None or self.rounds is None:
            return torch.ones_like(self.owners, dtype=torch.bool)
        return self.rounds == len(self.closed)

    def joined(self, mask: Tensor, written: Tensor, index: int) -> dict[str, Tensor]:
        """The index with the masks (views, masks, bytes) of an edit in it, and the one through which it was `written`."""
        count = mask.shape[1]
        found = {
            "masks": torch.cat([self.masks, mask], dim=1),
            "owners": torch.cat([self.owners, self.owners.new_full((count,), index)]),
        }
        if self.closed is not None and self.rounds is not None:
            found["rounds"] = torch.cat([self.rounds, self.rounds.new_full((count,), len(self.closed))])
        if self.apart:
            found["home"] = torch.cat([self.home, self.home.new_full((count,), len(self.written))])
            found["written"] = torch.cat([self.written, written[None]])
        return found

    def taken_over(self, known: Tensor, index: int) -> dict[str, Tensor]:
        """The index where these masks (masks,) bool belong to a newer edit, which was made in this round."""
        mine = torch.isin(self.home, self.home[known]) if self.apart else known
        found = {"owners": torch.where(mine, index, self.owners)}
        if self.closed is not None and self.rounds is not None:
            found["rounds"] = torch.where(mine, len(self.closed), self.rounds)
        return found

    # -- reading -----------------------------------------------------------------------------------------------------

    def through(self, pick: Tensor) -> Tensor:
        """The masks, packed, that the edits with these stored masks were written through: (...,) -> (..., bytes)."""
        return self.written[self.home[pick]] if self.apart else self.masks[0, pick]

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Make these the stored tensors; indexes of other masks are no longer theirs."""
        super().put(tensors)
        if "masks" in tensors and self._indexes:
            stored = [masks.numpy() for masks in self.masks]
            known = len(self._indexes[0])
            if all(np.array_equal(new[:known], old.rows) for new, old in zip(stored, self._indexes, strict=True)):
                for index, masks in zip(self._indexes, stored, strict=True):
                    index.grow(masks)
            else:
                self._indexes = []

    def _floor(self, view: int) -> int:
        """The least number of shared features that may reach the threshold."""
        least = self.chance + float(self.threshold[view]) * (1 - self.chance)
        return max(1, math.floor(self.active * least) - 1)

    def _indexed(self) -> list[MaskIndex]:
        """An index of the masks of each view, where there are many and they are on the CPU."""
        if len(self.owners) < MANY or self.masks.device.type != "cpu" or torch.compiler.is_compiling():
            return []
        if not self._indexes:
            self._indexes = [MaskIndex.of(masks.numpy(), self.width) for masks in self.masks]
        return self._indexes

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """A row is answered when its mask overlaps a stored one enough, in the view where it does so best.

        The stored mask of that edit is then used. A row that lacks what is distinct of it asks about something else.
        """
        if len(self.owners) == 0:
            return Decision(torch.zeros(len(a), dtype=torch.bool, device=a.device), anywhere=False)
        mask, indexes, tau = self.mask(self.features(a)), self._indexed(), self.threshold
        found = [
            nearest(mask[v], self.masks[v], self._floor(v) if indexes else 0, indexes[v] if indexes else None)
            for v in range(len(mask))
        ]
        scores = torch.stack([self.corrected(count) for count, _ in found], dim=1)  # (batch, views, few)
        picks = torch.stack([which for _, which in found], dim=1)
        room = (scores[..., 0] - tau) / (1 - tau).clamp(min=1e-6)
        other = self._lacks(mask, picks[..., 0])
        tau = torch.where(other, self.exact(), tau)  # then only the prompt itself is near enough
        passed = scores[..., 0] >= tau
        view = room.masked_fill(passed.any(dim=1, keepdim=True) & ~passed, -torch.inf).argmax(dim=1)
        best = torch.arange(len(view), device=view.device), view
        return decide_best(scores[best], picks[best], tau[best])._replace(other=other[best])

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """W a + W_m (m * a), with the stored mask m of each row, and the W_m of its round."""
        assert decision.pick is not None
        m = unpack(self.through(decision.pick), self.width)
        a = self.read(a).to(self.weight.dtype) * m[:, None]
        if self.closed is None or self.rounds is None or not len(self.closed):
            return add(y, F.linear(a, self.weight))
        rounds, c = self.rounds[decision.pick], y.new_zeros(y.shape, dtype=self.weight.dtype)
        every = torch.compiler.is_compiling()
        for i in range(len(self.closed) + 1) if every else rounds[decision.rows].unique().tolist():
            weight = self.closed[i] if i < len(self.closed) else self.weight
            c = torch.where((rounds == i)[:, None, None], F.linear(a, weight), c)
        return add(y, c)
