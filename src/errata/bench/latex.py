"""LaTeX: the tables of a report, with its figures as PDF files beside them, to be put into a paper.

The file is a part of a document, for `\\input`; what it needs is said in its first lines.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from errata.bench.report import Report
from errata.bench.section import Figure, Grid
from errata.bench.tables import is_number
from errata.errors import MissingExtra

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
LONG = 40
"""Characters from which on a cell makes its column one of paragraphs."""


def latex(report: Report, path: Path) -> str:
    """The text of `path`, which is not written; the figures are, as `NAME-1.pdf` and so on in its folder.

    Without matplotlib there are none, and the text says so.
    """
    parts = [
        "% Made by errata report; \\input it. In the preamble: \\usepackage{booktabs,longtable,graphicx,array}",
        f"% {report.measured}",
    ]
    drawn = 0
    for section in report.sections:
        parts += [rf"\subsection*{{{escaped(section.title)}}}", *map(escaped, section.text)]
        for figure in section.figures:
            try:
                parts.append(_figure(figure, path.with_name(f"{path.stem}-{drawn + 1}.pdf")))
                drawn += 1
            except MissingExtra as error:
                parts.append(f"% No figures: {error}")
                break
        parts += [_table(grid) for grid in section.grids if grid.lines and not grid.folded]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text whose characters LaTeX would take for commands stand for themselves."""
    return re.sub(r"[\\&%$#_{}~^–<>]", lambda found: SPECIAL[found[0]], text.replace("\n", " "))


def _figure(figure: Figure, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw(path)
    return (
        "\\begin{figure}[htbp]\n\\centering\n"
        rf"\includegraphics[width=\linewidth]{{{path.name}}}"
        f"\n\\caption{{{escaped(figure.title)}}}\n\\end{{figure}}"
    )


def _table(grid: Grid) -> str:
    """A table that may go over several pages."""
    columns = [_column([line[i] for line in grid.lines]) for i in range(len(grid.head))]
    lines = [r" & ".join(map(escaped, line)) + r" \\" for line in (grid.head, *grid.lines)]
    rows = "\n".join(lines[1:])
    return (
        f"\\begin{{longtable}}{{{''.join(columns)}}}\n\\caption{{{escaped(grid.title)}}}\\\\\n\\toprule\n{lines[0]}\n"
        f"\\midrule\n\\endhead\n{rows}\n\\bottomrule\n\\end{{longtable}}"
    )


def _column(cells: Sequence[str]) -> str:
    """How a column is set: numbers to the right, long texts as paragraphs."""
    if all(map(is_number, cells)):
        return "r"
    return r">{\raggedright\arraybackslash}p{.3\linewidth}" if max(map(len, cells), default=0) >= LONG else "l"
