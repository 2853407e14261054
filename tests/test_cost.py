"""What edits take, in a report."""

import re
from dataclasses import replace

import pytest

from errata.bench.cost import cost, draw
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


def test_what_was_measured_after_one_number_of_edits_is_told_by_the_table_alone(tmp_path):
    pytest.importorskip("matplotlib")
    timed = replace(ROWS[2], answering={"edited": 0.03, "unedited": 0.02})
    grids, (figure,) = cost([*ROWS[:2], timed])
    assert grids[0].lines == [("grace", "100", "2", "0.25", "1.50")]
    assert "time of an answer" not in figure.shows
    figure.draw(tmp_path / "cost.svg")
    assert "time of an answer" not in (tmp_path / "cost.svg").read_text()


def test_one_panel_is_a_figure_too(tmp_path):
    pytest.importorskip("matplotlib")
    draw([replace(row, memory_bytes=0) for row in ROWS], tmp_path / "cost.svg")
    assert "seconds an edit" in (tmp_path / "cost.svg").read_text()


@pytest.mark.parametrize(("seconds", "written"), [((1.0, 1.2), "0.0"), ((1.0, 60), "20"), ((1.0, 5000), "1000")])
def test_numbers_that_are_near_have_an_axis_from_zero_and_those_far_apart_a_log_axis(tmp_path, seconds, written):
    pytest.importorskip("matplotlib")
    rows = [replace(row, seconds_per_edit=s, memory_bytes=0) for row, s in zip(ROWS[:2], seconds, strict=True)]
    draw(rows, tmp_path / "cost.svg")
    numbers = re.findall(r"(?<=>)[\d.]+(?=</text>)", (tmp_path / "cost.svg").read_text())
    assert written in numbers
    assert len(numbers) > 4, "two of them are those of the edits"
