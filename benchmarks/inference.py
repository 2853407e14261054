"""What an edited model costs to use: prefill and decoding, against the same model without its edits.

    python benchmarks/inference.py --edits 20 > benchmarks/results/speed/inference.json
    python benchmarks/inference.py --edits 5 --width 256 --layers 32 --repeats 9 \\
        --cases "memoir;wise, merge;wise, retrieve" > benchmarks/results/speed/inference_deep.json

One thread. The edits are made in few steps, since what they cost to use does not depend on how well they hold.
`edited` prompts are answered by a memory, `other` ones only pass its gate. `edited_over_unedited` is the median ratio of
pairs that are timed in turn. `inside` is of one call, so that it does not matter how fast the machine is at that moment:
what all that was added takes (the routing, the gates, the corrections), over what the pretrained model takes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from cases import add_cases, cases_of
from floor import wait
from shapes import Shape, add_shape, shape_of, shaped

from errata import EditedModel, methods
from errata.atlas.edits import edits, irrelevant
from errata.bench.provenance import surroundings
from errata.edit import Edit
from errata.memory import Edited

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "memoir": ("memoir", {"steps": 20, "tries": 1}),
    "wise, merge": ("wise", {"steps": 5}),
    "wise, retrieve": ("wise", {"steps": 5, "mode": "retrieve"}),
    "grace": ("grace", {"steps": 20}),
}
NEW = 16


class Added:
    """A clock of all that is added to a pretrained model: its edited modules without what they call, and its routing."""

    def __init__(self, model: EditedModel) -> None:
        self.seconds = 0.0
        self._clocked: list[tuple[Any, str]] = []
        for module in model.base.modules():
            if isinstance(module, Edited):
                self._count(module, "forward", 1)
                self._count(module.base, "forward", -1)
        self._count(model.routing, "observe", 1)

    def _count(self, owner: Any, name: str, sign: int) -> None:
        call = getattr(owner, name)

        @wraps(call)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = call(*args, **kwargs)
            self.seconds += sign * (time.perf_counter() - start)
            return found

        setattr(owner, name, clocked)
        self._clocked.append((owner, name))

    def stop(self) -> None:
        """Count no longer."""
        for owner, name in self._clocked:
            delattr(owner, name)

    def shared(self, start: float) -> float:
        """Seconds that were added since `start`, over all the others; the next ones are counted anew."""
        added, self.seconds = self.seconds, 0.0
        return added / (time.perf_counter() - start - added)


@torch.no_grad()
def seconds(
    model: EditedModel, added: Added, prompts: Sequence[str], lifted: bool
) -> tuple[float, float, float, float]:
    """Seconds of one prefill and, a token, of decoding; and what is added in each."""
    ids, attention = model.tokens.prompts(prompts, device=model.device)
    with model.lifted() if lifted else nullcontext():
        wait(model.device)
        added.seconds, start = 0.0, time.perf_counter()
        found = model.base(input_ids=ids, attention_mask=attention, use_cache=True)
        wait(model.device)
        prefill, prefill_added = time.perf_counter() - start, added.shared(start)
        cache, token = found.past_key_values, found.logits[:, -1:].argmax(-1)
        wait(model.device)
        start = time.perf_counter()
        for _ in range(NEW):
            attention = torch.cat([attention, torch.ones_like(token)], dim=1)
            found = model.base(input_ids=token, attention_mask=attention, past_key_values=cache, use_cache=True)
            cache, token = found.past_key_values, found.logits[:, -1:].argmax(-1)
        wait(model.device)
        return prefill, (time.perf_counter() - start) / NEW, prefill_added, added.shared(start)


def ratios(model: EditedModel, added: Added, prompts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Edited over unedited, medians of pairs; and what is added inside the edited one."""
    pairs = []
    for i in range(repeats + 3):
        order = (True, False) if i % 2 else (False, True)
        took = {lifted: seconds(model, added, prompts, lifted) for lifted in order}
        edited, unedited = took[False], took[True]
        pairs.append((edited[0] / unedited[0], edited[1] / unedited[1], *edited[2:]))
    prefill, decode, *inside = (round(statistics.median(values), 4) for values in zip(*pairs[3:], strict=True))
    return {"prefill": prefill, "decode": decode, "inside": dict(zip(("prefill", "decode"), inside, strict=True))}


def of(case: str, stream: Sequence[Edit], repeats: int, shape: Shape) -> list[dict[str, Any]]:
    """The rows of one method."""
    name, options = CASES[case]
    base, tokenizer = shaped(*shape)
    model = EditedModel(base, tokenizer, methods.make(name, **options), irrelevant=irrelevant(), expected=len(stream))
    model.edit_many(stream)
    added = Added(model)
    kinds = {"edited": [edit.prompt for edit in stream], "other": [probe.prompt for probe in irrelevant()]}
    return [
        {"case": case, "edits": len(stream), "prompts": kind, "batch": batch}
        | ratios(model, added, prompts[:batch], repeats)
        for kind, prompts in kinds.items()
        for batch in (1, 16)
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=31)
    add_shape(parser)
    add_cases(parser, CASES)
    told = parser.parse_args()
    shape, cases = shape_of(parser, told), cases_of(parser, told, CASES)
    torch.set_num_threads(1)
    stream = edits("validation")[: told.edits]
    rows = []
    for case in cases:
        rows += of(case, stream, told.repeats, shape)
        sys.stderr.write(f"{json.dumps(rows[-4:])}\n")
    base, _ = shaped(*shape)
    found = {
        "width": base.config.hidden_size, "layers": base.config.num_hidden_layers, "provenance": surroundings(base),
        "edited_over_unedited": rows,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
