"""Write the tables of README.md and docs/results.md, and all of docs/evidence.md, anew from the committed results.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a folder of benchmarks/results, then perhaps
a scorer and the T to show: `atlas teacher_forced_token T=100`. Between `<!-- tuned: NAME -->` and `<!-- end -->`
stands what `errata tune` chose, from benchmarks/tuning; between `<!-- neighbours -->` and `<!-- end -->` what
`benchmarks/neighbours.py` found, between `<!-- chat -->` and `<!-- end -->` what `benchmarks/chat.py` did, and between
`<!-- again: NAME -->` and `<!-- end -->` how the rows of results/repeats/NAME differ from those of results/NAME. With
--check nothing is written, and the exit code is 1 where a file differs.
"""

import argparse
import json
import math
import re
import statistics
import sys
import textwrap
from datetime import datetime
from pathlib import Path

from errata.bench import analyses, markdown, page, record
from errata.bench.record import PROPERTIES
from errata.bench.report import Report, gather
from errata.bench.tables import as_score
from errata.bench.tune import FILE, Settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TUNING = ROOT / "benchmarks" / "tuning"
PAGES = ("README.md", "docs/results.md", "docs/field.md", "docs/how-it-works.md")
EVIDENCE = "docs/evidence.md"
BLOCK = re.compile(
    r"(?P<begin><!-- table: (?P<name>\S+)(?: (?P<scorer>[a-z_]+))?(?: T=(?P<edits>\d+))? -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
NEIGHBOURS = re.compile(r"(?P<begin><!-- neighbours -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
CHAT = re.compile(r"(?P<begin><!-- chat -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
FLOOR = re.compile(r"(?P<begin><!-- floor: (?P<name>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
AGAIN = re.compile(r"(?P<begin><!-- again: (?P<name>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
TUNED = re.compile(r"(?P<begin><!-- tuned: (?P<name>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """A page with every table made anew."""

    def table(found: re.Match[str]) -> str:
        rows = record.read(RESULTS / found["name"])
        rows = [row for row in rows if found["edits"] in (None, str(row.edits))]
        return f"{found['begin']}\n{markdown(rows, found['scorer'] or 'generated_exact')}\n\n{found['end']}"

    def choices(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{tuned(Settings.read(TUNING / found['name'] / FILE))}\n\n{found['end']}"

    def beside(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{next_door(RESULTS / 'diagnoses' / 'neighbours.json')}\n\n{found['end']}"

    def told(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{in_chats(RESULTS / 'diagnoses' / 'chat.json')}\n\n{found['end']}"

    def repeated(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{again(found['name'])}\n\n{found['end']}"

    def timed(found: re.Match[str]) -> str:
        path = RESULTS / "speed" / f"{found['name']}.json"
        return f"{found['begin']}\n{floors(path)}\n\n{found['end']}"

    text = FLOOR.sub(timed, AGAIN.sub(repeated, CHAT.sub(told, text)))
    return NEIGHBOURS.sub(beside, TUNED.sub(choices, BLOCK.sub(table, text)))


def next_door(path: Path) -> str:
    """What each method leaves alone next door, most first, as Markdown."""
    found = json.loads(path.read_text(encoding="utf-8"))["found"]
    lines = ["| Method | Rel | Gen | Far | Same question, other subject | Other question, same subject |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for case, row in sorted(found.items(), key=lambda item: -item[1]["unchanged"]["same_relation"]):
        scores = (row["reliability"], row["generalization"], *row["unchanged"].values())
        lines.append(f"| {case} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")
    return "\n".join(lines)


def in_chats(path: Path) -> str:
    """The share of edits that each method answers in each chat, as they were made and in another wording, as Markdown.

    Last what a model without edits keeps.
    """
    found = json.loads(path.read_text(encoding="utf-8"))["found"]
    kept = found.pop("unedited")
    lines = ["| | " + " | ".join(kept) + " |", "|---|" + "---:|" * len(kept)]
    for method, row in found.items():
        shares = [f"{row[chat]['answered']:.2f} {row[chat]['rephrased']:.2f}" for chat in kept]
        lines.append(f"| {method} | " + " | ".join(shares) + " |")
    lines.append("| no edits | " + " | ".join(f"{row['kept']:.2f}" for row in kept.values()) + " |")
    return "\n".join(lines)


def floors(path: Path) -> str:
    """What an edit of each case takes, and how far that is from what its matrix products must, as Markdown."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "| Case | Steps | s/edit | Gflop | GB | Floor, s | s/edit over floor | over the same products alone |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(found["cases"], key=lambda row: row["measured_over_floor"] or math.inf):
        numbers = [row[name] for name in ("seconds_per_edit", "gflop_per_edit", "gb_per_edit", "floor_seconds")]
        told = " | ".join(f"{number:,.0f}" if number >= 1000 else f"{number:.3g}" for number in numbers)
        ratios = (
            "–" if row[name] is None else f"{row[name]:.1f}"
            for name in ("measured_over_floor", "measured_over_products")
        )
        steps = statistics.median(row["steps"])
        lines.append(f"| {row['case']} | {steps:g} | {told} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def again(name: str) -> str:
    """How rows that were measured again differ from those that are kept, and how long they took, as Markdown."""
    before = {row.key: row for row in record.read(RESULTS / name)}
    rows = record.read(RESULTS / "repeats" / name)
    times = sorted(datetime.fromisoformat(str(row.provenance["time"])) for row in rows)
    lines = [
        "| Method | T | Rel | Gen | Loc | These before | Largest difference |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    equal = 0
    for row in (row for row in rows if row.key in before):
        kept = before[row.key]
        apart = max(
            abs(value - (kept.score(of, scorer) or 0.0))
            for scorer, scores in row.scores.items()
            for of, value in scores.items()
            if value is not None
        )
        equal += apart == 0
        if apart:
            now, then = ([as_score(each.score(of)) for of in PROPERTIES[:3]] for each in (row, kept))
            variant = f" ({mode})" if (mode := row.options.get("mode")) else ""
            lines.append(
                f"| {row.method}{variant} | {row.edits} | {' | '.join(now)} | {' '.join(then)} | {apart:.4f} |"
            )
    minutes, both = (times[-1] - times[0]).total_seconds() / 60, equal + len(lines) - 2
    told = (
        f"{len(rows)} rows, the last {minutes:.0f} minutes after the first. {equal} of the {both} measured before are"
        " equal under all four scorers; these differ, in generated text and by the most under any scorer:"
    )
    return textwrap.fill(told, 125) + "\n\n" + "\n".join(lines)


def tuned(settings: Settings) -> str:
    """The methods of a settings file with the scores of their defaults and of what was chosen, best first, as Markdown."""
    lines = ["| Method | Defaults | Chosen | Settings |", "|---|---:|---:|---|"]
    for method, found in sorted(settings.chosen.items(), key=lambda item: -item[1]["score"]):
        options = ", ".join(f"{name}={value}" for name, value in found["options"].items()) or "the defaults"
        lines.append(
            f"| {method} | {found['default_score']:.2f} | {found['score']:.2f} | {options.replace('|', ' ')} |"
        )
    return "\n".join(lines)


def evidence() -> str:
    """The report of all committed rows and findings, as Markdown."""
    return page.markdown(Report.of(gather([RESULTS]), analyses.read([RESULTS]))).rstrip() + "\n"


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    check = parser.parse_args().check
    pages = {name: rendered((ROOT / name).read_text(encoding="utf-8")) for name in PAGES} | {EVIDENCE: evidence()}
    stale = []
    for name, text in pages.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'out of date' if check else 'rewritten'}: {', '.join(stale)}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
