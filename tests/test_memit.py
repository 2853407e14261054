"""MEMIT, MEMIT-seq and MEMIT-MASS: the (i) list of methods.md, on a model; and the spread over layers."""

import pytest
import torch
from torch import Tensor

from errata.associative import Associative
from errata.edit import Edit
from errata.errors import BadOption
from errata.methods import make
from errata.model import EditedModel
from errata.spread import look, weighted
from test_method_checks import with_options
from tiny import EDITS, tiny_llama, tiny_tokenizer


def stream(model: EditedModel, edit: Edit, layer: int) -> Tensor:
    """The residual stream after a layer, at the place of an edit."""
    memory = next(m for m in model.memories.values() if isinstance(m, Associative))
    return look(model, model.editor.fact(model, edit, subject=True), memory, layer).stream


def shifts(model: EditedModel) -> list[Tensor]:
    """Delta of every layer, (model, ff)."""
    return [m.values.mT @ m.keys for m in model.memories.values() if isinstance(m, Associative)]


# -- the spread --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "options", "layers"), [
    (3, {}, [1]), (3, {"layer": 2, "spread": 2}, [1, 2]), (3, {"layer": 1, "spread": 9}, [0, 1]), (6, {"layer": 4}, [4]),
])  # fmt: skip
def test_the_layers_of_an_edit_end_at_layer(blocks: int, options: dict[str, int], layers: list[int]) -> None:
    model = EditedModel(tiny_llama(layers=blocks), tiny_tokenizer(), make("memit", **options))
    assert list(model.memories) == [f"memit.{layer}" for layer in layers]


def test_the_layers_of_published_models_are_the_published_ones() -> None:
    editor = make("memit")
    for (kind, blocks), layers in {
        ("llama", 32): range(4, 9), ("gpt2", 48): range(13, 18), ("gptj", 28): range(3, 9)
    }.items():  # fmt: skip
        model = EditedModel(tiny_llama(layers=blocks), tiny_tokenizer())
        model.base.config.model_type = kind
        assert [site.layer for site in editor.run_of_sites(model)] == list(layers)


def test_the_last_layer_takes_all_that_is_missing() -> None:
    """Without ridge and with one context, the stream after the last layer is z, whatever the layers below did."""
    for spread in (1, 2, 3):
        model = with_options("memit", layer=2, spread=spread, contexts=0, ridge=1e-9, place="subject")
        before = stream(model, EDITS[0], 2)
        model.edit(EDITS[0])
        top = model.memories["memit.2"]
        alone = with_options("memit", layer=2, spread=1, contexts=0, ridge=1e-9, place="subject")
        alone.edit(EDITS[0])
        torch.testing.assert_close(stream(model, EDITS[0], 2), stream(alone, EDITS[0], 2), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(stream(model, EDITS[0], 2), before, rtol=1e-3, atol=1e-3)
        assert len(top.keys) == 1


def test_the_bare_prompt_weighs_half() -> None:
    keys = torch.tensor([[4.0], [1.0], [3.0]])
    assert weighted(keys).tolist() == [3.0]
    assert weighted(keys[:1]).tolist() == [4.0]


def test_spread_of_no_layer_is_refused() -> None:
    with pytest.raises(BadOption, match="memit: spread=0"):
        make("memit", spread=0)


# -- MEMIT -------------------------------------------------------------------------------------------------------------


def test_a_large_lambda_changes_nothing() -> None:
    free, bound = with_options("memit"), with_options("memit", ridge=1e9)
    for model in (free, bound):
        model.edit(EDITS[0])
    assert float(shifts(bound)[0].norm()) < 1e-6 * float(shifts(free)[0].norm())


def test_lambda_itself_is_an_option() -> None:
    one, other = with_options("memit", ridge=2.0), with_options("memit", strength=2.0 * 64)
    for model in (one, other):
        model.edit(EDITS[0])
    assert torch.equal(shifts(one)[0], shifts(other)[0])


def test_the_order_of_a_batch_does_not_matter() -> None:
    one, other = with_options("memit", layer=1, spread=2), with_options("memit", layer=1, spread=2)
    one.edit_batch(EDITS)
    other.edit_batch(EDITS[::-1])
    for a, b in zip(shifts(one), shifts(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_with_history_an_earlier_edit_is_moved_less() -> None:
    moved = []
    for history in (False, True):
        model = with_options("memit", history=history, ridge=0.01, place="subject")
        model.edit(EDITS[0])
        memory = model.memories["memit.1"]
        key = weighted(look(model, model.editor.fact(model, EDITS[0], subject=True), memory, 1).keys)
        before = (key @ memory.keys.mT) @ memory.values
        model.edit_many(EDITS[1:])
        moved.append(float(((key @ memory.keys.mT) @ memory.values - before).norm() / before.norm()))
        assert bool(memory.counts.any()) == history
    assert moved[1] < moved[0]


# -- MEMIT-MASS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1, 2])
def test_mass_in_a_stream_is_mass_in_one_batch(spread: int) -> None:
    stream_, batch = (with_options("memit_mass", layer=1, spread=spread) for _ in range(2))
    stream_.edit_many(EDITS)
    batch.edit_batch(EDITS)
    for a, b in zip(shifts(stream_), shifts(batch), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_mass_goes_on_from_edits_whose_keys_were_not_saved() -> None:
    whole, older = with_options("memit_mass"), with_options("memit_mass")
    for model in (whole, older):
        model.edit_many(EDITS[:2])
    notes = older.memories["memit_mass.values"]
    notes.put({"keys": notes["keys"][:0]})
    for model in (whole, older):
        model.edit_many(EDITS[2:])
    torch.testing.assert_close(shifts(older)[0], shifts(whole)[0], rtol=1e-4, atol=1e-6)


def test_mass_of_one_batch_is_memit_of_one_batch() -> None:
    one, other = with_options("memit_mass"), with_options("memit")
    for model in (one, other):
        model.edit_batch(EDITS)
    torch.testing.assert_close(shifts(one)[0], shifts(other)[0], rtol=1e-4, atol=1e-6)


def test_mass_forgets_the_edit_that_is_replaced() -> None:
    replaced, alone = with_options("memit_mass"), with_options("memit_mass")
    other = Edit(EDITS[0].prompt, "Sondo", subject=EDITS[0].subject)
    replaced.edit_many([EDITS[0], EDITS[1], other])
    alone.edit_many([EDITS[1], other])
    torch.testing.assert_close(shifts(replaced)[0], shifts(alone)[0], rtol=1e-4, atol=1e-6)
    assert replaced.memories["memit_mass.values"]["owners"].tolist() == [1, 2]
