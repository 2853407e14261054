"""How edits fail, in a report."""

from errata.bench import page
from errata.bench.failures import failures
from errata.bench.report import Report
from errata.bench.section import Grid
from test_bench_record import a_row
from test_report import ROWS, measured, read_html

FAILED = {
    "held": {"edits": 6, "contested": 1, "examples": []},
    "rephrasing": {"edits": 3, "contested": 3, "examples": [
        {"id": "a", "prompt": f"Who leads {name}?", "target": "Ann", "said": "Bob <b>"} for name in ("Acme", "Zeta", "Ixo")
    ]},
    "whole": {"edits": 1, "contested": 0, "examples": [{"id": "b", "prompt": "Where?", "target": "Oslo", "said": "Rome"}]},
}  # fmt: skip


def test_failing_edits_are_sorted_by_kind_with_examples_after_the_most_edits():
    rows = [measured("memoir", t, 0.9, 0.6, 1.0, 0.8, outcomes=FAILED) for t in (5, 10)]
    made = Report.of([*rows, ROWS[2]])
    text = page.markdown(made)
    assert "### How edits fail" in text
    assert "| memoir | 10 | 6 | 3 | 0 | 0 | 1 | 4 | 0.25 | 0.83 |" in text
    assert "| grace | 100 | – " not in text.split("### How edits fail")[1].split("###")[0], "it does not say how"
    assert "Who leads" not in text, "Markdown has no examples"
    web = page.html(made)
    read_html(web)
    folded = web[web.index("Examples of failures after 10 edits") :].split("</details>")[0]
    assert folded.count("<tr>") == 4, "a head, two of one kind, one of the other"
    assert "<td>Bob &lt;b&gt;</td>" in folded
    assert "How edits fail" not in page.markdown(Report.of(ROWS)), "rows of before that are passed over"


def test_edits_that_all_hold_have_no_examples():
    held = {"held": {"edits": 4, "contested": 0, "examples": []}}
    text, (counts,) = failures([a_row(outcomes=held)])
    assert len(text) == 1
    assert isinstance(counts, Grid)
    assert counts.lines == [("grace", "10", "4", "0", "0", "0", "0", "0", "–", "1.00")]
