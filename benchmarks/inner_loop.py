"""What the suffix run saves: the same edits with it and with a plain loop that runs the whole model at every step.

    python benchmarks/inner_loop.py --edits 5 > benchmarks/results/speed/inner_loop.json
    python benchmarks/inner_loop.py --edits 2 --width 1024 --cases "wise, published;memoir;ft_l;grace"
    python benchmarks/inner_loop.py --edits 2 --cases all --no-plain > benchmarks/results/speed/floor.json

Each edit is made twice, in turn, on the atlas: the losses must be the same numbers. One thread. The floor (floor.py) is the
time that the edit's matrix products, as counted while it runs on suffixes, take at the least on this machine; beside it
stands the time of those very products, of their own shapes, one after another and nothing else. `--no-plain` leaves the
plain loop out. Before the edits that are timed, one is made that sets up.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from cases import add_cases, cases_of
from floor import Ceilings, Products, ceilings
from shapes import Shape, add_shape, shape_of, shaped
from torch import Tensor

import errata.model
from errata import EditedModel, methods
from errata.atlas.edits import edits, irrelevant
from errata.bench.provenance import surroundings
from errata.fitting import Trace
from errata.suffix import Correction, Suffix, _forward

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wise, published": ("wise", {"preset": "published", "loss": 0.0}),
    "wise": ("wise", {}),
    "memoir": ("memoir", {}),
    "memoir, released": ("memoir", {"optimizer": "sgd", "lr": 1.0, "clip": 1.0, "end": False, "steps": 70}),
    "grace": ("grace", {}),
    "ft_l": ("ft_l", {}),
    "rome": ("rome", {}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {"hypernetwork": "testbeds/mend-atlas"} if name == "mend" else {})
    for name in methods.names()
    if name not in CASES
}
"""The other methods, as they are by default."""


class Plain(Suffix):
    """The loop that one would write: all layers, all positions, all logits, at every step."""

    def logits(self, correction: Correction | None = None) -> Tensor:
        """Logits (wanted, vocabulary), picked from all of them."""
        with ExitStack() as stack:
            if correction is not None:
                stack.enter_context(_forward(self._memory, correction))
            stack.enter_context(self._routing.prompt_is(self._prompt))
            logits: Tensor = self._model(**self._inputs).logits
            return logits.flatten(0, 1)[self._wanted]


class Made(NamedTuple):
    """What a stream of edits took, a value an edit."""

    seconds: list[float]
    traces: list[Trace]
    products: list[Products]


def made(
    name: str, options: dict[str, Any], count: int, shape: Shape, *, plain: bool = False, counting: bool = False
) -> Made:
    """Edits, but for the first, which sets up; their products when counting."""
    base, tokenizer = shaped(*shape)
    errata.model.Suffix = Plain if plain else Suffix  # type: ignore[misc]
    model = EditedModel(base, tokenizer, methods.make(name, **options), irrelevant=irrelevant(), expected=count)
    editor, real = model.editor, type(model.editor).edit
    found = Made([], [], [])

    def edit(*args: Any) -> Trace:
        found.traces.append(real(editor, *args))
        return found.traces[-1]

    editor.edit = edit  # type: ignore[method-assign]
    for one in edits("validation")[: count + 1]:
        products = Products()
        start = time.perf_counter()
        with products if counting else nullcontext():
            model.edit(one)
        found.seconds.append(time.perf_counter() - start)
        found.products.append(products)
    return Made(*(values[1:] for values in found))


def row_of(case: str, count: int, shape: Shape, most: Ceilings, *, plain: bool) -> dict[str, Any]:
    """One case, as a row."""
    name, options = (CASES | OTHERS)[case]
    counted = made(name, options, count, shape, counting=True).products
    fast = made(name, options, count, shape)
    seconds = statistics.median(fast.seconds)
    floor = statistics.median(one.floor(most) for one in counted)
    bare = statistics.median(one.seconds(torch.device("cpu")) for one in counted)
    row = {
        "case": case, "method": name, "options": options, "edits": count,
        "seconds_per_edit": round(seconds, 4), "steps": [trace.steps for trace in fast.traces],
        "gflop_per_edit": round(statistics.median(one.operations() for one in counted) / 1e9, 3),
        "gb_per_edit": round(statistics.median(one.bytes() for one in counted) / 1e9, 3),
        "floor_seconds": round(floor, 4), "measured_over_floor": round(seconds / floor, 2) if floor else None,
        "products_seconds": round(bare, 4), "measured_over_products": round(seconds / bare, 2) if bare else None,
    }  # fmt: skip
    if not plain:
        return row
    slow = made(name, options, count, shape, plain=True)
    pairs = [(f.losses, s.losses) for f, s in zip(fast.traces, slow.traces, strict=True)]
    return row | {
        "plain_seconds_per_edit": round(statistics.median(slow.seconds), 4),
        "plain_over_suffix": round(
            statistics.median(p / s for p, s in zip(slow.seconds, fast.seconds, strict=True)), 2
        ),
        "losses_equal": all(f == s for f, s in pairs),
        "largest_difference_of_losses": max(abs(x - y) for f, s in pairs for x, y in zip(f, s, strict=False)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True)
    add_shape(parser)
    add_cases(parser, CASES, CASES | OTHERS)
    told = parser.parse_args()
    shape, cases = shape_of(parser, told), cases_of(parser, told, CASES | OTHERS)
    torch.set_num_threads(1)
    most = ceilings(torch.device("cpu"), (torch.float32, torch.float64))
    rows = []
    for case in cases:
        rows.append(row_of(case, told.edits, shape, most, plain=told.plain))
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    base, _ = shaped(*shape)
    found = {
        "width": base.config.hidden_size, "layers": base.config.num_hidden_layers,
        "gflop_per_second": round(most.operations[torch.float32] / 1e9, 1), "gb_per_second": round(most.bytes / 1e9, 1),
        "provenance": surroundings(base), "cases": rows,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
