"""Models larger than one device: laid over several, or split over processes. Edits are those of the whole model."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from errata import loading
from errata.errors import BadOption, MissingExtra
from errata.model import EditedModel
from errata.parallel import main_device
from tiny import EDITS, tiny_llama, write_tiny

TESTS = Path(__file__).resolve().parent
METHODS = ("memoir", "wise", "memit", "lora")
PROMPTS = [edit.prompt for edit in EDITS]
pytestmark = pytest.mark.xdist_group("parallel")  # the processes of `split` are started once


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("parallel") / "tiny"
    return write_tiny(path)


@pytest.fixture(scope="module")
def split(saved):
    """What three processes have made of the model: one alone (None), and two between which it is split (0, 1)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
    }
    two = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    each = [alone, *(alone | two | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))]
    command = [sys.executable, str(TESTS / "split.py"), str(saved), ",".join(METHODS), str(saved.parent)]
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for env in each
    ]
    for process in started:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
    return {rank: json.loads((saved.parent / f"{rank}.json").read_text()) for rank in (None, 0, 1)}


def test_each_process_holds_a_part_of_the_weights_and_knows_which_model_it_is(split):
    assert [split[rank]["held"] for rank in (None, 0, 1)] == [[32, 64], [32, 32], [32, 32]]
    assert split[0]["fingerprint"] == split[1]["fingerprint"] == split[None]["fingerprint"]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_an_edit_of_a_model_that_is_split_is_that_of_the_whole_one(saved, split, method):
    alone, first, second = (split[rank][method] for rank in (None, 0, 1))
    assert first == second
    assert (first["before"], first["after"]) == (alone["before"], alone["after"])
    assert first["before"] != first["after"]
    assert first["probability"] == pytest.approx(alone["probability"], rel=1e-4)
    alone, first, second = (load_file(saved.parent / f"{method}-{rank}.safetensors") for rank in (None, 0, 1))
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), f"{name}: the same bits in both processes"
        if tensor.is_floating_point():
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
        else:
            assert torch.equal(first[name], tensor), f"{name}: masks and counts are exact"


def test_a_map_that_is_split_by_its_outputs_is_refused(split):
    """LoRA stands beside the projections of attention, of whose outputs a process has some alone."""
    assert "before" in split[None]["lora"]
    for rank in (0, 1):
        assert split[rank]["lora"] == {
            "refused": "model.layers.0.self_attn.q_proj is split over processes by its outputs; load the model with"
            " device_map instead of tp_plan"
        }


@pytest.mark.parametrize("method", ["memoir", "memit"])
def test_a_model_that_is_partly_on_disk_is_edited_as_one_in_memory(saved, tmp_path, method):
    pytest.importorskip("accelerate", reason="device_map needs the extra large")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    answers = []
    for where in ({"device": "cpu"}, {"device_map": places}):
        base, tokenizer = loading.load(str(saved), **where)
        assert base.get_parameter("model.layers.2.mlp.down_proj.weight").is_meta == ("device_map" in where)
        model = EditedModel(base, tokenizer, method, prefixes=())
        model.edit(EDITS[0])
        tensors = {name: memory.tensors() for name, memory in model.memories.items()}
        answers.append((model.answer(PROMPTS, 4), tensors))
    (said, whole), (said_too, laid) = answers
    assert said == said_too
    for name, tensors in whole.items():
        assert all(torch.equal(tensor, laid[name][leaf]) for leaf, tensor in tensors.items())


def test_a_map_over_the_devices_that_there_are(saved):
    pytest.importorskip("accelerate", reason="device_map needs the extra large")
    base, tokenizer = loading.load(str(saved), device="auto")
    first = "cuda" if torch.cuda.is_available() else "cpu"
    assert {weight.device.type for weight in base.parameters()} == {first}, "it fits"
    assert EditedModel(base, tokenizer, "memoir").device.type == first


def test_inputs_go_to_the_first_gpu_of_a_map():
    base = tiny_llama(layers=1)
    assert main_device(base) == torch.device("cpu")
    base.hf_device_map = {"model.embed_tokens": "cpu", "model.layers": 1, "lm_head": 0}
    assert main_device(base) == torch.device("cuda", 1), "where accelerate puts what is not on a GPU when it computes"
    base.hf_device_map = {"": "disk"}
    assert main_device(base) == torch.device("cpu")


def test_what_excludes_one_another_is_refused(saved):
    with pytest.raises(BadOption, match="exclude one another"):
        loading.load(str(saved), device="cpu", device_map="auto")
    with pytest.raises(BadOption, match="exclude one another"):
        loading.load(str(saved), device="auto", tp_plan="auto")


def test_a_split_needs_several_processes(saved, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(BadOption, match="torchrun --nproc-per-node N"):
        loading.load(str(saved), tp_plan="auto")


def test_a_device_map_without_accelerate_says_how_to_get_it(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"pip install 'errata\[large\]'"):
        loading.load(str(saved), device_map="auto")
