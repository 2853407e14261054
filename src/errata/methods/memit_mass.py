"""MEMIT-MASS: all edits of a stream in one solve, the upper reference of sequential MEMIT.

Meng, Sen Sharma, Andonian, Belinkov, Bau, "Mass-Editing Memory in a Transformer", ICLR 2023, arXiv 2210.07229; so called
by Wang et al. (WISE), NeurIPS 2024, arXiv 2405.14768.

Not a lifelong method. Every value is found on the unedited model, and whenever edits come, all that are in force are
written into the unedited model together. Where one layer takes them, their keys are kept; where several do, the upper ones
read all keys anew, and the cost of an edit grows with their number: give them in one batch where only the end counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from errata.edit import Edit
from errata.fitting import Trace, fit
from errata.notes import Notes
from errata.objective import target_nll
from errata.sites import Site
from errata.spread import SpreadEdit, weighted

if TYPE_CHECKING:
    from errata.model import EditedModel


@dataclass
class MemitMass(SpreadEdit):
    """Ridge least squares over several layers, all edits jointly."""

    name: ClassVar[str] = "memit_mass"
    waives: ClassVar[dict[str, str]] = {
        "unrelated prompts": "the weights change for every prompt: there is no gate",
    }
    search: ClassVar[dict[str, tuple[object, ...]]] = {"steps": (25, 100), "ridge": (0.05, 0.5)}

    ridge: float = 0.05
    """lambda in multiples of the number of features. The released 15000 is about 1 on LLaMA and GPT-J; with that, a single
    layer makes about half of an edit, which is right where five share it."""
    strength: float | None = None
    """lambda itself [released: 15000; 20000 on GPT2-XL]. By default `ridge` gives it."""

    def prepare(self, model: "EditedModel") -> None:
        """No change, and no values, at first."""
        super().prepare(model)
        site = self.memories(model)[-1].site
        empty = {
            "keys": torch.zeros(0, site.in_features, device=model.device),
            "deltas": torch.zeros(0, site.out_features, device=model.device),
            "owners": torch.zeros(0, dtype=torch.long, device=model.device),
            "at_subject": torch.zeros(0, dtype=torch.bool, device=model.device),
        }
        model.install(f"{self.name}.values", Notes(site, empty))

    def first(self, model: "EditedModel", site: Site) -> Tensor:
        """(lambda K0)^-1."""
        return self.inverse(model, site, self.strength or self.ridge * site.in_features)

    def edit(self, model: "EditedModel", edits: Sequence[Edit]) -> Trace:
        """Find the values of the new facts on the unedited model, then write those of all edits in force anew."""
        memories = self.memories(model)
        for memory in memories:
            memory.clear()
        found = [self.located(model, memories[-1], edit, target_nll, fit) for edit in edits]
        notes = model.memories[f"{self.name}.values"]
        assert isinstance(notes, Notes)
        known = len(memories) == 1 and len(notes["keys"]) == len(notes["owners"])  # edits of older files have no keys
        first = len(model.history) - len(edits)
        owners = torch.cat([notes["owners"], torch.arange(first, len(model.history), device=model.device)])
        latest = {edit.prompt: i for i, edit in enumerate(model.history)}
        kept = torch.tensor([latest[model.history[i].prompt] == i for i in owners.tolist()], device=model.device)
        new = {
            "deltas": torch.stack([value.delta for _, value in found]),
            "at_subject": torch.tensor([len(fact.places) > fact.contexts for fact, _ in found], device=model.device),
        }
        if known:
            new["keys"] = torch.stack([weighted(value.keys) for _, value in found])
        held = {name: torch.cat([notes[name], rows]) for name, rows in new.items()} | {"owners": owners}
        notes.put({name: rows[kept] for name, rows in held.items()})
        if known:
            self.write(model, [], notes["deltas"], keys=list(notes["keys"][:, None]))
            return found[-1][1].trace
        in_force = zip(notes["owners"].tolist(), notes["at_subject"].tolist(), strict=True)
        facts = [self.fact(model, model.history[i], subject=subject) for i, subject in in_force]
        self.write(model, facts, notes["deltas"])
        return found[-1][1].trace
