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
    outputs: Tensor
    """(tokens, model) the pretrained map's outputs y."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the tokens of each prompt: (tokens,) -> (prompts,)."""
        tokens = self._tokens().clamp(min=1)
        return torch.zeros(self.prompts, device=values.device).index_add(0, self.row, values) / tokens

    def last(self, values: Tensor) -> Tensor:
        """The last token of each prompt: (tokens,) -> (prompts,)."""
        return values[self._tokens().cumsum(0) - 1]

    def _tokens(self) -> Tensor:
        """How many each prompt has: (prompts,) long. Without asking for the largest row, as `bincount` does."""
        return torch.zeros(self.prompts, dtype=torch.long, device=self.row.device).index_add(
            0, self.row, torch.ones_like(self.row)
        )

    def largest(self, values: Tensor) -> Tensor:
        """The largest over the tokens of each prompt: (tokens,) -> (prompts,)."""
        return values.new_zeros(self.prompts).scatter_reduce(0, self.row, values, "amax", include_self=False)

    def only(self, prompts: Tensor) -> Self:
        """The states of these prompts (indices, in any order), in the order in which they are here."""
        wanted = torch.zeros(self.prompts, dtype=torch.bool, device=self.row.device)
        wanted[prompts.to(wanted.device)] = True
        kept = wanted[self.row]
        place = wanted.cumsum(0) - 1
        states, outputs, row = self.states[kept], self.outputs[kept], place[self.row[kept]]
        return self._replace(states=states, outputs=outputs, row=row, prompts=int(wanted.sum()))

    def some(self, count: int, generator: torch.Generator) -> Self:
        """The states of `count` of the prompts (all, where there are fewer), drawn without replacement."""
        return self.only(torch.randperm(self.prompts, generator=generator)[:count])


def gather(batches: list[tuple[Tensor, Tensor, Tensor]]) -> States:
    """States from batches of (a (batch, seq, ff), y (batch, seq, model), prompt (batch, seq) bool)."""
    states, outputs, rows, count = [], [], [], 0
    for a, y, prompt in batches:
        states.append(a[prompt].float())
        outputs.append(y[prompt].float())
        rows.append(prompt.nonzero()[:, 0] + count)
        count += len(a)
    y = torch.cat(outputs)
    return States(torch.cat(states), torch.cat(rows), count, float(y.norm(dim=-1).mean()), y)
