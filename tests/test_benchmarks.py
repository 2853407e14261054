"""The scripts under benchmarks/ run, and what they compare is the same thing done twice."""

import json
import subprocess
import sys

import pytest


def run(root, script, *args):
    done = subprocess.run(
        [sys.executable, root / "benchmarks" / script, *args], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_mask_index_answers_rightly_at_any_size(root):
    (index,) = run(root, "mask_index.py", "--masks", "3000")["indexes"]
    assert index["masks"] == 3000
    assert all(kind["right"] == kind["of"] for kind in index["queries"].values())


def test_edits_on_suffixes_have_the_losses_of_the_plain_loop(root):
    (row,) = run(root, "inner_loop.py", "--edits", "1", "--cases", "ft_l")["cases"]
    assert row["largest_difference_of_losses"] < 1e-4
    assert row["steps"][0] > 0 and row["gflop_per_edit"] > 0


def test_what_is_added_is_a_small_part_of_a_call(root):
    rows = run(root, "inference.py", "--edits", "1", "--repeats", "1", "--cases", "grace")["edited_over_unedited"]
    assert [(row["prompts"], row["batch"]) for row in rows] == [(p, b) for p in ("edited", "other") for b in (1, 16)]
    assert all(row["prefill"] > 0 and row["decode"] > 0 for row in rows)
    assert all(0 < share < 1 for row in rows for share in row["inside"].values())


def test_a_large_model_is_timed_against_its_floor(root):
    shape = ("--width", "64", "--ff", "128", "--layers", "2", "--vocabulary", "4096")
    told = ("--device", "cpu", "--dtype", "float32", "--edits", "1", "--repeats", "1")
    found = run(root, "large.py", *shape, *told, "--cases", "ft_l", "--used", "memoir")
    (row,) = found["edits"]
    assert row["counted_steps"] == row["steps"][0] > 0
    assert row["seconds_per_edit"] > row["floor_s"] > 0
    assert [(use["prompts"], use["batch"]) for use in found["use"]] == [
        (p, b) for p in ("edited", "other") for b in (1, 16)
    ]


def test_batches_are_labelled_with_their_size(root):
    rows = run(root, "throughput.py", "--methods", "grace", "--edits", "3", "--sizes", "1,3")["rows"]
    assert [(row["batch_size"], row["edits"], row["failed"]) for row in rows] == [(1, 3, 0), (3, 3, 0)]
    assert rows[0]["reliability"] == rows[1]["reliability"] > 0


def test_the_running_factorisation_is_the_dense_solve_to_rounding(root):
    rows = run(root, "closed_form.py", "--ff", "256", "--model", "64", "--repeats", "1")["edits"]
    assert {(row["formula"], row["kept_as_matrices"]) for row in rows} == {
        (formula, folded) for formula in ("memit", "alphaedit") for folded in (False, True)
    }
    assert all(row["largest_relative_difference"] < 1e-5 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_what_an_edit_leaves_behind_is_what_it_declares(root):
    (found,) = run(root, "stream.py", "--cases", "grace", "--edits", "3,300", "--repeats", "1")["cases"]
    assert [row["edits_before"] for row in found["rows"]] == [3, 300]
    assert all(row["alive_after_edit"] <= row["stored_by_edit"] + 4096 for row in found["rows"])


def test_a_long_stream_is_scored_and_timed_at_its_marks(root, tmp_path):
    figure = tmp_path / "curve.svg"
    told = ("--methods", "ultraedit", "--edits", "12", "--scored", "3", "--figure", figure)
    (found,) = run(root, "long_stream.py", *told)["methods"]
    assert [(row["edits"], row["scored"], row["failed"]) for row in found["rows"]] == [(10, 3, 0), (12, 3, 0)]
    assert all(row["edit_s"] > 0 and 0 <= row["reliability"] <= 1 for row in found["rows"])
    assert "<svg" in figure.read_text(encoding="utf-8")


def test_neighbours_are_asked_of_a_method(root, tmp_path):
    command = [
        sys.executable,
        root / "benchmarks" / "neighbours.py",
        tmp_path,
        "--edits",
        "3",
        "--cases",
        "memoir;ft_l",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "neighbours.json").read_text(encoding="utf-8"))["found"]
    assert found["memoir"]["reliability"] == 1
    assert found["memoir"]["unchanged"] == {"far": 1.0, "same_relation": 1.0, "same_subject": 1.0}
    assert found["ft_l"]["prompts"]["same_relation"] == 9


def test_edits_of_a_chat_are_asked_in_several(root, tmp_path):
    command = [sys.executable, root / "benchmarks" / "chat.py", tmp_path, "--edits", "1", "--methods", "grace"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    found = told["found"]
    assert told["settings"]["model"] == "atlas"  # findings of another model are no beginning of these
    assert found["unedited"]["first turn"]["kept"] == 1
    later = found["grace"]["second turn"]
    assert (later["answered"], later["opens"], later["opens to irrelevant"]) == (1, 1, 0)
    assert later["opens by the whole chat"] == 0
    assert found["grace"]["first turn"]["rephrased"] == 0


@pytest.mark.parametrize(
    ("script", "told", "says"),
    [
        ("chat", ("--methods", "memo"), "no method here is called memo; there are memoir, "),
        ("chat", ("--edits", "0"), "--edits 0: at least 1"),
        ("chat", ("--model", "nowhere"), "nowhere"),
        ("neighbours", ("--cases", "memo"), "no case is called memo; there are memoir; "),
        ("neighbours", ("--edits", "999999"), "--edits 999999: at least 1, and 3 of the"),
        ("neighbours", ("--data", "zsre:nowhere.json"), "nowhere.json"),
        ("chat", ("{broken",), "chat.json holds no findings, or is damaged"),
        ("neighbours", ("{broken",), "neighbours.json holds no findings, or is damaged"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(root, tmp_path, script, told, says):
    if told[0].startswith("{"):
        (tmp_path / f"{script}.json").write_text(told[0])
        told = ()
    command = [sys.executable, root / "benchmarks" / f"{script}.py", tmp_path, *told]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
