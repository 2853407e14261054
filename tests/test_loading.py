"""Loading: models by name, and one clear error for each way in which a model cannot be had."""

import json
import shutil

import pytest
import torch

from errata import loading
from errata.checkpoint import fingerprint
from errata.errors import BadOption, DamagedFile, UnknownName, UsageError
from tiny import tiny_llama, tiny_tokenizer, write_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a tiny model and its tokenizer."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    return write_tiny(path)


@pytest.fixture
def copied(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_directory_is_loaded_with_its_tokenizer(saved):
    model, tokenizer = loading.load(str(saved))
    assert not model.training
    assert tokenizer("Snow is")["input_ids"][0] == tokenizer.bos_token_id
    assert model.config._name_or_path == str(saved.resolve())


def test_weights_are_those_of_the_file(saved):
    model, _ = loading.load(str(saved))
    for (name, got), want in zip(model.named_parameters(), tiny_llama().parameters(), strict=True):
        assert torch.equal(got, want), name


@pytest.fixture
def half(tmp_path):
    path = tmp_path / "half"
    tiny_llama().to(torch.bfloat16).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_small_16_bit_models_compute_in_float32_on_a_cpu(half):
    model, _ = loading.load(str(half), device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32


def test_a_dtype_that_is_asked_for_is_given(half):
    model, _ = loading.load(str(half), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_fingerprint_is_that_of_the_checkpoint_whatever_the_dtype(half):
    first, _ = loading.load(str(half), dtype="bfloat16")
    second, _ = loading.load(str(half), dtype="float32")
    assert fingerprint(first) == fingerprint(second)


def test_an_unknown_dtype_is_refused(saved):
    with pytest.raises(BadOption, match="bfloat16"):
        loading.load(str(saved), dtype="fp8")


@pytest.mark.parametrize("name", ["atals", "no/such-model", "no-such-model"])
def test_an_unknown_hub_name(name):
    with pytest.raises(UnknownName, match="no model is called") as caught:
        loading.load(name)
    assert "\n" not in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "a/b/c", ""])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(UnknownName, match="no such directory"):
        loading.load(name)


def test_an_installation_without_the_embedded_model(monkeypatch, tmp_path):
    monkeypatch.setattr("errata.atlas.model_path", lambda: tmp_path / "model")
    with pytest.raises(UsageError, match="lacks the atlas model"):
        loading.load("atlas")


def test_the_embedded_model_keeps_its_name(monkeypatch, saved):
    monkeypatch.setattr("errata.atlas.model_path", lambda: saved)
    model, _ = loading.load("atlas")
    assert model.config._name_or_path == "atlas"
    assert len(loading.irrelevant("atlas")) > 100


def test_a_misspelt_atlas_is_guessed():
    with pytest.raises(UnknownName, match="Did you mean 'atlas'"):
        loading.load("atals")


def test_a_file_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="is a file"):
        loading.load(str(path))


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json"):
        loading.load(str(tmp_path))


def test_a_directory_without_a_tokenizer(copied):
    for path in copied.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="tokenizer"):
        loading.load(str(copied))


def test_a_directory_without_weights(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="can be loaded"):
        loading.load(str(copied))


@pytest.mark.parametrize("keep", [0, 5, 100, -1000])
def test_truncated_weights(copied, keep):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFile, match="weights") as caught:
        loading.load(str(copied))
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DamagedFile, match=r"incomplete.*layers\.0\.mlp\.down_proj"):
        loading.load(str(copied))


def test_weights_of_another_shape(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(DamagedFile):
        loading.load(str(copied))


def test_a_configuration_that_is_no_language_model(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "no-such-type"}))
    with pytest.raises(UsageError):
        loading.load(str(copied))


def test_transformers_is_quiet_inside_and_as_it_was_outside(saved, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loading.load(str(saved))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_sites_are_known_without_weights(copied):
    from errata.sites import find_sites

    (copied / "model.safetensors").unlink()
    assert [site.layer for site in find_sites(loading.outline(str(copied)))] == [0, 1, 2]


def test_the_public_name(saved):
    import errata

    assert errata.load is loading.load
