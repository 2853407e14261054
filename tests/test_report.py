"""The page that is made of results."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from errata import methods
from errata.analysis.figures import pictures
from errata.bench import analyses, append, page
from errata.bench.record import FILE
from errata.bench.report import Report, gather
from errata.bench.section import Figure
from errata.cli import app
from errata.errors import DamagedFile, UsageError
from test_bench_record import a_row

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
VOID = {"meta", "br", "link"}


def scores(*values):
    return dict(zip(("reliability", "generalization", "locality", "average"), values, strict=True))


def measured(method, edits, *values, **more):
    both = {"generated_exact": scores(*values), "teacher_forced_token": scores(*values)}
    return a_row(method, edits, data="zsre:x.json", scores=both, options={}, **more)


ROWS = [
    measured("wise", 10, 0.93, 0.87, 1.0, 0.9333), measured("wise", 100, 0.8, 0.75, 1.0, 0.85),
    measured("grace", 100, 0.9, 0.1, 1.0, 0.6667), measured("memit", 100, 0.1, 0.1, 0.1, 0.1, failed=3),
    measured("memit", 1, 0.8, 0.8, 0.9, 0.83),
]  # fmt: skip


class Reader(HTMLParser):
    """Checks that what is opened is closed, and collects links, ids and cells."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.sources, self.cells = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [told["href"]] if tag == "a" else []
        self.sources += [told[name] for name in ("src",) if name in told]
        self.ids += [told["id"]] if "id" in told else []
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def read_html(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_holds_tables_with_published_numbers_beside():
    text = page.markdown(Report.of(ROWS))
    assert "## zsre:x.json on tiny" in text
    line = next(line for line in text.splitlines() if line.startswith("| wise | 10 |") and "WISE" in line)
    assert line.startswith(
        "| wise | 10 | 0.93 | 0.87 | 1.00 | 0.93 | 0.25 | 2 | 0 | 0.94 0.88 1.00 0.94 (WISE, table 6, LLaMA-2-7B)"
    )
    assert "| memit | 100 | 0.10 | 0.10 | 0.10 | 0.10 | 0.25 | 2 | 3 |" in text
    assert "## Rank agreement" in text
    assert "| 100 | 1.00 | 3 | of 3 methods | wise, grace, memit |" in text


def test_the_page_holds_verdicts_with_the_figures_that_decided():
    text = page.markdown(Report.of(ROWS))
    line = next(line for line in text.splitlines() if "MEMIT, one edit at a time" in line)
    assert "| reproduced | zsre:x.json on tiny |" in line
    assert "holds (0.10 and 0.83; published 0.02 and 0.88)" in line
    assert "| not measured | – |" in next(line for line in text.splitlines() if "15,000 edits" in line)


def test_long_texts_have_a_table_of_their_own():
    only = {"teacher_forced_token": scores(0.9, None, 0.98, 0.94)}
    rows = [
        a_row(
            "wise",
            600,
            data="hallucination:x.json",
            scores=only,
            perplexity={"mean": 3.5, "clipped_mean": 3.4, "median": 2},
        ),
        a_row("wise", 75, data="temporal:x.json", scores=only, ood={"per_example": 0.3, "per_token": 0.6}),
    ]
    text = page.markdown(Report.of(rows))
    assert "| wise | 600 | 3.50 | 3.40 | 2.00 | 0.98 | 3.12 0.99 (WISE, table 8, LLaMA-2-7B)" in text
    assert "| wise | 75 | 0.90 | 0.30 | 0.60 | 0.98 | 0.96 0.37 1.00 (WISE, table 7, GPT-J-6B) |" in text


def test_capacity_is_told_over_models_for_methods_seen_at_more_than_one_density():
    rows = [
        a_row("memoir", 1000, edits_per_million_weights=1695.4),
        a_row("memoir", 100, edits_per_million_weights=169.5),
        a_row("memoir", 100, model="other", edits_per_million_weights=381.0),
        a_row("wise", 100, edits_per_million_weights=169.5),
        a_row("in_context", 100, edits_per_million_weights=None),
    ]
    text = page.markdown(Report.of(rows))
    section = text[text.index("## Capacity") :].split("\n## ")[0]
    told = [line.split(" | ")[:3] for line in section.splitlines() if line.startswith("| memoir")]
    assert told == [["| memoir", "170", "100"], ["| memoir", "381", "100"], ["| memoir", "1,695", "1,000"]]
    assert "wise" not in section
    assert "## Capacity" not in page.markdown(Report.of(rows[3:]))


def test_portability_has_a_table_where_there_is_any():
    rows = [a_row("wise", 100, portability={"generated_exact": 0.25, "teacher_forced_token": 0.5}), a_row("grace", 100)]
    text = page.markdown(Report.of(rows))
    assert "| wise | 100 | 0.25 | 0.50 | – |" in text
    assert "| grace | 100 | – | – | – |" in text
    assert "Portability" not in page.markdown(Report.of(rows[1:]))


def test_the_html_page_is_whole_and_needs_nothing_else():
    rows = [replace(row, provenance={"device": "<GPU & co>", "time": "now"}) for row in ROWS]
    text = page.html(Report.of(rows))
    reader = read_html(text)
    assert "<GPU & co>" in reader.cells, "what rows say is text, never markup"
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert reader.sources == []
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text.replace("http-equiv", ""))
    assert 'class="good">reproduced</td>' in text


def test_figures_are_inside_the_page():
    pytest.importorskip("matplotlib")
    text = page.html(Report.of(ROWS))
    assert text.count("<svg") == 3, "triangles, curves and cost"
    assert "<?xml" not in text
    assert len(text) < 2_000_000


def test_the_page_of_the_committed_results_is_less_than_two_megabytes():
    pytest.importorskip("matplotlib", reason="the figures need the extra plots")
    found = analyses.read([RESULTS])
    text = page.html(Report.of(gather([RESULTS]), found, pictures(found)))
    assert text.count("<svg") > 30
    assert len(text.encode()) < 2_000_000


def test_a_figure_has_a_caption_and_words_for_those_who_cannot_see_it():
    pytest.importorskip("matplotlib")
    text = page.html(Report.of(ROWS))
    told = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)">.*?</svg><figcaption>([^<]+)</figcaption>', text)
    assert len(told) == text.count("<svg")
    assert all(label == f"zsre:x.json on tiny. {caption}" for label, caption in told)
    assert [caption.partition(":")[0] for _, caption in told] == [
        "Reliability, generalization and locality", "Scores against the number of edits",
        "Cost against the number of edits",
    ]  # fmt: skip
    assert told[2][1].endswith(": memory that is added, MB; seconds an edit; a line a method")


def test_what_figures_have_in_common_is_in_the_page_once():
    pytest.importorskip("matplotlib")
    text = page.html(Report.of(ROWS))
    drawn = " ".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    ids = re.findall(r' id="([^"]+)"', drawn)
    assert len(ids) == len(set(ids))
    assert set(ids) == set(re.findall(r"(?<=#)s\d+", drawn))
    assert set(re.findall(r'class="([^"]+)"', drawn)) == set(re.findall(r"^\.(p\d+)\{", text, re.MULTILINE))
    assert "style=" not in drawn


def test_a_section_of_figures_alone_is_not_in_markdown():
    made = Report.of(ROWS, pictures=[Figure("a finding", Path.touch)])
    assert "Analyses" in [section.title for section in made.sections]
    assert "Analyses" not in page.markdown(made)


def test_a_report_tells_as_its_figures_are_drawn():
    pytest.importorskip("matplotlib")
    drawn = []
    made = Report.of(ROWS).watched(lambda: drawn.append(len(drawn)))
    assert page.markdown(made) and drawn == [], "Markdown has none"
    assert page.html(made) == page.html(Report.of(ROWS))
    assert drawn == [0, 1, 2]


def test_a_page_without_matplotlib_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = page.html(Report.of(ROWS))
    assert "No figures: drawing needs" in text
    assert "<svg" not in text


def test_many_methods_and_variants_are_drawn_with_their_default_settings_alone():
    pytest.importorskip("matplotlib")
    own = methods.make("wise").options()
    rows = [a_row("wise", t, options=own | {"steps": 20 + i}) for t in (10, 100) for i in range(30)]
    text = page.html(Report.of(rows))
    assert "steps=49" in text[text.index("<table") :]
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert [">wise<" in figure for figure in drawn] == [True, True, True, False, False], "the last are sweeps"
    assert "steps=49" not in " ".join(drawn)


def test_settings_and_provenance_are_told():
    text = page.markdown(Report.of([*ROWS, a_row("ft_l", options={"lr": 0.5})]))
    assert "| ft_l | lr=0.5 |" in text
    assert "from 6 rows" in text
    assert "batch 1, chunks 1" in text


def test_rows_of_several_directories_are_one_report_and_the_later_counts(tmp_path):
    append(tmp_path / "one", ROWS[:3])
    better = replace(ROWS[1], scores={"generated_exact": scores(1, 1, 1, 1)})
    append(tmp_path / "two", [better, *ROWS[3:]])
    rows = gather([tmp_path / "one", tmp_path / "two" / FILE])
    assert len(rows) == 5
    assert [row.scores for row in rows].count(better.scores) == 1
    assert ROWS[1].scores not in [row.scores for row in rows]


def test_a_directory_of_directories_stands_for_those_inside_it(tmp_path):
    append(tmp_path / "all" / "one", ROWS[:3])
    append(tmp_path / "all" / "two", ROWS[3:])
    append(tmp_path / "all" / "deep" / "repeated", [replace(ROWS[0], seed=7)])
    assert len(gather([tmp_path / "all"])) == 5, "what lies deeper is not of them"
    append(tmp_path / "all", ROWS[:1])
    assert len(gather([tmp_path / "all"])) == 1, "its own rows, if it has some"


def test_a_directory_of_findings_alone_may_stand_beside_one_of_rows(tmp_path):
    append(tmp_path / "rows", ROWS)
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "overlap.json").write_text('{"analysis": "overlap"}')
    assert len(gather([tmp_path / "findings", tmp_path / "rows"])) == 5
    with pytest.raises(UsageError, match=r"there is no results\.jsonl in .*findings, and no page without rows"):
        gather([tmp_path / "findings"])


def test_the_command_writes_any_form(tmp_path):
    append(tmp_path / "results", ROWS)
    starts = {
        "new/report.html": "<!doctype html>",
        "report.md": "# Lifelong editing",
        "tex/report.tex": "% Made by errata",
    }
    for name, start in starts.items():
        done = CliRunner().invoke(app, ["report", str(tmp_path / "results"), "--output", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert "5 rows" in done.stderr
        assert (tmp_path / name).read_text().startswith(start)


def test_the_command_tells_the_verdicts_to_programs(tmp_path):
    append(tmp_path / "results", ROWS)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "results"), "-o", str(tmp_path / "report.md"), "--json"])
    told = {line["claim"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert told["memit-collapses"]["status"] == "reproduced"
    assert told["memit-collapses"]["data"] == "zsre:x.json"
    assert told["memoir-best"]["model"] is None


def refused(*arguments):
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_what_is_no_result_is_refused_in_one_line(tmp_path):
    page_ = ("--output", tmp_path / "report.html")
    append(tmp_path / "good", ROWS)
    assert "must end in .html, .md or .tex" in refused(tmp_path / "good", "--output", tmp_path / "report.pdf")
    assert "cannot be read" in refused(tmp_path / "absent", *page_)
    append(tmp_path / "other", [replace(ROWS[0], protocol=2)])
    assert "of protocol 2, and this errata knows 1" in refused(tmp_path / "other", *page_)
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / FILE).write_text(json.dumps(ROWS[0].to_record() | {"novelty": 1}) + "\n")
    assert "'novelty': is not a field of a result" in refused(tmp_path / "newer", *page_)
    assert not (tmp_path / "report.html").exists()


def test_an_empty_file_and_a_nan_are_refused(tmp_path):
    (tmp_path / FILE).write_text("\n")
    with pytest.raises(UsageError, match="holds no results"):
        gather([tmp_path])
    (tmp_path / FILE).write_text(json.dumps(ROWS[0].to_record() | {"memory_bytes": float("nan")}) + "\n")
    with pytest.raises(DamagedFile, match=r"results.jsonl:1 is no JSON \(NaN is no number\)"):
        gather([tmp_path])
