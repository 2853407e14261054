"""Side memory: WISE's copies of an FFN output projection, each held as its shift of the pretrained matrix.

One side memory is being written, shard by shard; when its k shards are full the round is over and they are merged for
good. What earlier rounds made is merged in with them (WISE-Merge) or kept apart, to be retrieved by activation
(WISE-Retrieve). Reading needs the dense shifts, which are worked out when tensors are put in place and are not stored.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errata import sharding
from errata.memory import Gated, add
from errata.merging import Merging
from errata.routing import Decision, decide
from errata.sites import Site
from errata.states import States

SETTLED_WEIGHT = 0.6
"""Weight of the memory of earlier rounds when it is merged with new shards, which share the rest [released]."""
OVER = ("mean", "last", "max", "blend")
"""Where a prompt's activation is taken: the mean over its tokens, the last, the largest, or half mean and half last."""


class SideMemory(Gated):
    """The shifts (model, ff) of the side memories, and the thresholds that decide between them and W."""

    closed: Tensor
    values: Tensor
    shards: Tensor
    edits: Tensor
    rounds: Tensor
    epsilon: Tensor
    margin: Tensor
    homes: Tensor
    keys: Tensor
    scopes: Tensor

    def __init__(
        self,
        site: Site,
        device: torch.device,
        *,
        over: str,
        masks: Callable[[int, int], Tensor],
        merging: Merging,
        apart: bool,
        nonlinearity: Callable[[Tensor], Tensor] | None,
    ) -> None:
        """`masks` gives M_i of (round, shard); `apart` keeps rounds apart; `nonlinearity` is for the released distance."""
        super().__init__(site)
        self.over, self._mask, self.merging, self.apart, self.nonlinearity = over, masks, merging, apart, nonlinearity
        shape = (site.out_features, site.in_features)
        none = torch.zeros(0, device=device)
        count = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("closed", torch.zeros(0, *shape, device=device))  # of earlier rounds
        self.register_buffer("values", none)  # of the shards of this round, at the entries of their masks
        self.register_buffer("shards", count)  # how many this round has, the last in training
        self.register_buffer("edits", count)  # in the last shard
        self.register_buffer("rounds", count)  # that are over
        self.register_buffer("epsilon", none)  # threshold of each side memory; nan where it is to be calibrated anew
        self.register_buffer("margin", none)  # least activation of its edits over the threshold: 1 where they touch
        self.register_buffer("homes", torch.zeros(0, dtype=torch.long, device=device))  # the round of every edit
        self.register_buffer("keys", torch.zeros(0, site.in_features, device=device))  # what an oracle knows
        self.register_buffer("scopes", torch.zeros(0, dtype=torch.long, device=device))  # ... and its side memory
        self._drawn: dict[tuple[int, int], Tensor] = {}
        self.shifts: list[Tensor] = []
        """Those that answer, (model, ff) each; worked out of what is stored."""
        self.answers = torch.zeros(0, dtype=torch.long)
        """The first tokens that the unedited model says to irrelevant prompts, for calibration; not stored."""

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Make these the stored tensors, and work out the shifts that answer."""
        super().put(tensors)
        open_ = self.open_shards()
        self.shifts = [*(self.closed if self.apart or not open_ else ()), *([self.merged(open_)] if open_ else [])]

    # -- writing -----------------------------------------------------------------------------------------------------

    def masks(self) -> list[Tensor]:
        """M_i (model, ff) bool of the shards of this round."""
        rounds, device = int(self.rounds), self.closed.device
        drawn = {(rounds, i): self._drawn.get((rounds, i)) for i in range(int(self.shards))}
        self._drawn = {at: self._mask(*at).to(device) if m is None else m.to(device) for at, m in drawn.items()}
        return list(self._drawn.values())

    def open_shards(self) -> list[Tensor]:
        """What the shards of this round have written, (model, ff) each."""
        return sharding.spread(self.values, self.masks())

    def merged(self, shards: Sequence[Tensor]) -> Tensor:
        """Eq. 8, Ties: the shards of this round, and what earlier rounds have settled unless they are kept apart."""
        return self.merging.merge(*self._weighted(shards), int(self.rounds))

    def writing(self, where: Tensor, *, joint: bool) -> Callable[[Tensor], Tensor]:
        """The shift in training (model, ff), as a function of the last shard's values (entries,) at its places `where`.

        That of the shard by itself; or, `joint`, of the merge, with the gradient of a sum, for at 0, where a shard begins,
        the merge is flat.
        """
        *before, shard = self.open_shards()
        none = torch.zeros_like(shard)
        at = self.merging.at(*self._weighted([*before, shard]), where) if joint else lambda theta: theta
        base = self.merged([*before, none]) if joint and at is not None else none

        def shift(theta: Tensor) -> Tensor:
            if at is not None:
                values = at(theta.detach()) + (theta - theta.detach())
                return base.flatten().index_copy(0, where, values).view_as(base)
            tau = sharding.placed(theta, where, shard.shape)
            return self.merged([*before, tau.detach()]) + (tau - tau.detach())

        return shift

    def _weighted(self, shards: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
        """What is merged with these shards of this round, they themselves last, and the weight of each."""
        settled = [] if self.apart else list(self.closed)
        share = 1 - SETTLED_WEIGHT if settled else 1.0
        return [*settled, *shards], [SETTLED_WEIGHT] * len(settled) + [share / len(shards)] * len(shards)

    def make_room(self, size: int, k: int, most: int | None) -> None:
        """A shard with room for an edit: after `size` edits the next one, after k shards the next round.

        Of side memories that are kept apart, two are merged when there would be more than `most` [paper, B.8]: those with
        the fewest edits, so that none takes many, each by the number of its own.
        """
        if int(self.shards) and int(self.edits) < size:
            return
        if int(self.shards) == k:
            self._close_round(most)
        room = int(self._mask(int(self.rounds), int(self.shards)).sum())
        self.put({
            "values": torch.cat([self.values, self.values.new_zeros(room)]),
            "shards": self.shards + 1,
            "edits": torch.zeros_like(self.edits),
        })  # fmt: skip

    def _close_round(self, most: int | None) -> None:
        new = {"closed": torch.stack(self.shifts)}
        if self.apart and most is not None and len(self.shifts) >= most:
            counts = torch.bincount(self.homes, minlength=len(self.shifts)).tolist()
            into, gone = sorted(sorted(range(len(counts)), key=lambda j: counts[j])[:2])
            both = self.merging.merge([self.shifts[into], self.shifts[gone]], [counts[into], counts[gone]], -1)
            kept = [j for j in range(len(counts)) if j != gone]
            new["closed"] = torch.stack([both if j == into else self.shifts[j] for j in kept])
            for name, each in (("homes", self.homes), ("scopes", self.scopes)):
                new[name] = torch.where(each == gone, into, each) - (each > gone).long()
            for name, each in (("epsilon", self.epsilon), ("margin", self.margin)):
                new[name] = each.index_fill(0, torch.tensor(into, device=each.device), torch.nan)[kept]
        none = torch.zeros_like(self.shards)
        self.put(new | {"values": self.values[:0], "shards": none, "rounds": self.rounds + 1})

    @property
    def current(self) -> int:
        """Which of the side memories is being written."""
        return len(self.shifts) - 1

    def scope(self, keys: Tensor) -> dict[str, Tensor]:
        """The tensors with what an oracle is told: these last-token inputs (texts, ff) are the current memory's."""
        scopes = self.scopes.new_full((len(keys),), self.current)
        return {"keys": torch.cat([self.keys, keys]), "scopes": torch.cat([self.scopes, scopes])}

    def always(self, a: Tensor, y: Tensor) -> Tensor:
        """The output with the side memory that is being written always on: (batch, seq, ff), (batch, seq, model)."""
        return add(y, F.linear(a.to(self.values.dtype), self.shifts[-1]))

    # -- reading -----------------------------------------------------------------------------------------------------

    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """Eq. 6, and top-1 of several: of the side memories whose activation reaches epsilon, the most active one."""
        if not self.shifts:
            return Decision(torch.zeros(len(a), dtype=torch.bool, device=a.device), anywhere=False)
        if len(self.keys):
            return self._told(a)
        a = a.to(self.epsilon.dtype)
        d = torch.stack([self.activation(F.linear(a, shift), y) for shift in self.shifts], dim=-1)
        pick = torch.where(d >= self.epsilon, d, -1.0).argmax(dim=-1)
        return decide(d.gather(1, pick[:, None])[:, 0], self.epsilon[pick], pick)

    def _told(self, a: Tensor) -> Decision:
        """Oracle routing: the prompts of all edits and their rephrasings are known by what the last token reads."""
        last = self.routing.last_of_prompt(a).to(self.keys.dtype)
        distance, nearest = torch.cdist(last, self.keys).min(dim=-1)
        far = 1e-3 * last.norm(dim=-1)
        return decide(-distance, -far, self.scopes[nearest])

    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """W' a, with the W' that was picked for each row."""
        assert decision.pick is not None
        a = a.to(self.epsilon.dtype)
        corrected = add(y, F.linear(a, self.shifts[0]))
        for j, shift in enumerate(self.shifts[1:], start=1):
            mine = (decision.pick == j)[:, None, None]
            corrected = torch.where(mine, add(y, F.linear(a, shift)), corrected)
        return corrected

    def activation(self, c: Tensor, y: Tensor) -> Tensor:
        """Delta_act of each row's prompt (eq. 3), from the shift's output c: (batch, seq, model) twice -> (batch,)."""
        d = self._distance(c, y)
        if self.over == "max":
            return (d * self.routing.prompt).amax(dim=1)
        mean, last = self.routing.over_prompt(d), self.routing.last_of_prompt(d)
        return {"mean": mean, "last": last, "blend": (mean + last) / 2}[self.over]

    def active(self, a: Tensor, y: Tensor, prompt: Tensor) -> Tensor:
        """Activations (batch,) of rows in the side memory that is being written; `a` and `y` as in `always`."""
        with self.routing.reading(prompt):
            return self.activation(F.linear(a.to(self.values.dtype), self.shifts[-1]), y)

    def activations(self, prompts: States, shift: Tensor) -> Tensor:
        """The same of prompts whose states are known: (prompts,)."""
        d = self._distance(F.linear(prompts.states, shift), prompts.outputs)
        if self.over == "max":
            return prompts.largest(d)
        mean, last = prompts.mean(d), prompts.last(d)
        return {"mean": mean, "last": last, "blend": (mean + last) / 2}[self.over]

    def _distance(self, c: Tensor, y: Tensor) -> Tensor:
        """||c|| of each token [paper], or ||act(y + c) - act(y)|| [released]: (..., model) -> (...)."""
        if self.nonlinearity is None:
            return c.norm(dim=-1)
        y = y.to(c.dtype)
        return (self.nonlinearity(y + c) - self.nonlinearity(y)).norm(dim=-1)


def nonlinearity(base: nn.Module) -> Callable[[Tensor], Tensor]:
    """A model's FFN nonlinearity, from its configuration; SiLU where that does not say."""
    from transformers.activations import ACT2FN

    config: Any = getattr(base, "config", None)
    named = [getattr(config, name, None) for name in ("hidden_activation", "hidden_act", "activation_function")]
    return ACT2FN[next((name for name in named if isinstance(name, str)), "silu")]
