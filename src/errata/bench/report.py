"""Report: what directories of results show, as one page: verdicts, tables beside published numbers, figures, provenance.

report = Report.of(read(Path("results")))
Path("report.html").write_text(page.html(report))
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import errata
from errata.bench import published, record, sweeps
from errata.bench.agreement import CEILING, FEW, agreements
from errata.bench.analyses import Analysis
from errata.bench.cost import cost
from errata.bench.failures import failures
from errata.bench.plots import capacity, curve, has_capacity, triangle
from errata.bench.record import PROPERTIES, PROTOCOL, Row, labels, one_by_one
from errata.bench.section import Figure, Grid, Section
from errata.bench.tables import NOTHING, as_score
from errata.bench.verdicts import NOT_MEASURED, Verdict, verdicts
from errata.errors import UsageError
from errata.metrics import HEADLINE

SCORERS = ("generated_exact", "teacher_forced_token", "generated_natural")
"""Those that tables show: the headline, that of the papers, and the strictest. Rows hold all."""
COMPARED = "teacher_forced_token"
"""The scorer beside which published numbers are set."""
MOST_LINES = 24
"""Methods and variants that a figure shows."""
SURROUNDINGS = ("errata", "torch", "transformers", "python", "device", "dtype", "threads", "time")
"""What is shown of the provenance of each row, beside the hashes."""


@dataclass(frozen=True)
class Report:
    """A page."""

    title: str
    sections: Sequence[Section]
    measured: str
    """When the rows were found. The day that the page is made does not stand in it: the same rows make the same page."""

    @classmethod
    def of(cls, rows: Sequence[Row], analyses: Sequence[Analysis] = (), pictures: Sequence[Figure] = ()) -> "Report":
        """What these rows and findings show, with `pictures` of the findings."""
        groups = dict.fromkeys((row.model, row.data) for row in rows)
        sections: list[Section | None] = [_verdicts(verdicts(rows, analyses))]
        sections += [_measured([row for row in rows if (row.model, row.data) == group]) for group in groups]
        sections += [Section("Analyses", figures=pictures) if pictures else None]
        sections += [_capacity(rows), _agreement(rows), _settings(rows), _provenance(rows)]
        kept = [section for section in sections if section is not None]
        return cls("Lifelong editing, measured", kept, f"Measured {_span(rows)}")

    def watched(self, each: Callable[[], None]) -> "Report":
        """The same report, which tells when a figure has been drawn."""
        return replace(self, sections=[replace(s, figures=[f.watched(each) for f in s.figures]) for s in self.sections])


def gather(folders: Sequence[Path]) -> list[Row]:
    """The rows of directories or results files, each measurement once, the later one counting. A directory that has no
    rows itself stands for those directly inside it; beside others, one may have findings alone.

    Raises `UsageError` where one has none, or rows that were measured under another protocol.
    """
    rows: dict[str, Row] = {}
    for place in (inside for folder in folders for inside in _inside(folder)):
        found = record.read(place)
        if not found:
            raise UsageError(f"{place} holds no results")
        for row in found:
            if row.protocol != PROTOCOL:
                raise UsageError(
                    f"{place} has rows of protocol {row.protocol}, and this errata knows {PROTOCOL}: measure them again,"
                    " into another directory"
                )
            rows[row.key] = row
    if not rows:
        raise UsageError(f"there is no {record.FILE} in {', '.join(map(str, folders))}, and no page without rows")
    return list(rows.values())


def _inside(folder: Path) -> list[Path]:
    """The results files one level below a directory that has none itself, in the order of their paths; else what was given.

    None of a directory that holds only findings.
    """
    if folder.is_file() or (folder / record.FILE).exists():
        return [folder]
    found = sorted(folder.glob(f"*/{record.FILE}"))
    return found if found or any(folder.rglob("*.json")) else [folder]


def _verdicts(found: Sequence[Verdict]) -> Section:
    """Claims with their verdicts, those that were measured first."""
    ordered = sorted(found, key=lambda verdict: verdict.status == NOT_MEASURED)
    counts = {status: sum(v.status == status for v in found) for status in dict.fromkeys(v.status for v in ordered)}
    lines = [(v.claim.claim, f"{v.claim.source}, {v.claim.place}", v.status, _on(v), v.why) for v in ordered]
    text = (
        "A claim is put to the test by comparing rows under the scorer of the papers, teacher_forced_token, or numbers that"
        " an analysis found. Where no rows have as many edits as the paper, some claims, mostly ablations, are tested after"
        " fewer, and those about how many edits a matrix holds where it holds at least as many for its weights: "
    )
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    head = ("Claim", "Source", "Verdict", "On", "Why")
    return Section("Verdicts", [f"{text}{told}.", _how_to_read(found)], [Grid("Published claims", head, lines)])


def _how_to_read(found: Sequence[Verdict]) -> str:
    """What the verdicts can be taken for, and how they come out by the settings that they rest on."""
    told = []
    for way in dict.fromkeys(verdict.settings for verdict in found):
        statuses = Counter(verdict.status for verdict in found if verdict.settings == way)
        told.append(f"{way}, {', '.join(f'{count} {status}' for status, count in statuses.most_common())}")
    return (
        "A verdict speaks of the models that it was found on, and of no others. A claim about a method that errata has in a"
        " way of its own has a verdict on rows that are as published, or the line that there are none, and one on the"
        " default; other settings are listed where they come out otherwise. Rows as published are without what errata has"
        " added to a method; what is still not the paper's in the rows of a verdict, such as the optimizer, ends it. At a"
        f" smaller scale is a verdict after fewer than nine tenths of the edits that the claim is about. Two scores of"
        f" {CEILING:g} and more are at the ceiling, and their order tells nothing. By settings, where a method without a"
        f" way of its own counts as by default: {'; '.join(told)}."
    )


def _on(verdict: Verdict) -> str:
    return f"{verdict.data} on {verdict.model}" if verdict.model else NOTHING


def _measured(rows: Sequence[Row]) -> Section:
    """All that was measured on one model and data set."""
    grids = [_scores(rows, scorer) for scorer in SCORERS if any(scorer in row.scores for row in rows)]
    longer = [row for row in rows if not any(score.get("generalization") is not None for score in row.scores.values())]
    if longer and any(row.perplexity.get("mean") is not None for row in longer):
        grids.append(_perplexity(longer))
    if any(value is not None for row in rows for value in row.ood.values()):
        grids.append(_ood(rows))
    if any(value is not None for row in rows for value in row.portability.values()):
        grids.append(_portability(rows))
    text, failing = failures(rows)
    shown = _main(rows)
    taken, of_cost = cost(shown)
    drawn = [*_figures(shown), *of_cost, *sweeps.figures(rows)]
    return Section(f"{rows[0].data} on {rows[0].model}", text, [*grids, *failing, *taken], drawn)


def _scores(rows: Sequence[Row], scorer: str) -> Grid:
    """One table by T and average; with the published numbers of the same method and T where the papers score so."""
    beside = scorer == COMPARED
    head = ("Method", "T", "Rel", "Gen", "Loc", "Avg", "s/edit", "MB", "failed", *(("Published",) if beside else ()))
    lines = []
    for row, label in _ordered(rows, scorer):
        cost = [
            NOTHING if row.seconds_per_edit is None else f"{row.seconds_per_edit:.3g}",
            f"{row.memory_bytes / 1e6:.3g}",
        ]
        told = [_published(row, PROPERTIES)] if beside else []
        scores = [as_score(row.score(name, scorer)) for name in PROPERTIES]
        lines.append((label, f"{row.edits:,}", *scores, *cost, f"{row.failed:,}", *told))
    return Grid(scorer, head, lines)


def _perplexity(rows: Sequence[Row]) -> Grid:
    """Reliability as the perplexity of long targets, and locality."""
    lines = [
        (
            label, f"{row.edits:,}", *(_figure(row.perplexity.get(name)) for name in ("mean", "clipped_mean", "median")),
            as_score(row.score("locality", COMPARED)), _published(row, ("perplexity", "locality")),
        )
        for row, label in _ordered(rows, COMPARED)
    ]  # fmt: skip
    head = ("Method", "T", "PPL", "PPL cut at 100", "PPL median", "Loc", "Published PPL, Loc")
    return Grid("Perplexity of the targets", head, lines)


def _ood(rows: Sequence[Row]) -> Grid:
    lines = [
        (
            label, f"{row.edits:,}", as_score(row.score("reliability", COMPARED)), as_score(row.ood.get("per_example")),
            as_score(row.ood.get("per_token")), as_score(row.score("locality", COMPARED)),
            _published(row, ("reliability", "ood", "locality")),
        )
        for row, label in _ordered(rows, COMPARED)
    ]  # fmt: skip
    head = ("Method", "T", "Rel", "OOD by example", "OOD by token", "Loc", "Published Rel, OOD, Loc")
    return Grid("Out-of-distribution generalization", head, lines)


def _portability(rows: Sequence[Row]) -> Grid:
    """Questions whose answers follow from the edits."""
    lines = [
        (label, f"{row.edits:,}", *(as_score(row.portability.get(scorer)) for scorer in SCORERS))
        for row, label in _ordered(rows, COMPARED)
    ]
    return Grid("Portability: what follows from the edits", ("Method", "T", *SCORERS), lines)


def _ordered(rows: Sequence[Row], scorer: str) -> list[tuple[Row, str]]:
    """Rows with their labels, by T and then from the best average down."""
    named = zip(rows, labels(rows), strict=True)
    return sorted(named, key=lambda pair: (pair[0].edits, -(pair[0].score("average", scorer) or 0.0)))


def _published(row: Row, properties: Sequence[str]) -> str:
    """The papers' numbers of the same method, variant, data and T: `.98 .92 1.00 .97 (WISE, table 6, LLaMA-2-7B)`."""
    lines = published.like(row, published.numbers(published.names()))
    told = (
        f"{' '.join(_figure(line.values.get(name)) for name in properties)} ({published.place(line.table)})"
        for line in lines
        if any(line.values.get(name) is not None for name in properties)
    )
    return "; ".join(told) or NOTHING


def _capacity(rows: Sequence[Row]) -> Section | None:
    """How scores fall as edits lie closer in a memory: over models and data, for methods seen at more than one density."""
    dense = [row for row in rows if row.edits_per_million_weights is not None and row.score("average") is not None]
    seen = {
        name: {row.edits_per_million_weights for row in dense if row.method == name}
        for name in {row.method for row in dense}
    }
    chosen = [row for row in dense if len(seen[row.method]) > 1]
    if not chosen:
        return None
    ordered = sorted(chosen, key=lambda row: (row.method, row.edits_per_million_weights or 0.0, row.model))
    lines = [
        (
            row.method, f"{row.edits_per_million_weights:,.0f}", f"{row.edits:,}", f"{row.data} on {row.model}",
            *(as_score(row.score(name)) for name in PROPERTIES),
        )
        for row in ordered
    ]  # fmt: skip
    text = "Edits per million weights of the edited matrices. On LLaMA-3-8B, the papers' 1,000 edits are 17."
    head = ("Method", "Edits per million", "T", "On", "Rel", "Gen", "Loc", "Avg")
    return Section("Capacity", [text], [Grid(f"Scores against density, {HEADLINE}", head, lines)])


def _figures(rows: Sequence[Row]) -> list[Figure]:
    """The triangles after the most edits that all methods have, the curves over T, and how scores fall with density."""
    found = []
    if len(set(labels(rows))) <= MOST_LINES:
        shows = "a triangle a method, from 0 in the middle to 1 at the corners; the fuller, the better the editor"
        found.append(Figure("Reliability, generalization and locality", partial(triangle, rows), shows))
    if len({row.edits for row in rows}) > 1:
        shows = "a line a method, whose markers are set a little apart from left to right"
        found.append(Figure("Scores against the number of edits", partial(curve, rows), shows))
    if has_capacity(rows):
        dense = [row for row in rows if has_capacity([r for r in rows if r.method == row.method])]
        found.append(Figure("Scores against edits a million weights", partial(capacity, dense), "a line a memory"))
    return found


def _main(rows: Sequence[Row]) -> list[Row]:
    """Those to draw: all, or where there are too many to tell apart those with default settings, if a method has such.

    Of these the edits made one by one, with the first seed.
    """
    if len(set(labels(rows))) <= MOST_LINES:
        return list(rows)
    first = {name: min(row.seed for row in rows if row.method == name) for name in {row.method for row in rows}}
    plain = [
        row
        for row in one_by_one(rows)
        if row.seed == first[row.method]
        and published.agree(row.method, row.options, {}, published.defaults(row.method))
    ]
    return [row for row in rows if row in plain or row.method not in {other.method for other in plain}]


def _agreement(rows: Sequence[Row]) -> Section | None:
    found = agreements(rows)
    lines = [
        (
            published.title(a.table), f"{a.data} on {a.model}", f"{a.edits:,}", f"{a.tau:.2f}", str(len(a.methods)),
            a.caution or NOTHING, ", ".join(a.methods),
        )
        for a in found
    ]  # fmt: skip
    text = (
        "Kendall's tau between our order of methods and the published one, by average: 1 is the same order. The methods are"
        " as errata has them, not as published."
        f" An order of fewer than {FEW} methods comes about by chance easily, and that of methods at the ceiling, with"
        f" averages of {CEILING:g} and more, tells nothing."
    )
    head = ("Published table", "Measured on", "T", "tau", "Of methods", "Caution", "Methods, our best first")
    return Section("Rank agreement", [text], [Grid("Kendall's tau", head, lines)]) if found else None


def _settings(rows: Sequence[Row]) -> Section:
    """The options of each method, as often as they differ."""
    told = dict.fromkeys((row.method, _pairs(row.options)) for row in rows if row.options)
    return Section("Settings", (), [Grid("Options of the methods", ("Method", "Options"), sorted(told))])


def _provenance(rows: Sequence[Row]) -> Section:
    """What each row was made of and on; rows of one making share a line."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        made = [str(row.provenance.get(name, NOTHING)) for name in SURROUNDINGS[:-1]]
        base = str(row.provenance.get("base_fingerprint", NOTHING))[:12]
        protocol = f"batch {row.batch_size}, chunks {row.chunks}" + (", in a chat" if row.chat else "")
        key = (row.model, base, row.data, str(row.provenance.get("data_sha256", NOTHING)), protocol, *made)
        groups.setdefault(key, []).append(row)
    lines = [
        (*key, _span(group), str(len(group)), ", ".join(sorted({str(row.seed) for row in group})))
        for key, group in groups.items()
    ]
    head = ("Model", "Base", "Data", "Data sha256", "Protocol", *SURROUNDINGS, "Rows", "Seeds")
    text = (
        f"Made by errata {errata.__version__} from {len(rows)} rows. Every row holds all scorers, settings and hashes."
    )
    return Section("Provenance", [text], [Grid("Where the numbers come from", head, lines)])


def _span(rows: Sequence[Row]) -> str:
    times = sorted(str(row.provenance.get("time", NOTHING)) for row in rows)
    return times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"


def _pairs(options: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.2f}"
