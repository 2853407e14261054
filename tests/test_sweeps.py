"""Rows that differ in one option, or in two."""

import math
import re

import pytest

from errata.bench.sweeps import draw, figures, sweeps
from test_bench_record import a_row


def row(edits=10, average=0.7, **options):
    return a_row("grace", edits, average, options={"lr": 1.0, "start": "cold"} | options)


def told(rows):
    return [(sweep.names, sorted(sweep.rows)) for sweep in sweeps(rows)]


def test_rows_that_differ_in_one_number_are_a_line_of_three_or_more():
    rows = [row(epsilon=e) for e in (1.0, 3.0, 10.0)]
    assert told(rows) == [(("epsilon",), [(1.0,), (3.0,), (10.0,)])]
    assert told(rows[:2]) == []
    assert told([*rows[:2], row(epsilon=10.0, start="warm")]) == [], "that one differs in more"
    assert told([*rows[:2], row(20, epsilon=10.0)]) == [], "after as many edits"
    assert told([row(start=start) for start in ("cold", "warm", "hot")]) == [], "names have no order"


def test_what_is_no_finite_number_is_not_of_a_sweep():
    assert told([row(epsilon=e) for e in (1.0, 3.0, math.inf)]) == []
    assert told([row(epsilon=e) for e in (True, False, 2.0)]) == []


def test_values_that_are_far_apart_have_a_log_axis(tmp_path):
    pytest.importorskip("matplotlib")
    places = []
    for name, values in (("near", (1.0, 2.0, 3.0)), ("far", (1.0, 10.0, 100.0))):
        (sweep,) = sweeps([row(epsilon=e) for e in values])
        draw(sweep, tmp_path / f"{name}.svg")
        ticks = re.findall(
            r'x="([\d.]+)" y="[\d.]+"[^>]*>(?:1|2|3|10|100)</text>', (tmp_path / f"{name}.svg").read_text()
        )
        places.append([float(x) for x in ticks])
    for left, middle, right in places:
        assert middle - left == pytest.approx(right - middle, rel=0.05)


def test_rows_that_differ_in_two_are_a_map_if_most_cells_are_there():
    rows = [row(epsilon=e, lr=lr) for e in (1.0, 3.0, 10.0) for lr in (0.1, 1.0)]
    assert [names for names, _ in told(rows)] == [("epsilon", "lr")]
    assert [names for names, _ in told(rows[:5])] == [("epsilon", "lr")], "one cell is missing"
    assert told([row(epsilon=e) for e in (1.0, 3.0, 10.0)] + [row(epsilon=1.0, lr=0.1)])[0][0] == ("epsilon",)


def test_values_with_few_cells_are_left_out_of_a_map():
    grid = [row(epsilon=e, lr=lr) for e in (1.0, 3.0, 10.0) for lr in (0.1, 0.5, 1.0)]
    strays = [row(epsilon=e, lr=lr) for e, lr in ((3.0, 0.33), (30.0, 0.2))]
    ((names, cells),) = told(grid + strays)
    assert names == ("epsilon", "lr")
    assert cells == sorted((e, lr) for e in (1.0, 3.0, 10.0) for lr in (0.1, 0.5, 1.0))
    cross = [row(epsilon=e) for e in (1.0, 3.0, 10.0)] + [row(epsilon=3.0, lr=lr) for lr in (0.1, 0.5)]
    assert [names for names, _ in told(cross)] == [("epsilon",), ("lr",)], "two lines that meet are no map"


def test_the_layer_that_a_method_chose_is_the_one_that_it_was():
    layers = [row(layer=i) for i in (0, 1)]
    chosen = a_row("grace", options=row(layer=None).options, provenance={"site": "model.layers.4.mlp.down_proj"})
    assert told([*layers, chosen]) == [(("layer",), [(0.0,), (1.0,), (4.0,)])]
    spread = a_row("grace", options=chosen.options, provenance={"site": "model.layers.3.x, model.layers.4.x"})
    assert told([*layers, spread]) == []
    nameless = a_row("grace", options=chosen.options, provenance={"site": None})
    assert told([*layers, nameless]) == []


def test_lines_and_maps_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(epsilon=e, lr=lr, average=lr / 2) for e in (1.0, 3.0, 10.0) for lr in (0.1, 1.0)]
    (two,), (one,) = sweeps(rows), sweeps(rows[::2])
    draw(two, tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_text().count(">0.50<") == 3
    draw(one, tmp_path / "line.svg")
    text = (tmp_path / "line.svg").read_text()
    assert "grace after 10 edits, by epsilon: zsre on tiny, generated_exact" in text
    assert all(f">{name}<" in text for name in ("average", "reliability", "generalization", "locality", "epsilon"))
    assert [figure.title for figure in figures(rows)] == ["grace after 10 edits, by epsilon and lr"]
    assert [figure.shows.split(" each ")[0] for figure in figures(rows) + figures(rows[::2])] == ["a map", "a line"]
