"""What the suffix run saves: the same edits with it and with a plain loop that runs the whole model at every step.

    python benchmarks/inner_loop.py --edits 5 > benchmarks/results/speed/inner_loop.json
    python benchmarks/inner_loop.py --edits 2 --width 1024 --cases "wise, published;memoir;ft_l;grace"

Each edit is made twice, in turn, on the atlas: the losses must be the same numbers. One thread. The floor is the time that
the edit's matrix products, as counted while it runs on suffixes, would take at this machine's speed for large ones; beside
it stands the time of those very products, of their own shapes, one after another and nothing else.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from cases import add_cases, cases_of
from floor import Products, ceilings
from shapes import Shape, add_shape, shape_of, shaped
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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


def made(
    name: str, options: dict[str, Any], count: int, shape: Shape, *, plain: bool, counting: bool = False
) -> tuple[list[float], list[Trace], list[int], list[float]]:
    """Seconds, losses and, when counting, operations and seconds of the products alone, of each edit of a stream but the
    first, which sets up.
    """
    base, tokenizer = shaped(*shape)
    errata.model.Suffix = Plain if plain else Suffix  # type: ignore[misc]
    model = EditedModel(base, tokenizer, methods.make(name, **options), irrelevant=irrelevant(), expected=count)
    editor, real = model.editor, type(model.editor).edit
    traces: list[Trace] = []

    def edit(*args: Any) -> Trace:
        traces.append(real(editor, *args))
        return traces[-1]

    editor.edit = edit  # type: ignore[method-assign]
    seconds, operations, bare = [], [], []
    for one in edits("validation")[: count + 1]:
        products = Products()
        with FlopCounterMode(display=False) if counting else nullcontext() as counter:
            start = time.perf_counter()
            with products if counting else nullcontext():
                model.edit(one)
            seconds.append(time.perf_counter() - start)
        operations.append(counter.get_total_flops() if counter is not None else 0)
        bare.append(products.seconds(model.device))
    return seconds[1:], traces[1:], operations[1:], bare[1:]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=5)
    add_shape(parser)
    add_cases(parser, CASES)
    told = parser.parse_args()
    shape, cases = shape_of(parser, told), cases_of(parser, told, CASES)
    torch.set_num_threads(1)
    speed = ceilings(torch.device("cpu")).operations[torch.float32]
    rows = []
    for case in cases:
        name, options = CASES[case]
        _, _, flops, bare = made(name, options, told.edits, shape, plain=False, counting=True)
        suffix, fast, _, _ = made(name, options, told.edits, shape, plain=False)
        plain, slow, _, _ = made(name, options, told.edits, shape, plain=True)
        floor = statistics.median(flops) / speed
        rows.append({
            "case": case, "method": name, "options": options, "edits": told.edits,
            "seconds_per_edit": round(statistics.median(suffix), 4),
            "plain_seconds_per_edit": round(statistics.median(plain), 4),
            "plain_over_suffix": round(statistics.median(p / s for p, s in zip(plain, suffix, strict=True)), 2),
            "steps": [trace.steps for trace in fast],
            "losses_equal": all(f.losses == s.losses for f, s in zip(fast, slow, strict=True)),
            "largest_difference_of_losses": max(
                abs(x - y) for f, s in zip(fast, slow, strict=True) for x, y in zip(f.losses, s.losses, strict=False)
            ),
            "gflop_per_edit": round(statistics.median(flops) / 1e9, 3),
            "floor_seconds": round(floor, 4),
            "measured_over_floor": round(statistics.median(suffix) / floor, 1),
            "products_seconds": round(statistics.median(bare), 4),
            "measured_over_products": round(statistics.median(suffix) / statistics.median(bare), 2),
        })  # fmt: skip
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    base, _ = shaped(*shape)
    found = {
        "width": base.config.hidden_size, "layers": base.config.num_hidden_layers,
        "gflop_per_second": round(speed / 1e9, 1), "provenance": surroundings(base), "cases": rows,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
