"""What a worker says, asked in this process."""

import json
import os

import pytest
import torch

from errata.bench import record, run
from errata.bench.plan_file import PlanFile
from errata.bench.worker import Worker
from errata.data import jsonl
from errata.fingerprint import fingerprint
from test_bench_stream import results
from tiny import EDITS, tiny_llama, write_tiny

PLAN = """
title = "A trial"
model = "MODEL"
data = "EDITS"
edits = [1, 3]
[[method]]
name = "none"
[[method]]
name = "memoir"
options = { layer = 9 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("worker")
    write_tiny(path / "tiny", layers=2)
    jsonl.write(path / "edits.jsonl", EDITS)
    (path / "plan.toml").write_text(PLAN.replace("MODEL", f"{path}/tiny").replace("EDITS", f"{path}/edits.jsonl"))
    return path


@pytest.fixture
def worker(folder):
    file, threads = PlanFile.read(folder / "plan.toml"), torch.get_num_threads()
    yield Worker(file, file.streams(), str(folder / "tiny"), device="cpu", dtype="auto", threads=1)
    torch.set_num_threads(threads)


def test_a_worker_says_who_it_is_and_what_its_rows_are_known_by(worker):
    said = json.loads(worker.describe())
    assert torch.get_num_threads() == 1
    assert said["pid"] == os.getpid()
    assert said["made_of"] == {"base_fingerprint": fingerprint(tiny_llama(layers=2)), "dtype": "float32"}


def test_the_rows_of_a_cell_are_said_as_they_are_found_and_known_ones_are_not(worker):
    worker.describe()
    saying = worker.cell(0, [])
    first = next(saying)
    rows = [record.from_record(json.loads(said)["row"]) for said in (first, *saying)]
    assert results(rows) == results(run(worker.plans[0]))
    (rest,) = worker.cell(0, [json.dumps(rows[0].to_record())])
    assert results([record.from_record(json.loads(rest)["row"])]) == results(rows[1:])
    assert list(worker.cell(0, [json.dumps(row.to_record()) for row in rows])) == []


def test_what_cannot_be_done_is_said(worker, folder):
    worker.describe()
    (said,) = worker.cell(1, [])
    assert json.loads(said) == {
        "refused": "layer 9 is out of range: the model has layers 0 to 1", "exit_code": 2
    }  # fmt: skip
    worker.model = str(folder / "absent")
    said = json.loads(worker.describe())
    assert said["exit_code"] == 2
    assert "no such directory" in said["refused"]
