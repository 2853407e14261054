"""Locality next door: what becomes of questions that share an edit's words, or its subject, and that it must leave alone.

    python benchmarks/neighbours.py benchmarks/results/diagnoses --model ../shared/data/models/facts-8m \\
        --data zsre:../shared/data/zsre/zsre_edit_1037.json --irrelevant ../shared/data/zsre/irrelevant_prompts_994.json

ZsRE scores locality by questions that have nothing to do with an edit. Here each edit's prompt is also asked about three
other subjects, those of rows that are not edited; and the prompts of such rows about the edit's own subject, unless the
unedited model begins its answer as to the edit's prompt, for then they may mean the same. Gates are set by the irrelevant
prompts as always. `neighbours.json` is written after each method; methods that it holds are not measured again.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import add_cases, cases_of

from errata import EditedModel, load, methods
from errata.analysis.findings import Findings, found_before, made_on
from errata.contrast import contrasts
from errata.data import load as read
from errata.data import read_irrelevant
from errata.edit import LOCALITY_KINDS, Edit, Probe
from errata.errors import EditFailed, ErrataError
from errata.metrics import HEADLINE, measure

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "memoir": ("memoir", {}),
    "memoir, contrast=0": ("memoir", {"contrast": 0.0}),
    "memoir, relation=0": ("memoir", {"relation": 0.0}),
    "neuraldb": ("neuraldb", {}),
    "ft_l": ("ft_l", {}),
    "grace": ("grace", {}),
    "wise": ("wise", {}),
    "lemoe": ("lemoe", {}),
    "lemoe, contrast=0.5": ("lemoe", {"contrast": 0.5}),
    "neuraldb, contrast=0.5": ("neuraldb", {"contrast": 0.5}),
}
OTHERS = 3
"""Rows that are not edited, from which an edit's neighbours of a kind are made."""


def surrounded(model: EditedModel, edit: Edit, pool: Sequence[Edit], seed: int) -> Edit:
    """The edit with its neighbours as locality probes, beside those far away."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    others = [pool[j] for j in order if pool[j].subject not in (None, edit.subject)][:OTHERS]
    far = [probe for probe in edit.locality if probe.kind == "far"]
    asked = [edit.prompt.replace(str(edit.subject), str(other.subject)) for other in others] if edit.subject else []
    relation = [Probe(prompt, kind="same_relation") for prompt in asked]
    subject = [Probe(prompt, kind="same_subject") for prompt in contrasts(model, edit, others)]
    return replace(edit, locality=(*far, *relation, *subject))


def row(
    case: str, base: Any, tokenizer: Any, irrelevant: Sequence[Probe], stream: Sequence[Edit], pool: Sequence[Edit]
) -> dict[str, Any]:
    """The scores of one case. The base is as it was on return."""
    name, options = CASES[case]
    model = EditedModel(base, tokenizer, methods.make(name, **options), irrelevant=irrelevant, expected=len(stream))
    asked = [surrounded(model, edit, pool, i) for i, edit in enumerate(stream)]
    failed = 0
    for edit in stream:
        try:
            model.edit(edit)
        except EditFailed:
            failed += 1
    found = measure(model, asked)
    model.detach()
    kinds = [probe.kind for edit in asked for probe in edit.locality]
    return {
        "reliability": found.scores[HEADLINE].reliability, "generalization": found.scores[HEADLINE].generalization,
        "failed": failed, "unchanged": found.locality_by_kind,
        "prompts": {kind: kinds.count(kind) for kind in LOCALITY_KINDS},
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--data", default="atlas")
    parser.add_argument("--irrelevant")
    parser.add_argument("--edits", type=int, default=100)
    add_cases(parser, CASES)
    told = parser.parse_args()
    cases = cases_of(parser, told, CASES)
    torch.set_num_threads(1)
    asked = {
        "model": Path(told.model).name, "data": Path(told.data).name,
        "irrelevant": told.irrelevant and Path(told.irrelevant).name, "edits": told.edits, "others": OTHERS,
    }  # fmt: skip
    try:
        found = found_before(told.output, "neighbours", asked)
        data, (base, tokenizer) = read(told.data), load(told.model)
        irrelevant = read_irrelevant(told.irrelevant) if told.irrelevant else data.irrelevant
    except ErrataError as error:
        parser.error(str(error))
    stream, pool = data.edits[: told.edits], data.edits[told.edits :]
    if told.edits < 1 or len(pool) < OTHERS:
        parser.error(f"--edits {told.edits}: at least 1, and {OTHERS} of the {len(data.edits)} rows must be left over")
    for case in cases:
        if case not in found:
            found[case] = row(case, base, tokenizer, irrelevant, stream, pool)
            sys.stderr.write(f"{case} {found[case]}\n")
            Findings("neighbours", asked, found, made_on(base, stream)).write(told.output)


if __name__ == "__main__":
    main()
