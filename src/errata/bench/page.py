"""Page: a report as HTML, in one file that needs no network, or as Markdown."""

from collections.abc import Iterable, Sequence
from html import escape

from errata.bench.album import Album
from errata.bench.report import Report
from errata.bench.section import Figure, Grid, Section
from errata.bench.tables import NOTHING, is_number
from errata.bench.verdicts import CANNOT_TELL, NOT_MEASURED, NOT_REPRODUCED, PARTLY, REPRODUCED, SMALLER
from errata.errors import MissingExtra

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #ddd; --link: #0057a3; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .3rem; } h3 { margin: 1.6rem 0 .3rem; }
h2 { margin-top: 2.6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
h1, h2, h3, p, td, summary { overflow-wrap: break-word; }
a, summary { color: var(--link); } summary { cursor: pointer; margin: .8rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; } p.measured, p.text { color: var(--soft); }
p.text { max-width: 46rem; }
.wide, figure { overflow-x: auto; } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; } figcaption { color: var(--soft); font-size: .88rem; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--ink); white-space: nowrap; } td { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; } tbody tr:hover { background: #f6f6f6; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.long { min-width: 10rem; } th.long:last-child { min-width: 28rem; }
.good, .part, .bad, .none { min-width: 8rem; } .good, .part, .bad { font-weight: 600; }
.good { color: #00694c; } .part { color: #8a5a00; } .bad { color: #a8321d; } .none { color: var(--soft); }
@media (max-width: 48rem) { body { margin: 1rem auto; } svg { max-width: 46rem; } th.long:last-child { min-width: 22rem; } }
@media print { body { max-width: none; } .wide, figure { overflow: visible; } h2, h3 { break-after: avoid; } }
"""
LONG = 40
"""Characters from which on a cell makes its column one of texts, which is not squeezed on a narrow screen."""
CLASSES = {REPRODUCED: "good", PARTLY: "part", NOT_REPRODUCED: "bad", NOT_MEASURED: "none", CANNOT_TELL: "none"}
CLASSES |= {f"{status} {SMALLER}": kind for status, kind in CLASSES.items()}
"""Verdict -> the class of its cell."""


def html(report: Report) -> str:
    """A page of its own: styles and figures are in it, and nothing is loaded from elsewhere."""
    links = " ".join(
        f'<a href="#{_anchor(i)}">{escape(section.title)}</a>' for i, section in enumerate(report.sections)
    )
    album = Album()
    body = "\n".join(_html_section(i, section, album) for i, section in enumerate(report.sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}{album.rules()}</style>\n</head>\n<body>\n"
        f'<h1>{escape(report.title)}</h1>\n<p class="measured">{escape(report.measured)}</p>\n<nav>{links}</nav>\n'
        f"{body}\n</body>\n</html>\n"
    )


def markdown(report: Report) -> str:
    """The same in Markdown, without the figures, and without the sections that have nothing else."""
    parts = [f"# {report.title}", report.measured]
    for section in report.sections:
        told = list(section.text)
        for grid in section.grids:
            told += [] if grid.folded else [f"### {grid.title}", _markdown_grid(grid)]
        parts += [f"## {section.title}", *told] if told else []
    return "\n\n".join(parts) + "\n"


def _html_section(i: int, section: Section, album: Album) -> str:
    parts = [f'<h2 id="{_anchor(i)}">{escape(section.title)}</h2>']
    parts += [f'<p class="text">{escape(text)}</p>' for text in section.text]
    try:
        parts += [_html_figure(figure, section, album) for figure in section.figures]
    except MissingExtra as error:
        parts.append(f'<p class="text">No figures: {escape(str(error))}.</p>')
    parts += [_html_grid(grid) for grid in section.grids]
    return "\n".join(parts)


def _html_figure(figure: Figure, section: Section, album: Album) -> str:
    """A picture and its caption, which with the heading of the section also stands for it."""
    caption = f"{figure.title}: {figure.shows}" if figure.shows else figure.title
    picture = album.svg(figure, f"{section.title}. {caption}")
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _html_grid(grid: Grid) -> str:
    """A table. Its lines about what was not measured, if there are any, are folded away under it; or all of it is."""
    if grid.folded:
        return f"<details><summary>{escape(grid.title)}</summary>\n{_html_table(grid)}\n</details>"
    title = f"<h3>{escape(grid.title)}</h3>"
    missing = [line for line in grid.lines if NOT_MEASURED in line]
    there = [line for line in grid.lines if NOT_MEASURED not in line]
    parts = [_html_table(grid._replace(lines=there))] if there else []
    if missing:
        table = _html_table(grid._replace(lines=missing))
        parts.append(f"<details><summary>{len(missing)} {NOT_MEASURED}</summary>\n{table}\n</details>")
    return "\n".join((title, *parts))


def _html_table(grid: Grid) -> str:
    kinds = [_kind([line[i] for line in grid.lines]) for i in range(len(grid.head))]
    head = "".join(_tag("th", name, kind) for name, kind in zip(grid.head, kinds, strict=True))
    lines = "\n".join(f"<tr>{''.join(map(_html_cell, line, kinds))}</tr>" for line in grid.lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'


def _kind(column: Sequence[str]) -> str:
    """How the cells of a column are set: as numbers, where they all are; as long texts, where one is."""
    if all(map(is_number, column)) and any(cell != NOTHING for cell in column):
        return "number"
    return "long" if max(map(len, column), default=0) >= LONG else ""


def _html_cell(cell: str, kind: str) -> str:
    return _tag("td", cell, CLASSES.get(cell, kind if kind == "number" else ""))


def _tag(tag: str, text: str, kind: str) -> str:
    return f'<{tag} class="{kind}">{escape(text)}</{tag}>' if kind else f"<{tag}>{escape(text)}</{tag}>"


def _markdown_grid(grid: Grid) -> str:
    numbers = [all(is_number(line[i]) for line in grid.lines) for i in range(len(grid.head))]
    rule = "|" + "|".join("---:" if number else "---" for number in numbers) + "|"
    return "\n".join((_bars(grid.head), rule, *map(_bars, grid.lines)))


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _anchor(i: int) -> str:
    return f"section-{i + 1}"
