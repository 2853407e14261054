"""What closes WISE's gate as edits accumulate: edits that hold in the side memory, and edits that the gate lets through.

    python benchmarks/gate.py benchmarks/results/diagnoses --edits 200

On validation edits of the atlas, as the first of a thousand, with the threshold kept within reach of the edits that were
just trained (`reach=trained`) and of sampled ones too. At each mark all edits so far are asked as in use, and with the side
memory always on. `gate.json` is written.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, load
from errata.analysis.findings import Findings, made_on
from errata.atlas.edits import edits, irrelevant
from errata.edit import Edit
from errata.methods.wise import Wise
from errata.metrics import HEADLINE, Reference, immediate, mean, measure
from errata.side_memory import SideMemory

EXPECTED = 1000
"""Length of the stream that the edits are the first of."""


def share(model: EditedModel, some: list[Edit]) -> float:
    """Of these edits, those that are answered with their targets."""
    return mean(hit[HEADLINE] for hit in immediate(model, some)) or 0.0


def opened(model: EditedModel, some: list[Edit]) -> float:
    """The same with the side memory always on."""
    (memory,) = model.memories.values()
    assert isinstance(memory, SideMemory)
    held = memory.epsilon
    memory.put({"epsilon": torch.zeros_like(held)})
    try:
        return share(model, some)
    finally:
        memory.put({"epsilon": held})


def curve(reach: str, stream: list[Edit], every: int) -> list[dict[str, Any]]:
    """What holds at each mark, and the three scores at the last."""
    base, tokenizer = load("atlas")
    model = EditedModel(base, tokenizer, Wise(reach=reach), irrelevant=irrelevant(), expected=EXPECTED)
    rows: list[dict[str, Any]] = []
    for i, edit in enumerate(stream, start=1):
        model.edit(edit)
        if i % every == 0:
            (memory,) = model.memories.values()
            rows.append({
                "edits": i, "in_use": share(model, stream[:i]), "always_on": opened(model, stream[:i]),
                "epsilon": float(torch.as_tensor(memory.epsilon)[-1]),
            })  # fmt: skip
            sys.stderr.write(f"{reach} {rows[-1]}\n")
    return [*rows, measure(model, stream, Reference()).scores[HEADLINE]._asdict()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--reach", default="trained,sampled")
    told = parser.parse_args()
    torch.set_num_threads(1)
    stream = edits("validation")[: told.edits]
    found = {reach: curve(reach, stream, told.every) for reach in told.reach.split(",")}
    asked = {"method": "wise", "model": "atlas", "data": "atlas:validation", "edits": told.edits, "expected": EXPECTED}
    base, _ = load("atlas")
    Findings("gate", asked, found, made_on(base, stream)).write(told.output)


if __name__ == "__main__":
    main()
