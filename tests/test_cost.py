"""What edits take, in a report."""

import pytest

from errata.bench.cost import cost
from errata.bench.report import Report
from test_report import ROWS, measured


def test_what_edits_take_has_a_table_and_a_figure(tmp_path):
    timed = [measured("wise", t, 1, 1, 1, 1, answering={"edited": 0.03 * t, "unedited": 0.02}) for t in (1, 10)]
    (section,) = [s for s in Report.of([*timed, ROWS[2]]).sections if s.title.startswith("zsre")]
    (grid,) = [grid for grid in section.grids if grid.title == "What edits take"]
    assert grid.lines == [("wise", "1", "2", "0.25", "1.50"), ("wise", "10", "2", "0.25", "15.00")]
    pytest.importorskip("matplotlib")
    (figure,) = [figure for figure in section.figures if figure.title.startswith("Cost")]
    figure.draw(tmp_path / "cost.svg")
    drawn = (tmp_path / "cost.svg").read_text()
    for panel in ("memory that is added, MB", "seconds an edit", "time of an answer, edited over unedited"):
        assert panel in drawn


def test_rows_of_before_answers_were_timed_have_a_figure_alone():
    grids, figures = cost(ROWS)
    assert grids == []
    assert len(figures) == 1
    assert cost(ROWS[:1]) == ([], []), "one number of edits is no line"
