"""`errata report`: one page from results."""

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.terminal import Json, emit, say
from errata.errors import BadOption

FORMS = (".html", ".md")


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories with results.jsonl and findings, or such files."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page: report.html or report.md.")],
    as_json: Json = False,
) -> None:
    """One page from results: verdicts on published claims, tables beside published numbers, figures, provenance.

    Files that `errata analyse` wrote into the directories are put to the test with the rows.
    The HTML page is one file, and works offline. Figures need `pip install 'errata[plots]'`; Markdown has none.
    With --json, the verdicts are written to stdout as well.

    \b
    Example:
      errata report results more-results --output report.html
    """
    from errata.bench import analyses, page
    from errata.bench.report import Report, gather
    from errata.bench.verdicts import verdicts

    if output.suffix not in FORMS:
        raise BadOption(f"--output {output}: the name of the page must end in {' or '.join(FORMS)}")
    drawn = output.suffix == ".html"
    rows, found = gather(results), analyses.read(results)
    made = Report.of(rows, found, drawn=drawn)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page.html(made) if drawn else page.markdown(made), encoding="utf-8")
    say(f"{output}: {len(rows)} rows")
    if as_json:
        for v in verdicts(rows, found):
            told = {
                "claim": v.claim.id,
                "status": v.status,
                "model": v.model or None,
                "data": v.data or None,
                "why": v.why,
            }
            emit(told)
