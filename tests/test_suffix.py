"""Suffix runs beside other memories and other code."""

import pytest
import torch

from errata import methods
from errata.errors import NoSite
from errata.memory import Delta, LowRank
from errata.model import EditedModel
from errata.sites import site_at
from tiny import EDITS, tiny_llama, tiny_tokenizer


@pytest.fixture
def model() -> EditedModel:
    return EditedModel(tiny_llama(), tiny_tokenizer())


def test_a_memory_that_is_not_installed_is_refused(model: EditedModel) -> None:
    rows = model.tokens.rows([(EDITS[0].prompt, EDITS[0].target)])
    with pytest.raises(NoSite, match="not installed"):
        model.suffix(Delta(site_at(model.base, 0)), rows)


def test_memories_before_it_are_recorded_and_memories_after_it_run(model: EditedModel) -> None:
    site = site_at(model.base, 1)
    before, here, after = Delta(site), Delta(site), LowRank(site)
    for name, memory in (("before", before), ("here", here), ("after", after)):
        model.install(name, memory)
    generator = torch.Generator().manual_seed(0)
    before.put({"shift": 0.1 * torch.randn(32, 64, generator=generator)})
    after.put({"keys": torch.randn(2, 64, generator=generator), "values": torch.randn(2, 32, generator=generator)})
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS[:2]])
    with torch.no_grad(), model.routing.prompt_is(rows.prompt):
        full = model(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False).logits[rows.wanted]
        torch.testing.assert_close(model.suffix(here, rows).logits(), full)


def test_only_the_layers_above_are_run_again(model: EditedModel) -> None:
    memory = Delta(site_at(model.base, 1))
    model.install("shift", memory)
    suffix = model.suffix(memory, model.tokens.rows([(EDITS[0].prompt, EDITS[0].target)]))
    ran: list[int] = []
    for i, layer in enumerate(model.base.model.layers):
        layer.self_attn.q_proj.register_forward_hook(lambda *_, i=i: ran.append(i))
    suffix.logits()
    assert ran == [2]


def test_feed_forward_networks_see_what_moves_alone(model: EditedModel) -> None:
    memory = Delta(site_at(model.base, 0))
    model.install("shift", memory)
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])
    suffix = model.suffix(memory, rows, touched=rows.wanted)
    seen: list[int] = []
    model.base.model.layers[1].mlp.up_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0][..., 0].numel())
    )
    suffix.logits()
    suffix.logits()
    after = rows.wanted.cumsum(1).bool() & rows.attention.bool()
    assert seen == [rows.ids.numel(), int(after.sum())]


def test_a_gated_memory_above_reads_the_whole_row() -> None:
    model = EditedModel(tiny_llama(), tiny_tokenizer(), methods.make("grace", steps=1))
    model.edit(EDITS[0])
    gate = next(iter(model.memories.values()))
    memory = Delta(site_at(model.base, 0))
    assert gate.site.layer > 0
    model.install("shift", memory)
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS[:2]])
    whole, part = model.suffix(memory, rows), model.suffix(memory, rows, touched=rows.wanted)
    for _ in range(2):
        torch.testing.assert_close(part.logits(), whole.logits())


def test_logits_are_computed_at_target_positions_only(model: EditedModel) -> None:
    memory = Delta(site_at(model.base, 2))
    model.install("shift", memory)
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])
    suffix = model.suffix(memory, rows)
    seen: list[tuple[int, ...]] = []
    inner = model.base.lm_head.forward
    model.base.lm_head.forward = lambda h: (seen.append(tuple(h.shape)), inner(h))[1]
    logits = suffix.logits()
    assert seen == [(len(rows.labels), 32)]
    assert logits.shape == (len(rows.labels), 400)
