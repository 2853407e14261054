"""Plans on a Ray cluster: the rows of the local engine, each once, whatever dies.

Ray is an extra, and no part of what the tests need: without it, only what can be known without it is tested.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import commands
from errata.bench import dispatch, record
from errata.bench.cluster import Share, connected
from errata.bench.record import FILE, read
from errata.data import jsonl
from errata.errors import BadOption, ErrataError
from tiny import EDITS, write_tiny

run = partial(commands.run, "bench")

SRC = Path(__file__).resolve().parent.parent / "src"
CASES = """
[[method]]
name = "none"
[[method]]
name = "grace"
options = { steps = 5 }
sweep = { depth = [0, 1] }
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two tiny models and four edits, as files, and a plan of six cells over them."""
    folder = tmp_path_factory.mktemp("cluster")
    for i, name in enumerate(("one", "two")):
        write_tiny(folder / name, layers=2, seed=i)
    jsonl.write(folder / "edits.jsonl", EDITS)
    models = json.dumps([str(folder / "one"), str(folder / "two")])
    head = f'title = "A trial"\nmodel = {models}\ndata = "{folder}/edits.jsonl"\nedits = [1, 3]\n'
    (folder / "plan.toml").write_text(head + CASES)
    return folder


@pytest.fixture(scope="module")
def environment():
    """What a process of Ray needs of ours: the source, and no more than its own processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: beside two other busy processes they stand still
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)  # of these clusters alone
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(environment):
    """A cluster on this machine, of two workers."""
    ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'errata[ray]'")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL",
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield ray
    ray.shutdown()


def measured(row):
    """A row without when it was found, and how fast."""
    told = row.to_record()
    del told["provenance"]["time"], told["seconds_per_edit"], told["peak_memory_mb"], told["answering"]
    return told


@pytest.fixture(scope="module")
def local(tiny, environment):
    """The rows of the local engine, on one thread as a worker has."""
    output = tiny / "local"
    command = [sys.executable, "-m", "errata", "bench", tiny / "plan.toml", "--device", "cpu", "--output", output]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return read(output)


def test_the_rows_are_those_of_the_local_engine_bit_for_bit_also_when_a_worker_is_killed(
    tiny, cluster, local, tmp_path, monkeypatch
):
    append, killed = record.append, []

    def append_and_kill(path, rows):
        append(path, rows)
        if not killed:
            killed.append(next(hand.name.split()[1] for hand in hands if hand.cell is not None))
            os.kill(int(killed[0]), signal.SIGKILL)

    hands = []
    init = dispatch.Hand.__init__

    def remembered(self, *more):
        init(self, *more)
        hands.append(self)

    monkeypatch.setattr(record, "append", append_and_kill)
    monkeypatch.setattr(dispatch.Hand, "__init__", remembered)
    told = run(tiny / "plan.toml", "--engine", "ray", "--output", tmp_path, "--json")
    rows = read(tmp_path)
    assert len(rows) == 12, "each once"
    assert {row.key: measured(row) for row in rows} == {row.key: measured(row) for row in local}
    printed = [json.loads(line)["model"] for line in told.stdout.splitlines()]
    assert printed == ["one"] * 6 + ["two"] * 6, "in the order of the plan, and nothing else on stdout"
    assert f"worker {killed[0]} on" in told.stderr
    assert "has died; once more" in told.stderr
    lines = [line for line in told.stderr.splitlines() if line.startswith("[") and "once more" not in line]
    assert len(lines) == 6
    assert lines[-1].startswith("[6/6] ")


def test_what_is_there_is_not_sent_out(tiny, cluster, local, tmp_path):
    lines = (tiny / "local" / FILE).read_text().splitlines(keepends=True)[:6]
    (tmp_path / FILE).write_text("".join(lines[:5]))
    told = run(tiny / "plan.toml", "--model", tiny / "one", "--engine", "ray", "--output", tmp_path)
    assert (tmp_path / FILE).read_text().startswith("".join(lines[:5]))
    assert [measured(row) for row in read(tmp_path)] == [measured(row) for row in local[:6]]
    assert [line for line in told.stderr.splitlines() if line.startswith("[")] == [
        "[3/3] grace (steps=5, depth=1.0): jsonl:edits.jsonl on one, seed 0"
    ]


def test_a_cell_that_cannot_be_run_is_told_and_the_others_are_run(tiny, cluster, local, tmp_path, monkeypatch):
    class Deadly(dispatch.Worker):
        """Its process dies of one cell, whenever it is tried; of another it makes an error."""

        def cell(self, index, known):
            if index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 2:
                raise ValueError("as\nasked")
            yield from super().cell(index, known)

    monkeypatch.setattr(dispatch, "Worker", Deadly)
    monkeypatch.setattr(dispatch, "RETRIES", 1)
    wrong = '[[method]]\nname = "memoir"\noptions = { layer = 9 }\n'
    (tmp_path / "plan.toml").write_text((tiny / "plan.toml").read_text() + wrong)
    told = run(tmp_path / "plan.toml", "--model", tiny / "one", "--engine", "ray", "--output", tmp_path, code=1)
    assert "not run: grace (steps=5, depth=0.0): its worker has died 2 times: out of memory?" in told.stderr
    assert "not run: grace (steps=5, depth=1.0): ValueError: as asked" in told.stderr
    assert "not run: memoir (layer=9): layer 9 is out of range" in told.stderr, "as the local engine tells it"
    assert told.stderr.splitlines()[-1].startswith("error: 3 runs of")
    assert [row.key for row in read(tmp_path)] == [local[i].key for i in (0, 1)]


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(tiny, cluster, tmp_path):
    shutil.copytree(tiny / "one", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    told = run(tiny / "plan.toml", "--model", tmp_path / "cut", "--engine", "ray", code=1)
    assert "the weights of" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_ctrl_c_keeps_what_is_there(tiny, cluster, tmp_path, monkeypatch):
    append = record.append

    def append_and_stop(path, rows):
        append(path, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "append", append_and_stop)
    told = run(tiny / "plan.toml", "--model", tiny / "one", "--engine", "ray", "--output", tmp_path, code=130)
    assert f"the rows found so far are in {tmp_path}, and the same command takes up from there" in told.stderr
    assert len(read(tmp_path)) == 1


def test_a_cluster_that_goes_is_told_in_one_line_and_the_rows_are_kept(tiny, environment, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'errata[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = ["start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"]
    start += [f"--port={address.rpartition(':')[2]}", f"--object-store-memory={100 * 2**20}"]
    bench = [sys.executable, "-m", "errata", "bench", tiny / "plan.toml", "--engine", "ray", "--output", tmp_path]
    with subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *start], stdout=subprocess.PIPE) as head:
        started = {}
        try:
            assert any(b"To terminate the Ray runtime" in line or b"--block" in line for line in head.stdout)
            command = [str(word) for word in (*bench, "--address", address)]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as asked:
                lines = iter(asked.stderr)
                assert next(lines).startswith("[1/")
                started = family(head.pid)
                os.kill(next(pid for pid, command in started.items() if "gcs_server" in command), signal.SIGKILL)
                last = list(lines)[-1]
                assert asked.wait() == 1
        finally:
            started = started | family(head.pid)
            head.terminate()
            for pid in started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert last.startswith("error: the Ray cluster at ") and f":{address.rpartition(':')[2]} is gone; the rows" in last
    assert 2 <= len(read(tmp_path)) <= 12


def family(pid):
    """The processes that another one has started, and those that these have, with their commands."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child: Path(f"/proc/{child}/cmdline").read_text()} | family(child)
    return found


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--cpus-each", 64), "no machine of the Ray cluster has 64 CPU"),
        (("--gpus-each", 0.5), "no machine of the Ray cluster has 1 CPU and 0.5 GPU"),
        (("--gpus-each", 1.5), "--gpus-each 1.5: a part of one GPU, or a whole number"),
    ],
)
def test_more_than_the_machines_have_is_refused(tiny, cluster, more, match):
    told = run(tiny / "plan.toml", "--engine", "ray", *more, code=2)
    assert match in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_part_of_a_gpu_is_room_for_more_workers():
    from errata.bench.cluster import Cluster

    class Pretend:
        def get_runtime_context(self):
            return type("Context", (), {"gcs_address": "localhost:1"})

        def nodes(self):
            machines = [({"CPU": 8.0, "GPU": 2.0}, True), ({"CPU": 3.0, "GPU": 4.0}, True), ({"CPU": 64.0}, True)]
            machines += [({"CPU": 9.0, "GPU": 9.0}, False)]
            return [{"Resources": resources, "Alive": alive} for resources, alive in machines]

    there = Cluster(Pretend())
    assert there.room(there.fitting(Share(gpus=0.5))) == 4 + 3
    assert there.room(there.fitting(Share(cpus=2, gpus=1))) == 2 + 1
    assert there.room(there.fitting(Share(cpus=4, gpus=0))) == 2 + 16
    assert there.fitting(Share()).gpus == 1, "by default, a GPU each where there are some"
    assert there.fitting(Share(device="cpu")).gpus == 0


def test_without_ray_one_line_says_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = run(tiny / "plan.toml", "--engine", "ray", code=2)
    assert told.stderr == "error: --engine ray needs 'ray', which is not installed: pip install 'errata[ray]'\n"


def test_options_of_the_cluster_are_for_it_alone(tiny):
    assert "--cpus-each is for --engine ray" in run(tiny / "plan.toml", "--cpus-each", 2, code=2).stderr
    assert "--engine ray is for a plan file" in run("--engine", "ray", code=2).stderr


@pytest.mark.parametrize(("address", "error"), [("ray://somewhere:10001", BadOption), ("somewhere", BadOption)])
def test_an_address_of_another_kind_is_refused(address, error, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", _pretend_ray())
    with pytest.raises(error, match="HOST:PORT of the head of a Ray cluster"), connected(address):
        pass


def test_an_address_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", _pretend_ray())
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ErrataError, match=r"no Ray cluster answers at 127\.0\.0\.1:9") as caught, connected():
        pass
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_nothing_is_sent_home(monkeypatch):
    module, asked = _pretend_ray(), []
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")

    def init(**options):
        asked.append((options, os.environ["RAY_USAGE_STATS_ENABLED"]))
        raise ConnectionError("in\ntwo lines")

    module.init = init
    with pytest.raises(ErrataError, match="no Ray cluster can be used at local: in two lines"), connected():
        pass
    ((options, usage),) = asked
    assert usage == "0"
    assert options["address"] == "local"
    assert options["include_dashboard"] is False


def _pretend_ray():
    module = ModuleType("ray")
    module.is_initialized = lambda: False
    module.exceptions = SimpleNamespace(RayError=RuntimeError)
    return module
