"""Worker: what carries out cells of a plan file in a process of its own, which may be on another machine.

It loads one model, once. What it says is JSON, one object a text: `{"row": ...}` for a row as it is found, `{"refused":
..., "exit_code": ...}` for what cannot be done. It knows nothing of results files, and nothing of Ray.
"""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import errata
from errata.bench import provenance, record
from errata.bench.plan import model_name
from errata.bench.plan_file import PlanFile, Stream
from errata.bench.stream import Bench
from errata.errors import ErrataError
from errata.metrics import Reference

if TYPE_CHECKING:
    from errata.bench.plan import Plan


class Worker:
    """The cells of one model of a plan, one at a time."""

    def __init__(
        self, file: PlanFile, streams: Sequence[Stream], model: str, *, device: str | None, dtype: str, threads: int
    ) -> None:
        """`streams` are those of the file, which need not be here; `model` is loaded when it is first asked for."""
        self.file, self.streams, self.model = file, streams, model
        self.device, self.dtype, self.threads = device, dtype, threads
        self.plans: list[Plan] = []
        self.reference = Reference()

    def describe(self) -> str:
        """Load the model, and say who and where this is, and what rows of this model are known by."""
        import torch

        from errata import loading

        torch.set_num_threads(self.threads)
        try:
            base, tokenizer = loading.load(self.model, dtype=self.dtype, device=self.device)
            self.plans = list(self.file.plans(base, tokenizer, model_name(self.model), self.streams))
        except ErrataError as error:
            return _refusal(error)
        who = {"errata": errata.__version__, "pid": os.getpid(), "machine": platform.node()}
        return json.dumps({"made_of": provenance.of_base(base), **who})

    def cell(self, index: int, known: Sequence[str]) -> Iterator[str]:
        """The rows of one cell that are not `known`, each as it is found."""
        rows = [record.from_record(json.loads(line)) for line in known]
        bench = Bench(self.plans[index], {row.key: row for row in rows}, reference=self.reference)
        try:
            for row in bench.found():
                yield json.dumps({"row": row.to_record()}, ensure_ascii=False, allow_nan=False, default=str)
        except ErrataError as error:
            yield _refusal(error)


def _refusal(error: ErrataError) -> str:
    return json.dumps({"refused": str(error), "exit_code": error.exit_code})
