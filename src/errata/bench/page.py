"""Page: a report as HTML, in one file that needs no network, or as Markdown."""

from collections.abc import Iterable
from html import escape

from errata.bench.report import Grid, Report, Section
from errata.bench.verdicts import NOT_MEASURED, NOT_REPRODUCED, PARTLY, REPRODUCED

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #ddd; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--line); } h3 { margin: 1.4rem 0 .3rem; }
nav a { margin-right: 1rem; } p.measured, p.text { color: var(--soft); }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--ink); } td { border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good, .part, .bad { font-weight: 600; } .good { color: #00694c; } .part { color: #8a5a00; } .bad { color: #a8321d; }
.none { color: var(--soft); }
"""
CLASSES = {REPRODUCED: "good", PARTLY: "part", NOT_REPRODUCED: "bad", NOT_MEASURED: "none"}
"""Verdict -> the class of its cell."""


def html(report: Report) -> str:
    """A page of its own: styles and figures are in it, and nothing is loaded from elsewhere."""
    links = " ".join(
        f'<a href="#{_anchor(i)}">{escape(section.title)}</a>' for i, section in enumerate(report.sections)
    )
    body = "\n".join(_html_section(i, section) for i, section in enumerate(report.sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(report.title)}</h1>\n<p class="measured">{escape(report.measured)}</p>\n<nav>{links}</nav>\n'
        f"{body}\n</body>\n</html>\n"
    )


def markdown(report: Report) -> str:
    """The same in Markdown, without the figures."""
    parts = [f"# {report.title}", report.measured]
    for section in report.sections:
        parts += [f"## {section.title}", *section.text]
        for grid in section.grids:
            parts += [f"### {grid.title}", _markdown_grid(grid)]
    return "\n\n".join(parts) + "\n"


def _html_section(i: int, section: Section) -> str:
    parts = [f'<h2 id="{_anchor(i)}">{escape(section.title)}</h2>']
    parts += [f'<p class="text">{escape(text)}</p>' for text in section.text]
    parts += [f"<figure>{svg}</figure>" for svg in section.figures]
    parts += [_html_grid(grid) for grid in section.grids]
    return "\n".join(parts)


def _html_grid(grid: Grid) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.head)
    lines = "\n".join(f"<tr>{''.join(_html_cell(cell) for cell in line)}</tr>" for line in grid.lines)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"
    return f'<h3>{escape(grid.title)}</h3>\n<div class="wide">{table}</div>'


def _html_cell(cell: str) -> str:
    kind = CLASSES.get(cell) or ("number" if _is_number(cell) else "")
    return f'<td class="{kind}">{escape(cell)}</td>' if kind else f"<td>{escape(cell)}</td>"


def _markdown_grid(grid: Grid) -> str:
    numbers = [all(_is_number(line[i]) for line in grid.lines) for i in range(len(grid.head))]
    rule = "|" + "|".join("---:" if number else "---" for number in numbers) + "|"
    return "\n".join((_bars(grid.head), rule, *map(_bars, grid.lines)))


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _is_number(cell: str) -> bool:
    return (
        cell == "–"
        or cell.replace(",", "").replace(".", "").replace("-", "").replace("e", "").replace("+", "").isdecimal()
    )


def _anchor(i: int) -> str:
    return f"section-{i + 1}"
