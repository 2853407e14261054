"""What an edited model costs to use: prefill and decoding, against the same model without its edits.

    python benchmarks/inference.py --edits 20 > benchmarks/results/speed/inference.json
    python benchmarks/inference.py --edits 5 --layers 32 --repeats 9

One thread. The edits are made in few steps, since what they cost to use does not depend on how well they hold. The
two are timed in turn and the median of the ratios is taken; `edited` prompts are answered by a memory, `other` ones only
pass its gate.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from shapes import Shape, add_shape, shape_of, shaped

from errata import EditedModel, methods
from errata.atlas.edits import edits, irrelevant
from errata.bench.provenance import surroundings
from errata.edit import Edit

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "memoir": ("memoir", {"steps": 20, "tries": 1}),
    "wise, merge": ("wise", {"steps": 5}),
    "wise, retrieve": ("wise", {"steps": 5, "mode": "retrieve"}),
    "grace": ("grace", {"steps": 20}),
}
NEW = 16


@torch.no_grad()
def seconds(model: EditedModel, prompts: Sequence[str], lifted: bool) -> tuple[float, float]:
    """Seconds of one prefill and, a token, of decoding."""
    ids, attention = model.tokens.prompts(prompts, device=model.device)
    with model.lifted() if lifted else nullcontext():
        start = time.perf_counter()
        found = model.base(input_ids=ids, attention_mask=attention, use_cache=True)
        prefill = time.perf_counter() - start
        cache, token = found.past_key_values, found.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(NEW):
            attention = torch.cat([attention, torch.ones_like(token)], dim=1)
            found = model.base(input_ids=token, attention_mask=attention, past_key_values=cache, use_cache=True)
            cache, token = found.past_key_values, found.logits[:, -1:].argmax(-1)
        return prefill, (time.perf_counter() - start) / NEW


def ratios(model: EditedModel, prompts: Sequence[str], repeats: int) -> dict[str, float]:
    """Edited over unedited, medians of pairs."""
    pairs = []
    for i in range(repeats + 3):
        order = (True, False) if i % 2 else (False, True)
        took = {lifted: seconds(model, prompts, lifted) for lifted in order}
        pairs.append((took[False][0] / took[True][0], took[False][1] / took[True][1]))
    return {
        "prefill": round(statistics.median(p for p, _ in pairs[3:]), 3),
        "decode": round(statistics.median(d for _, d in pairs[3:]), 3),
    }


def of(case: str, stream: Sequence[Edit], repeats: int, shape: Shape) -> list[dict[str, Any]]:
    """The rows of one method."""
    name, options = CASES[case]
    base, tokenizer = shaped(*shape)
    model = EditedModel(base, tokenizer, methods.make(name, **options), irrelevant=irrelevant(), expected=len(stream))
    model.edit_many(stream)
    kinds = {"edited": [edit.prompt for edit in stream], "other": [probe.prompt for probe in irrelevant()]}
    return [
        {"case": case, "edits": len(stream), "prompts": kind, "batch": batch} | ratios(model, prompts[:batch], repeats)
        for kind, prompts in kinds.items()
        for batch in (1, 16)
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=31)
    add_shape(parser)
    told = parser.parse_args()
    shape = shape_of(parser, told)
    torch.set_num_threads(1)
    stream = edits("validation")[: told.edits]
    rows = []
    for case in CASES:
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
