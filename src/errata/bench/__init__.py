"""The benchmark: streams of edits, scored by a stated protocol, as rows that say how they came about.

plan = Plan(base, tokenizer, make("grace"), "facts-8m", "zsre", edits, checkpoints=(10, 100))
rows = run(plan, output=Path("results"))
print(markdown(rows))
triangle(rows, Path("triangle.svg"))
"""

from errata.bench.plan import Plan
from errata.bench.plots import curve, triangle
from errata.bench.record import Row, append, read
from errata.bench.stream import Step, run
from errata.bench.tables import markdown, table

__all__ = ["Plan", "Row", "Step", "append", "curve", "markdown", "read", "run", "table", "triangle"]
