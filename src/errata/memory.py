"""Memory: what an edit adds beside one frozen linear map.

    y = base(a)                                         (batch, seq, model), the pretrained map, called and never read
    y <- y + gate(a) * correction(a)                    for each memory in order

Every method is a choice of gate and correction. All that a memory has learned is in its buffers, so saving is its
`state_dict`. A memory's tensors are replaced, never changed in place: holding the old ones is an exact snapshot.
"""

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errata.parallel import check_outputs, whole_input
from errata.routing import Decision, Routing
from errata.sites import Site


class Memory(nn.Module, ABC):
    """What one editor has learned beside one site."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.name = ""
        """Unique in its model; given when installed."""
        self.routing = Routing()
        """The model's; given when installed."""

    @abstractmethod
    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """(batch, seq, ff), (batch, seq, model) -> (batch, seq, model): the corrected output."""

    def beside(self, base: nn.Module) -> "Edited":
        """The module that takes the place of the one at this memory's site. Raises `NoSite` where it cannot."""
        check_outputs(base, self.site.path)
        return EditedLinear(base)

    def nbytes(self) -> int:
        """Bytes of all that is stored here: what grows with the number of edits, and what a saved file takes."""
        return sum(t.numel() * t.element_size() for t in self.buffers())

    def weights(self) -> int:
        """Weights of the matrix that edits share: the measure of how many may fit. The map's, in general."""
        return self.site.weights

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, not copied. A snapshot: they are replaced, never changed in place."""
        return dict(self.named_buffers())

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Make these the stored tensors. Sizes may differ from those held: a memory grows."""
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            self.get_submodule(owner).register_buffer(leaf, tensor)


class Gated(Memory):
    """A memory that answers some rows only: `decide` reads the prompt, `correct` gives the new output of all rows."""

    @abstractmethod
    def decide(self, a: Tensor, y: Tensor) -> Decision:
        """Which rows to answer, from their prompt tokens (`self.routing`)."""

    @abstractmethod
    def correct(self, a: Tensor, y: Tensor, decision: Decision) -> Tensor:
        """The output (batch, seq, model) of the rows that are answered; other rows are ignored."""

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """The base's output, bit for bit, on rows that are not answered."""
        decision = self.routing.decision(self.name, lambda: self.decide(a, y))
        if not decision.anywhere:
            return y
        return torch.where(decision.rows[:, None, None], self.correct(a, y, decision), y)


class Delta(Memory):
    """A dense shift of the weight, always on: y + a shift^T, with shift of shape (model, ff)."""

    shift: Tensor

    def __init__(self, site: Site, device: torch.device | None = None) -> None:
        super().__init__(site)
        self.register_buffer("shift", torch.zeros(site.out_features, site.in_features, device=device))

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """y + a shift^T."""
        return add(y, F.linear(a.to(self.shift.dtype), self.shift))


class LowRank(Memory):
    """A shift of rank r, always on: y + (a keys^T) values, with keys (r, ff) and values (r, model)."""

    keys: Tensor
    values: Tensor

    def __init__(self, site: Site, device: torch.device | None = None) -> None:
        super().__init__(site)
        self.register_buffer("keys", torch.zeros(0, site.in_features, device=device))
        self.register_buffer("values", torch.zeros(0, site.out_features, device=device))

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """y + (a keys^T) values."""
        return add(y, F.linear(a.to(self.keys.dtype), self.keys) @ self.values)


def add(y: Tensor, correction: Tensor) -> Tensor:
    """y + correction in the precision of the correction, given back in that of y."""
    return (y.to(correction.dtype) + correction).to(y.dtype)


class Edited(nn.Module, ABC):
    """A module of the pretrained model and the memories beside it. Calls the base, so that may be of any kind."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.memories = nn.ModuleList()

    def __getattr__(self, name: str) -> Any:
        """Host code that asks the module for its weight, its sizes or its parts gets the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class EditedLinear(Edited):
    """A pretrained map and the memories beside it. The base may be quantised, offloaded or transposed."""

    def forward(self, a: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the base returns, its output corrected by each memory in turn.

        A memory reads all features, and reads them where it is: the base may be split over processes and devices. It reads
        them by rows: OPT's feed-forward networks see the tokens of all rows as one.
        """
        result = self.base(a, *args, **kwargs)
        y = result[0] if isinstance(result, tuple) else result
        a, there = whole_input(a, self.base), y.device
        home = next((held.device for memory in self.memories for held in memory.buffers()), there)
        a, y, flat = a.to(home), y.to(home), y.dim() == 2 and len(self.memories) > 0
        if flat:
            batch = cast(Memory, self.memories[0]).routing.batch
            a, y = a.unflatten(0, (batch, -1)), y.unflatten(0, (batch, -1))
        for memory in self.memories:
            y = memory(a, y)
        y = (y.flatten(0, 1) if flat else y).to(there)
        return (y, *result[1:]) if isinstance(result, tuple) else y
