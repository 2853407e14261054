"""What holds on every architecture: the site is found, and a suffix run is the full forward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from architectures import CORE, SIZES, tiny
from errata.edit import Edit
from errata.errors import BadOption, NoSite, TooLong
from errata.memory import Delta, add
from errata.model import EditedModel
from errata.objective import target_nll
from errata.sites import find_sites, relative_layer, site_at
from errata.tokens import positions
from test_every_method import fresh
from tiny import EDITS, tiny_tokenizer

SITES = {
    "llama": "model.layers.{}.mlp.down_proj", "mistral": "model.layers.{}.mlp.down_proj",
    "qwen2": "model.layers.{}.mlp.down_proj", "qwen3": "model.layers.{}.mlp.down_proj",
    "gemma2": "model.layers.{}.mlp.down_proj", "gemma3_text": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj", "gptj": "transformer.h.{}.mlp.fc_out",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h", "phi": "model.layers.{}.mlp.fc2",
    "opt": "model.decoder.layers.{}.fc2", "bloom": "transformer.h.{}.mlp.dense_4h_to_h",
    "falcon": "transformer.h.{}.mlp.dense_4h_to_h", "mixtral": "model.layers.{}.mlp",
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_site_is_found_on_meta_with_the_default_configuration(kind: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind]())
    sites = find_sites(model)
    assert len(sites) == model.config.num_hidden_layers
    assert sites[1].path == SITES[kind].format(1)
    assert sites[1].out_features == model.config.hidden_size
    assert sites[1].role == ("moe_block" if kind == "mixtral" else "ffn_out")


def test_what_cannot_be_resolved_lists_what_was_seen() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(8, 8)
            self.up = nn.Linear(8, 32)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.blocks = nn.ModuleList([Block(), Block()])

    with pytest.raises(NoSite, match="seen: attention 8->8, up 8->32"):
        find_sites(Model())
    with pytest.raises(NoSite, match="no list of blocks"):
        find_sites(nn.Linear(2, 2))


def test_a_layer_out_of_range_is_refused() -> None:
    with pytest.raises(BadOption, match="layer 3 is out of range: the model has layers 0 to 2"):
        site_at(tiny("llama"), 3)


def test_relative_depth_gives_the_published_layer() -> None:
    assert relative_layer(27 / 31, 32) == 27
    assert relative_layer(27 / 31, 6) == 4
    assert relative_layer(1.0, 1) == 0


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_suffix_loss_and_gradient_are_those_of_the_full_forward(kind: str, layer: int) -> None:
    model = EditedModel(tiny(kind), tiny_tokenizer())
    memory = Delta(site_at(model.base, layer))
    model.install("shift", memory)
    generator = torch.Generator().manual_seed(1)
    shift = (0.05 * torch.randn(memory.shift.shape, generator=generator)).requires_grad_()
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])

    memory.put({"shift": shift})
    with model.routing.prompt_is(rows.prompt):
        full = model.base(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits[rows.wanted]
    full_loss = target_nll(full, rows.labels, rows.row_of_label)
    (full_gradient,) = torch.autograd.grad(full_loss, shift)

    memory.put({"shift": torch.zeros_like(memory.shift)})
    suffix = model.suffix(memory, rows)
    short = suffix.logits(lambda a, y: add(y, F.linear(a, shift)))
    loss = target_nll(short, rows.labels, rows.row_of_label)
    (gradient,) = torch.autograd.grad(loss, shift)

    torch.testing.assert_close(short, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, full_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, full_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SIZES)
def test_what_is_before_the_touched_positions_is_not_worked_out_again(kind: str) -> None:
    model = EditedModel(tiny(kind), tiny_tokenizer())
    memory = Delta(site_at(model.base, 0))
    model.install("shift", memory)
    generator = torch.Generator().manual_seed(1)
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])
    whole, part = model.suffix(memory, rows), model.suffix(memory, rows, touched=rows.wanted)
    for _ in range(2):
        delta = torch.randn(memory.site.out_features, generator=generator).requires_grad_()
        losses, gradients = [], []
        for suffix in (whole, part):
            logits = suffix.logits(lambda _, y, delta=delta: add(y, rows.wanted[..., None] * delta))
            losses.append(target_nll(logits, rows.labels, rows.row_of_label))
            gradients += torch.autograd.grad(losses[-1], delta)
        torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(SIZES) - set(CORE)))
@pytest.mark.parametrize("method", ["memoir", "grace", "rome"])
def test_one_can_be_edited_that_the_conformance_suite_leaves_out(method: str, kind: str) -> None:
    model = fresh(method, kind)
    receipts = model.edit_many(EDITS[:2])
    assert all(receipt.probability_after > receipt.probability_before for receipt in receipts)
    prompts = [*(edit.prompt for edit in EDITS), "Snow is"]
    assert model.answer(prompts, 3) == [model.answer([prompt], 3)[0] for prompt in prompts]


@pytest.mark.parametrize("kind", SIZES)
def test_a_text_is_too_long_where_positions_are_looked_up(kind: str) -> None:
    base = tiny(kind)
    ids = torch.randint(5, 300, (1, 130), generator=torch.Generator().manual_seed(0))
    long = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    most = positions(base)
    model = EditedModel(base, tiny_tokenizer(), method="ft_l")
    if most is None:
        assert base(**long).logits.shape[1] == 130
        assert model.generate(**long, max_new_tokens=3, do_sample=False).shape[1] > 130
        return
    assert most == 128
    with pytest.raises((IndexError, RuntimeError)):
        base(**long)
    with pytest.raises(TooLong):
        model.edit(Edit("the capital " * 70, "Melpo"))
    assert model.history == []
    whole = {name: values[:, :most] for name, values in long.items()}
    assert model.generate(**whole, max_new_tokens=3, do_sample=False).shape[1] == most + 1


@pytest.mark.parametrize("kind", SIZES)
def test_sites_are_the_same_beside_memories(kind: str) -> None:
    model = EditedModel(tiny(kind), tiny_tokenizer())
    before = model.sites
    model.install("shift", Delta(before[1]))
    assert model.sites == before


@pytest.mark.parametrize("kind", CORE)
def test_suffix_leaves_the_model_as_it_was(kind: str) -> None:
    model = EditedModel(tiny(kind), tiny_tokenizer())
    memory = Delta(site_at(model.base, 1))
    model.install("shift", memory)
    rows = model.tokens.rows([(EDITS[0].prompt, EDITS[0].target)])
    inputs = {"input_ids": rows.ids, "attention_mask": rows.attention}
    before = model.base(**inputs).logits
    model.suffix(memory, rows).logits()
    assert torch.equal(model.base(**inputs).logits, before)
    assert not any("forward" in vars(module) for module in model.base.modules())
