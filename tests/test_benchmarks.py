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


@pytest.mark.parametrize("case", ["memoir", "ft_l"])
def test_edits_on_suffixes_have_the_losses_of_the_plain_loop(root, case):
    (row,) = run(root, "inner_loop.py", "--edits", "1", "--cases", case)["cases"]
    assert row["largest_difference_of_losses"] < 1e-4
    assert row["steps"][0] > 0 and row["gflop_per_edit"] > 0
