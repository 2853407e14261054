"""What recording costs: the share of an edit's time that goes to the ledger, and to verifying the edit.

    python benchmarks/ledger.py --edits 50 > benchmarks/results/speed/ledger.json

By the processor, on one thread; recording also by the wall, which holds the waiting for the disk and for other processes.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, Store, __version__, load
from errata.atlas.edits import edits, irrelevant
from errata.gate import Gate, Watch
from errata.ledger import Ledger


def timed(owner: Any, name: str, spent: dict[str, float], kind: str, clock: Callable[[], float]) -> None:
    """Add the time of every call of a method to `spent[kind]`."""
    real: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return real(*args, **kwargs)
        finally:
            spent[kind] += clock() - start

    setattr(owner, name, call)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", default="memoir")
    parser.add_argument("--edits", type=int, default=50)
    told = parser.parse_args()
    spent: dict[str, float] = defaultdict(float)
    torch.set_num_threads(1)
    timed(EditedModel, "edit_batch", spent, "editing", time.process_time)
    timed(Watch, "before", spent, "verifying", time.process_time)
    timed(Watch, "after", spent, "verifying", time.process_time)
    timed(Ledger, "append", spent, "recording", time.process_time)
    timed(Ledger, "append", spent, "recording_by_the_wall", time.perf_counter)
    timed(Store, "checkpoint", spent, "checkpoints", time.process_time)
    base, tokenizer = load("atlas")
    model = EditedModel(base, tokenizer, told.method, irrelevant=irrelevant())
    with (
        tempfile.TemporaryDirectory() as name,
        Store(Path(name) / "store", model, gate=Gate(min_reliability=0)) as store,
    ):
        for i, edit in enumerate(edits("validation")[: told.edits], start=1):
            store.edit(edit)
            if i % 50 == 0 or i == told.edits:
                store.checkpoint()
    row = {
        "method": told.method,
        "model": "atlas",
        "edits": told.edits,
        "errata": __version__,
        "torch": torch.__version__,
    }
    seconds = {f"{kind}_s": round(value / told.edits, 5) for kind, value in sorted(spent.items())}
    share = {"recording_share_of_editing": round(spent["recording"] / spent["editing"], 4)}
    sys.stdout.write(json.dumps(row | seconds | share, indent=2) + "\n")


if __name__ == "__main__":
    main()
