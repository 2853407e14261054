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


def test_lemoe_is_diagnosed_run_by_run_and_taken_up_again(root, tmp_path):
    path, small = tmp_path / "new" / "found.json", ["--prefixes", "0", "--shuffles", "0", "--set", "steps=1"]
    command = [sys.executable, root / "benchmarks" / "lemoe.py", path, "--edits", "2", *small, "--set", "batch=2"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(path.read_text())
        assert list(found["runs"]) == ["as given", "planned", "dealt", "one batch", "one by one"]
        found["runs"]["planned"]["experts"] = 7
        path.write_text(json.dumps(found))
    assert found["runs"]["planned"]["experts"] == 7, "what is there is not made again"


@pytest.mark.parametrize("case", ["memoir", "ft_l"])
def test_edits_on_suffixes_have_the_losses_of_the_plain_loop(root, case):
    (row,) = run(root, "inner_loop.py", "--edits", "1", "--cases", case)["cases"]
    assert row["largest_difference_of_losses"] < 1e-4
    assert row["steps"][0] > 0 and row["gflop_per_edit"] > 0
