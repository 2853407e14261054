"""Ten thousand edits, one after another: what an edit costs, what still holds and what is stored, as the stream grows.

    python benchmarks/long_stream.py --methods ultraedit > benchmarks/results/speed/long_stream.json

The edits are those of `atlas:crowd`, all about people of whom the model has never read. One thread, seconds of the
processor, medians over the edits since the mark before. At each mark some edits, evenly spread over the stream so far, are
scored; they are others at each mark, but the first and the last. With --figure the curve is drawn.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from errata import EditedModel, load, methods
from errata.atlas.edits import edits, irrelevant
from errata.bench.plots import COLOURS, STYLE, pyplot, save
from errata.bench.provenance import surroundings
from errata.edit import Edit
from errata.errors import EditFailed
from errata.metrics import HEADLINE, measure

MARKS = (10, 30, 100, 300, 1000, 3000, 10_000)
METHODS = "ultraedit,grace"


def spread(some: Sequence[Edit], count: int) -> list[Edit]:
    """At most `count` edits, evenly spread, with the first and the last."""
    if len(some) <= count:
        return list(some)
    return [some[round(i * (len(some) - 1) / (count - 1))] for i in range(count)]


def streamed(method: str, count: int, scored: int) -> dict[str, Any]:
    """The curve of one method."""
    base, tokenizer = load("atlas")
    model = EditedModel(base, tokenizer, methods.make(method), irrelevant=irrelevant(), expected=count)
    stream = edits("crowd")[:count]
    rows: list[dict[str, Any]] = []
    seconds: list[float] = []
    failed = 0
    for i, edit in enumerate(stream, start=1):
        start = time.process_time()
        try:
            model.edit(edit)
        except EditFailed:
            failed += 1
        seconds.append(time.process_time() - start)
        if i in MARKS or i == count:
            some = spread(stream[:i], scored)
            score = measure(model, some).scores[HEADLINE]
            rows.append({
                "edits": i, "edit_s": round(statistics.median(seconds), 4), "failed": failed, "scored": len(some),
                "nbytes": model.nbytes(), **{name: round(value or 0.0, 4) for name, value in score._asdict().items()},
            })  # fmt: skip
            seconds = []
            sys.stderr.write(f"{method} {json.dumps(rows[-1])}\n")
    return {"method": method, "scorer": HEADLINE, "rows": rows}


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds of an edit and the three scores, against the length of the stream."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(15, 3.4))
        panels = {"edit_s": "seconds an edit", "reliability": "", "generalization": "", "locality": ""}
        for axis, (name, label) in zip(axes, panels.items(), strict=True):
            for i, one in enumerate(found):
                x, y = ([row[of] for row in one["rows"]] for of in ("edits", name))
                axis.plot(x, y, color=COLOURS[i], marker="o", ms=4, lw=1.8, label=one["method"])
            axis.set_xscale("log")
            longest = max(row["edit_s"] for one in found for row in one["rows"])
            axis.set_ylim(0, 1.15 * longest if name == "edit_s" else 1.05)
            axis.set_title(label or name)
            axis.set_xlabel("edits")
        axes[0].legend(frameon=False)
        figure.tight_layout()
        save(figure, path)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--scored", type=int, default=200, help="Edits that are scored at each mark.")
    parser.add_argument("--figure", type=Path, help="Where to draw the curve: .svg, .png or .pdf.")
    told = parser.parse_args()
    torch.set_num_threads(1)
    found = [streamed(method, told.edits, told.scored) for method in told.methods.split(",")]
    if told.figure:
        draw(found, told.figure)
    base, _ = load("atlas")
    whole = {"data": "atlas:crowd", "provenance": surroundings(base), "methods": found}
    sys.stdout.write(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
