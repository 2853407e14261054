"""Whether the cost of an edit grows with the number of edits before it: edit 10 against edit 1,000 and edit 10,000.

    python benchmarks/stream.py > benchmarks/results/speed/stream.json

The memories are filled with made-up edits rather than edited so often. Then the same edit is made, asked for and taken back
in every one of them in turn, one thread, seconds of the processor. Another edit goes before it, which makes room for more
(`errata.growing`): a stream does so once in hundreds of edits, and here going back would have it done every time. Memory is
the peak of the process over a second edit, above what it held before, for the same reason.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import add_cases, cases_of

from errata import EditedModel, load, methods, residual_memory
from errata.atlas.edits import edits, irrelevant
from errata.bench.claims import as_published
from errata.bench.provenance import surroundings
from errata.edit import Edit
from errata.masks import pack
from errata.methods.memoir import Memoir

ONE_SHARD = {"shard_edits": 10**6}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "memoir": ("memoir", {}),
    "grace": ("grace", {}),
    "wise": ("wise", ONE_SHARD),
    "wise, as published": ("wise", {**as_published("wise"), **ONE_SHARD}),
}
ASKED = 20
"""Times that the prompt is asked in one turn."""


def made_up(count: int) -> list[Edit]:
    """Edits of nobody: those of the atlas, with a number behind the subject."""
    real = edits("validation")[100:]
    found = []
    for i in range(count):
        edit = real[i % len(real)]
        subject = f"{edit.subject} {10_000 + i}"
        prompt = edit.prompt.replace(str(edit.subject), subject)
        found.append(replace(edit, prompt=prompt, subject=subject, rephrases=(), locality=()))
    return found


def fill(model: EditedModel, count: int) -> None:
    """Give the one memory of a model so many edits, of random keys or masks."""
    ((name, memory),) = model.memories.items()
    held, rng, owners = memory.tensors(), torch.Generator().manual_seed(0), torch.arange(count)
    width, out = memory.site.in_features, memory.site.out_features
    if name == "memoir":
        active = round(4096 / 14336 * width)
        places = torch.rand(len(held["masks"]), count, width, generator=rng).topk(active).indices
        mask = torch.zeros(len(places), count, width, dtype=torch.bool).scatter_(-1, places, value=True)
        rounds = owners // residual_memory.held(Memoir.capacity or count, memory.weights())
        closed = torch.randn(int(rounds[-1]), out, width, generator=rng)
        memory.put({
            "masks": pack(mask), "distinct": pack(mask), "owners": owners, "rounds": rounds, "closed": closed
        })  # fmt: skip
    elif name == "grace":
        memory.put({
            "keys": torch.randn(count, width, generator=rng), "values": torch.randn(count, out, generator=rng),
            "epsilon": torch.ones(count), "labels": torch.randint(4096, (count, 4), generator=rng), "owners": owners,
        })  # fmt: skip
    else:
        memory.make_room(count + 1, 2, None)  # type: ignore[operator]
        memory.put({"edits": torch.tensor(count), "homes": torch.zeros(count, dtype=torch.long)})
        memory.put({"epsilon": torch.ones(1), "margin": torch.ones(1)})
    model.history, model.batches = made_up(count), [1] * count


def full(case: str, count: int) -> EditedModel:
    """A model of the atlas that holds so many edits."""
    base, tokenizer = load("atlas")
    method, options = CASES[case]
    model = EditedModel(base, tokenizer, methods.make(method, **options), irrelevant=irrelevant())
    fill(model, count)
    return model


def timed(call: Callable[[], Any]) -> float:
    """Seconds of the processor that a call took."""
    start = time.process_time()
    call()
    return time.process_time() - start


def tensor_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    alive = [each.untyped_storage() for each in gc.get_objects() if type(each) in {torch.Tensor, torch.nn.Parameter}]
    return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes by which a call raised the peak of the process above what it held, in Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begins a new peak
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


class Turn:
    """One model with so many edits, that is edited and brought back again and again."""

    def __init__(self, case: str, count: int, edit: Edit) -> None:
        self.model, self.edit, self.next = full(case, count), edit, edits("validation")[1]
        self.ids = self.model.tokens.prompts([edit.prompt])
        self.edit_s: list[float] = []
        self.ask_s: list[float] = []
        self.memory: dict[str, int] = {}

    @torch.no_grad()
    def ask(self) -> None:
        """The prompt, `ASKED` times."""
        for _ in range(ASKED):
            self.model(input_ids=self.ids[0], attention_mask=self.ids[1])

    def take(self, *, weigh: bool = False) -> None:
        """The edit, then the prompt; with `weigh` their memory rather than their time is measured."""
        model = self.model
        held, history, batches = model._tensors(), list(model.history), list(model.batches)
        if weigh:
            del held
            model.edit(self.edit)
            stored, alive = model.nbytes(), tensor_bytes()
            self.memory = {"nbytes": stored, "peak_of_edit": peak_bytes(lambda: model.edit(self.next))}
            self.memory |= {"stored_by_edit": model.nbytes() - stored, "peak_of_asking": peak_bytes(self.ask)}
            self.memory["alive_after_edit"] = tensor_bytes() - alive
            return
        model.edit(self.next)
        self.edit_s.append(timed(lambda: model.edit(self.edit)))
        self.ask_s.append(timed(self.ask) / ASKED)
        model._put_tensors(held)
        model.history, model.batches = history, batches


def measured(case: str, counts: Sequence[int], repeats: int) -> dict[str, Any]:
    """The figures of one case."""
    turns = [Turn(case, count, edits("validation")[0]) for count in counts]
    for i in range(repeats + 1):
        for turn in turns if i % 2 else reversed(turns):
            turn.take()
    for turn in turns:
        turn.take(weigh=True)
    first = turns[0]
    rows = [
        {
            "edits_before": count, "edit_s": round(statistics.median(turn.edit_s[1:]), 4),
            "asking_ms": round(1e3 * statistics.median(turn.ask_s[1:]), 3),
            "edit_over_first": round(_ratio(turn.edit_s, first.edit_s), 3),
            "asking_over_first": round(_ratio(turn.ask_s, first.ask_s), 3), **turn.memory,
        }
        for count, turn in zip(counts, turns, strict=True)
    ]  # fmt: skip
    return {"case": case, "method": CASES[case][0], "options": CASES[case][1], "repeats": repeats, "rows": rows}


def _ratio(these: Sequence[float], first: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(these[1:], first[1:], strict=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_cases(parser, CASES)
    parser.add_argument("--edits", default="10,1000,10000")
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    cases = cases_of(parser, told, CASES)
    torch.set_num_threads(1)
    counts = [int(count) for count in told.edits.split(",")]
    rows = []
    for case in cases:
        rows.append(measured(case, counts, told.repeats))
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    base, _ = load("atlas")
    sys.stdout.write(json.dumps({"provenance": surroundings(base), "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
