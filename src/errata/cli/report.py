"""`errata report`: one page from results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata import disk
from errata.cli.terminal import Json, emit, meter, say
from errata.errors import BadOption, StoreError


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories with results.jsonl and findings, or such files."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="report.html, report.md or, for papers, report.tex.")
    ],
    as_json: Json = False,
) -> None:
    """One page from results: verdicts on published claims, tables beside published numbers, figures, provenance.

    Files that `errata analyse` wrote into the directories are put to the test with the rows.
    The HTML page is one file, and works offline. LaTeX comes with its figures as PDF files beside it, to be \\input.
    Figures need `pip install 'errata[plots]'`; Markdown has none.
    With --json, the verdicts are written to stdout as well.

    \b
    Example:
      errata report results more-results --output report.html
      errata report results --output paper/report.tex
    """
    from errata.analysis.figures import pictures
    from errata.bench import analyses, page
    from errata.bench.latex import latex
    from errata.bench.report import Report, gather
    from errata.bench.verdicts import verdicts

    forms: dict[str, Callable[[Report], str]] = {
        ".html": page.html, ".md": page.markdown, ".tex": partial(latex, path=output)
    }  # fmt: skip
    if output.suffix not in forms:
        *others, last = forms
        raise BadOption(f"--output {output}: the name of the page must end in {', '.join(others)} or {last}")
    rows, found = gather(results), analyses.read(results)
    made = Report.of(rows, found, pictures(found))
    with meter(sum(len(section.figures) for section in made.sections), "drawing") as bar:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            written = forms[output.suffix](made.watched(bar.step))
            disk.replace_all(output.parent, {output.name: written.encode()})
        except OSError as error:
            raise StoreError(f"{output} cannot be written: {error.strerror or error}; what was there is kept") from None
    say(f"{output}: {len(rows)} rows")
    if as_json:
        for v in verdicts(rows, found):
            told = {
                "claim": v.claim.id,
                "status": v.status,
                "settings": v.settings,
                "model": v.model or None,
                "data": v.data or None,
                "why": v.why,
            }
            emit(told)
