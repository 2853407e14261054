"""Rows of results, and the file that holds them."""

import json
import math
from dataclasses import replace

import pytest

from errata import methods
from errata.bench.record import FILE, PROTOCOL, Row, append, from_record, kept, labels, read, ready
from errata.errors import BadRecord, DamagedFile, NewerFormat, StoreError, UsageError


def a_row(method="grace", edits=10, average=0.7, **more):
    scores = {"reliability": 0.9, "generalization": 0.2, "locality": 1.0, "average": average}
    known = {
        "method": method, "model": "tiny", "data": "zsre", "edits": edits, "stream": 100, "seed": 0, "batch_size": 1,
        "chunks": 1, "options": methods.recorded(method, {"lr": 1e-6, "layer": None}),
        "scores": {"generated_exact": scores},
        "locality_by_kind": {"far": 1.0}, "perplexity": {"mean": 2.0}, "immediate": {}, "seconds_per_edit": 0.25,
        "peak_memory_mb": 100.0, "memory_bytes": 2_000_000, "edits_per_million_weights": 5.0, "scored": edits,
        "superseded": 0, "failed": 0, "failed_ids": [], "provenance": {"dtype": "float32", "time": "now"},
    }  # fmt: skip
    return Row(**(known | more))


def test_what_is_written_is_read_again(tmp_path):
    rows = [a_row(), a_row(edits=100)]
    append(tmp_path, rows[:1])
    append(tmp_path / FILE, rows[1:])
    assert read(tmp_path) == read(tmp_path / FILE) == rows


def test_measured_numbers_have_four_decimals_and_options_all_of_theirs():
    record = a_row(seconds_per_edit=0.123456, options={"lr": 1.23456789e-6}).to_record()
    assert (record["seconds_per_edit"], record["options"]["lr"]) == (0.1235, 1.23456789e-6)


def test_what_is_not_finite_is_null_with_the_reason(tmp_path):
    row = a_row(perplexity={"mean": math.inf, "median": math.nan}, seconds_per_edit=None)
    append(tmp_path, [row])
    (found,) = read(tmp_path)
    assert found.perplexity == {"mean": None, "median": None}
    assert found.nulls == {"perplexity.mean": "inf", "perplexity.median": "nan"}
    assert "NaN" not in (tmp_path / FILE).read_text()


def test_the_key_is_the_protocol_and_not_the_result():
    row = a_row()
    same = replace(row, scores={}, failed=3, provenance={"dtype": "float32", "time": "later"})
    assert row.key == same.key == from_record(json.loads(json.dumps(row.to_record()))).key
    changes = [
        {"method": "wise"}, {"edits": 11}, {"stream": 11}, {"seed": 1}, {"batch_size": 2}, {"chunks": 2}, {"chat": True},
        {"options": methods.recorded("grace", {"lr": 2e-6})}, {"protocol": 2}, {"provenance": {"dtype": "bfloat16"}},
    ]  # fmt: skip
    assert len({row.key, *(replace(row, **change).key for change in changes)}) == len(changes) + 1


def test_a_row_from_before_a_method_had_an_option_says_what_it_was_then():
    then = a_row(method="memoir", options={"steps": 50}).to_record()
    row, default = from_record(then), methods.make("memoir", steps=50)
    assert row.options["size"] == default.size == 1.0
    assert (row.options["protect"], default.protect) == (0.0, 3.0)
    assert replace(row, options=default.options()).key != row.key
    assert from_record(then | {"method": "a plug-in that is gone"}).options == {"steps": 50}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edits": "ten"}, r"x.jsonl:7, field 'edits': cannot be 'ten'"),
        ({"edits": True}, "field 'edits'"),
        ({"chat": 1}, "field 'chat'"),
        ({"scores": {"generated_exact": 1}}, "field 'scores'"),
        ({"failed_ids": "a"}, "field 'failed_ids'"),
        ({"nonsense": 1}, "'nonsense': is not a field"),
    ],
)
def test_bad_rows_name_the_place(tmp_path, change, message):
    with pytest.raises(BadRecord, match=message):
        from_record(a_row().to_record() | change, tmp_path / "x.jsonl", 7)


def test_a_missing_field_is_named():
    record = a_row().to_record()
    del record["scores"]
    with pytest.raises(BadRecord, match="'scores': is missing"):
        from_record(record)


def test_a_row_that_was_not_written_to_its_end_is_none(tmp_path):
    """As a machine leaves it that stops while it writes; the next row takes its place."""
    rows = [a_row(data="jsonl:Zürich–Łódź.jsonl"), a_row(edits=100, data="jsonl:東京.jsonl")]
    append(tmp_path, rows[:1])
    line = json.dumps(rows[1].to_record(), ensure_ascii=False).encode()
    for torn in (line[: line.index("東".encode()) + 1], line[:-30]):
        with (tmp_path / FILE).open("ab") as file:
            file.write(torn)
        assert read(tmp_path) == rows[:1]
        ready(tmp_path)
    append(tmp_path, rows[1:])
    assert read(tmp_path) == rows
    whole = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(whole.rstrip("\n"))  # as an editor leaves it that wants no empty line
    append(tmp_path, [a_row(edits=1000)])
    assert [row.edits for row in read(tmp_path)] == [10, 100, 1000]


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    append(tmp_path, [a_row()])
    before = (tmp_path / FILE).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StoreError, match=rf"{FILE}: No space left on device; the rows there before are kept"):
            append(tmp_path, [a_row(edits=100)])
    assert (tmp_path / FILE).read_bytes() == before
    ready(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_rows_of_another_protocol_are_no_part_of_what_is_measured_now(tmp_path):
    append(tmp_path, [a_row(protocol=PROTOCOL - 1)])
    with pytest.raises(UsageError, match=f"rows of protocol {PROTOCOL - 1}.*give another --output"):
        kept(tmp_path)
    assert len(read(tmp_path)) == 1
    append(tmp_path, [a_row(protocol=PROTOCOL + 1)])
    with pytest.raises(NewerFormat, match=f"{FILE}:2 is of protocol {PROTOCOL + 1}.*update errata"):
        read(tmp_path)
    assert kept(None) == []


def test_damage_is_named_by_line(tmp_path):
    append(tmp_path, [a_row()])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"method": "gra\n')
    with pytest.raises(DamagedFile, match=rf"{FILE}:2 is no JSON"):
        read(tmp_path)
    (tmp_path / FILE).write_text("[1]\n")
    with pytest.raises(BadRecord, match=rf"{FILE}:1: is \[1\]"):
        read(tmp_path)
    (tmp_path / FILE).write_bytes(b"\xff")
    with pytest.raises(DamagedFile, match="UTF-8"):
        read(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "absent.jsonl")


def test_labels_say_only_what_differs():
    assert labels([a_row(), a_row("wise")]) == ["grace", "wise"]
    rows = [a_row(options={"lr": 1}), a_row(options={"lr": 2}, seed=1), a_row("wise", options={"rho": 3})]
    assert labels(rows) == ["grace (lr=1)", "grace (seed=1, lr=2)", "wise"]
    assert labels([a_row(options={"lr": None}), a_row(options={"lr": 2})]) == ["grace (lr=None)", "grace (lr=2)"]
