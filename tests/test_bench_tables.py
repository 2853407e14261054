"""Tables and pictures of results: from rows alone."""

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from errata.bench import curve, markdown, table, triangle
from errata.bench.plots import at_edits, capacity, has_capacity, look
from errata.bench.published import data_of, like, names, numbers, title
from errata.errors import BadOption, MissingExtra, UnknownName
from test_bench_record import a_row

ROWS = [a_row("ft_l", 10, 0.3), a_row("grace", 10, 0.7), a_row("grace", 100, 0.65)]


def test_markdown_has_the_best_first_for_each_number_of_edits():
    lines = markdown(ROWS).splitlines()
    assert lines[0] == "**zsre on tiny, generated_exact**"
    assert lines[2:] == [
        "| Method | T | Rel | Gen | Loc | Avg | s/edit | MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| grace | 10 | 0.90 | 0.20 | 1.00 | 0.70 | 0.25 | 2 |",
        "| ft_l | 10 | 0.90 | 0.20 | 1.00 | 0.30 | 0.25 | 2 |",
        "| grace | 100 | 0.90 | 0.20 | 1.00 | 0.65 | 0.25 | 2 |",
    ]


def test_published_numbers_of_the_same_methods_come_after_ours():
    lines = markdown(ROWS[1:2], published=True).splitlines()
    assert lines[4].startswith("| grace | 10 |")
    assert "| grace (WISE: LLaMA-2-7B) | 10 | 0.96 | 0.00 | 1.00 | 0.65 | – | – |" in lines
    assert not any("wise" in line for line in lines)
    assert "other models" in lines[-1]


def test_published_averages_are_those_of_the_scores():
    checked = 0
    for line in numbers(names()):
        *scores, average = line.properties
        if None not in (*scores, average):
            assert average == pytest.approx(sum(scores) / 3, abs=0.0101), line
            checked += 1
    assert checked > 120


def test_a_published_table_has_an_id_and_a_place():
    assert {"wise-6-llama", "wise-7", "wise-8-mistral", "wise-9", "wise-10", "wise-12", "memoir-llama"} <= set(names())
    assert title("wise-10") == "WISE (arXiv 2405.14768), table 10, LLaMA-2-7B"
    assert {line.table for line in numbers(["wise-12"])} == {"wise-12"}
    assert not {line.table for line in numbers()} & {"wise-10", "wise-12"}, "variants only where they are asked for"
    with pytest.raises(UnknownName, match="wise-10"):
        numbers(["wise-100"])


def test_a_row_is_set_beside_the_variant_that_it_is():
    row = a_row("wise", 100, options={"merge": "ties", "k": 2})
    assert [line.values["reliability"] for line in like(row, numbers(["wise-10"]))] == [0.85]
    assert like(a_row("wise", 10, options={"merge": "ties"}), numbers(["wise-10"])) == []
    linear = like(a_row("wise", 100, options={"merge": "linear"}), numbers(names()))
    assert [line.table for line in linear] == ["wise-10"], "no variant is set beside the method as it is"
    assert {line.table for line in like(row, numbers(names()))} >= {"wise-6-llama", "wise-10"}, "ties is the default"
    assert (data_of(a_row(data="atlas")), data_of(a_row(data="temporal:x.json"))) == ("zsre", "temporal")


def test_the_terminal_table_prints_dashes_for_what_there_is_not():
    out = io.StringIO()
    rows = [a_row(seconds_per_edit=None, scores={})]
    Console(file=out, width=100).print(table(rows))
    assert "│ grace  │ 10 │   – │   – │   – │   – │      – │  2 │" in out.getvalue()


def test_an_unknown_scorer_is_refused():
    with pytest.raises(UnknownName, match="generated_exact"):
        markdown(ROWS, "generated_exakt")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_are_written(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    for draw in (triangle, curve):
        path = tmp_path / "new" / f"{draw.__name__}.{suffix}"
        draw(ROWS, path)
        head = path.read_bytes()[:200]
        assert head.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in head


def test_a_picture_says_the_numbers_and_is_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    triangle(ROWS, one)
    triangle(ROWS, two)
    text = one.read_text()
    assert text == two.read_text()
    for said in ("grace", "ft_l", "reliability", "generalization", "locality", "average 0.70", "after 10 edits"):
        assert said in text


def test_scores_that_are_missing_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    bare = [a_row(scores={})]
    triangle(bare, tmp_path / "a.png")
    curve(bare, tmp_path / "b.png")


def test_a_score_that_no_row_has_takes_no_room(tmp_path):
    pytest.importorskip("matplotlib")
    scores = {"generated_exact": {"reliability": 0.5, "generalization": None, "locality": 1.0}}
    for name, rows in (("without", [a_row(scores=scores)]), ("with", ROWS)):
        curve(rows, tmp_path / f"{name}.svg")
    assert "generalization" in (tmp_path / "with.svg").read_text()
    without = (tmp_path / "without.svg").read_text()
    assert "generalization" not in without
    assert "reliability" in without


def test_a_memory_of_several_sizes_has_a_picture_of_its_capacity(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        a_row("memoir", t, options={"size": size}, edits_per_million_weights=t / size)
        for size in (0.5, 1.0)
        for t in (10, 100)
    ]
    assert has_capacity(rows)
    assert not has_capacity(rows[:2]), "one size"
    assert not has_capacity([replace(row, method=f"{i}") for i, row in enumerate(rows)]), "several methods"
    capacity(rows, tmp_path / "capacity.svg")
    text = (tmp_path / "capacity.svg").read_text()
    for said in ("edits a million weights", "as the memory fills", "size=0.5", "200", "average"):
        assert said in text


def test_triangles_are_of_the_largest_number_of_edits_that_all_have():
    assert [row.edits for row in at_edits(ROWS)] == [10, 10]
    assert [row.edits for row in at_edits([ROWS[0], ROWS[2]])] == [100], "none is shared: the largest"
    with pytest.raises(BadOption, match=r"after 7 edits.*\[10, 100\]"):
        at_edits(ROWS, 7)
    with pytest.raises(BadOption, match="no results"):
        at_edits([])


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"errata\[plots\]"):
        triangle(ROWS, tmp_path / "a.png")


def test_no_two_lines_of_a_figure_look_alike():
    assert len({look(i) for i in range(64)}) == 64
