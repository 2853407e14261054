"""States: what one site reads and writes on the prompt tokens of many prompts, kept flat.

Below a site nothing changes while it is edited, so the states of the irrelevant prompts are computed once a stream.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class States(NamedTuple):
    """The inputs of a site on the prompt tokens of several prompts."""

    states: Tensor
    """(tokens, ff) the inputs a, prompt after prompt."""
    row: Tensor
    """(tokens,) long: the prompt that each token belongs to."""
    prompts: int
    """How many there are."""
    output_norm: float
    """Mean norm of the pretrained map's output on these tokens: a unit for corrections."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the tokens of each prompt: (tokens,) -> (prompts,)."""
        tokens = torch.bincount(self.row, minlength=self.prompts).clamp(min=1)
        return torch.zeros(self.prompts, device=values.device).index_add(0, self.row, values) / tokens

    def last(self, values: Tensor) -> Tensor:
        """The last token of each prompt: (tokens,) -> (prompts,)."""
        return values[torch.bincount(self.row, minlength=self.prompts).cumsum(0) - 1]

    def some(self, count: int, generator: torch.Generator) -> Self:
        """The states of `count` of the prompts (all, where there are fewer), drawn without replacement."""
        drawn = torch.randperm(self.prompts, generator=generator)[:count].to(self.row.device)
        place = torch.full((self.prompts,), -1, device=self.row.device)
        place[drawn] = torch.arange(len(drawn), device=self.row.device)
        kept = place[self.row] >= 0
        return self._replace(states=self.states[kept], row=place[self.row[kept]], prompts=len(drawn))


def gather(batches: list[tuple[Tensor, Tensor, Tensor]]) -> States:
    """States from batches of (a (batch, seq, ff), y (batch, seq, model), prompt (batch, seq) bool)."""
    states, rows, norms, count = [], [], [], 0
    for a, y, prompt in batches:
        states.append(a[prompt].float())
        norms.append(y[prompt].float().norm(dim=-1))
        rows.append(prompt.nonzero()[:, 0] + count)
        count += len(a)
    return States(torch.cat(states), torch.cat(rows), count, float(torch.cat(norms).mean()))
