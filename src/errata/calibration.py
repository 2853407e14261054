"""Calibration: the threshold of a gate, as low as irrelevant prompts allow that it was not trained on.

What counts against a threshold is either every irrelevant prompt that reaches it, or only those whose answer the memory
would change: a gate that opens without consequence does no harm.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.contrast import first_tokens
from errata.memory import add
from errata.side_memory import SideMemory
from errata.states import States

if TYPE_CHECKING:
    from errata.model import EditedModel

SPILLS = ("answers", "rows")
AT_ONCE = 32
"""Irrelevant prompts that are asked at once, in order of activation, until too many answers have changed."""
SLACK = 0.88
"""The threshold that calibration aims at, as a multiple of the least activation among the edits [released act_ratio]."""
GIVEN_UP = 0.1
"""The share of edits that may be out of reach of a threshold for the sake of irrelevant prompts, whatever these say: a
few outliers among few irrelevant prompts must not close a memory."""
ENOUGH = 100
"""Edits of a merged side memory that its threshold is calibrated by."""
OPEN = 0.2
"""The share of irrelevant prompts that may reach the threshold at most, even where no answer changes."""


def taught(irrelevant: States, count: int, generator: torch.Generator) -> States:
    """Irrelevant prompts to train on, drawn from every other one."""
    drawn = torch.randperm((irrelevant.prompts + 1) // 2, generator=generator)
    return irrelevant.only(2 * drawn[:count])


def above_irrelevant(noise: Tensor, spill: float, cushion: float) -> Tensor:
    """Thresholds (views,) on how near a prompt is to an edit, 1 at the edit itself, in each of several views.

    `noise` (prompts, views) is how near irrelevant prompts come. The share `spill` of them reaches one or another of the
    lowest thresholds; what is returned is `cushion` of the way from there to the edits.
    """
    lowest = torch.quantile(noise, 1 - spill / noise.shape[1], dim=0)
    return lowest + cushion * (1 - lowest)


def thresholds(
    model: "EditedModel", memory: SideMemory, d_in: Tensor, act_ratio: float | None, spill: float, spills: str
) -> dict[str, Tensor]:
    """epsilon of each side memory, and the margin by which the least active of these edits is above that of the last.

    `d_in` (edits,) are activations of edits of the side memory that is being written. With `act_ratio`, epsilon is that
    share of the least of them so far; otherwise it is calibrated by `threshold`, of all side memories in a new round.
    Those that have been merged, whose epsilon is nan, are asked for what their edits activate them.
    """
    current = memory.current
    held, margin, share = memory.epsilon[:current], memory.margin[:current], act_ratio or SLACK
    merged = {j: _activations(model, memory, j) for j in held.isnan().nonzero()[:, 0].tolist()}
    for j, d in merged.items():
        held = held.index_fill(0, torch.tensor(j, device=held.device), float(d.min()) * share)
    if act_ratio is not None:
        epsilon = torch.cat([held, torch.cat([memory.epsilon[current:], d_in * act_ratio]).amin(0, keepdim=True)])
    else:
        older = 0 if int(memory.shards) == int(memory.edits) == 1 else current
        wanted = torch.cat([held, d_in.amin(0, keepdim=True) * SLACK])
        fresh = {
            j: threshold(model, memory, memory.shifts[j], wanted[j], spill, spills) for j in range(older, current + 1)
        }
        for j, d in (merged | {current: d_in}).items():
            fresh[j] = fresh[j].clamp(max=d.float().quantile(GIVEN_UP))
        epsilon = torch.cat([held[:older], torch.stack(list(fresh.values()))])
    for j, d in merged.items():
        margin = margin.index_fill(0, torch.tensor(j, device=margin.device), float(d.min() / epsilon[j]))
    return {"epsilon": epsilon, "margin": torch.cat([margin, (d_in.min() / epsilon[-1])[None]])}


def _activations(model: "EditedModel", memory: SideMemory, which: int) -> Tensor:
    """What the edits of a side memory activate it, or as many of them as are `ENOUGH`: (edits,)."""
    homes, shift = memory.homes.tolist(), memory.shifts[which]
    prompts = [edit.prompt for edit, home in zip(model.history, homes, strict=False) if home == which]
    read = model.read(memory, prompts[:: -(-len(prompts) // ENOUGH)])
    return torch.cat([memory.activation(F.linear(a.to(shift.dtype), shift), y) for a, y, _ in read])


def threshold(
    model: "EditedModel", memory: SideMemory, shift: Tensor, wanted: Tensor, spill: float, spills: str
) -> Tensor:
    """epsilon from what irrelevant prompts allow that were not trained on.

    `rows`: the least that the share `spill` of them reaches. `answers`: what is `wanted`, but at least what the share
    `spill` of them reaches with another answer, and at most what `rows` says.
    """
    irrelevant = model.irrelevant_states(memory)
    held_out = torch.arange(min(1, irrelevant.prompts - 1), irrelevant.prompts, 2)
    d, order = memory.activations(irrelevant.only(held_out), shift).sort(descending=True)
    allowed = int(spill * len(d))
    d = d * (1 + 1e-4)
    if spills == "rows":
        return d[min(allowed, len(d) - 1)]
    prompts = [model.sampling.irrelevant[i].prompt for i in held_out.tolist()]
    if len(memory.answers) == 0:
        with model.lifted():
            memory.answers = first_tokens(model, prompts)
    most = int(OPEN * len(order))
    above = min(int((d > wanted).sum()), most + 1)  # below what is wanted, no answer matters
    first = min(_first_spilled(model, memory, shift, prompts, order[:above], allowed), most)
    return wanted.clamp(min=d[first], max=d[min(allowed, len(d) - 1)])


def _first_spilled(
    model: "EditedModel", memory: SideMemory, shift: Tensor, prompts: Sequence[str], order: Tensor, allowed: int
) -> int:
    """In order of activation, the first whose answer changes when `allowed` have changed before it, or how many."""
    if len(order) <= allowed:
        return len(order)
    spilled = 0
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        said = _said(model, memory, shift, [prompts[i] for i in part.tolist()])
        counts = spilled + (said != memory.answers[part]).cumsum(0)
        beyond = (counts > allowed).nonzero()
        if len(beyond):
            return start + int(beyond[0])
        spilled = int(counts[-1])
    return len(order)


@torch.no_grad()
def _said(model: "EditedModel", memory: SideMemory, shift: Tensor, prompts: Sequence[str]) -> Tensor:
    """The first token of the answer to each prompt where this shift is always on: (prompts,)."""
    rows = model.tokens.rows_of_ids([(model.tokens.prompt(prompt), []) for prompt in prompts], model.device)
    last = rows.prompt & ~F.pad(rows.prompt[:, 1:], (0, 1))
    suffix = model.suffix(memory, rows, wanted=last)
    return suffix.logits(lambda a, y: add(y, F.linear(a.to(shift.dtype), shift))).argmax(-1)
