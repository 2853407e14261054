"""The hypernetwork of MEND: the checks of the specification, its statistics, and its files."""

import json

import pytest
import torch

import errata
from architectures import tiny
from errata.atlas.edits import edits
from errata.data import load as load_data
from errata.errors import BaseMismatch, DamagedFile, NewerFormat, UsageError
from errata.hypernetwork import MANIFEST, WEIGHTS, Hypernetwork, Rewriter, factors_of, feed_forward_maps, load, save
from errata.methods import make
from errata.objective import target_nll
from test_method_checks import with_options
from tiny import EDITS, tiny_llama


def factors(model, edit=EDITS[0]):
    memories = list(model.memories.values())
    rows = model.rows([(edit.prompt, edit.target)])
    return memories, factors_of(model, memories, rows, target_nll)[0]


def network_of(model, **options):
    return Hypernetwork([memory.site for memory in model.memories.values()], rank=4, **options)


def test_without_statistics_an_untrained_network_gives_the_step_size_times_the_raw_gradient():
    model = with_options("mend", blocks=1)
    memories, found = factors(model)
    changes = network_of(model, step=0.5)(found, [2.0] * len(memories))
    rows = model.rows([(EDITS[0].prompt, EDITS[0].target)])
    with model.lifted() as base:
        weights = [base.get_submodule(memory.site.path).weight for memory in memories]
        logits = base(input_ids=rows.ids, attention_mask=rows.attention).logits[rows.wanted]
        gradients = torch.autograd.grad(target_nll(logits, rows.labels, rows.row_of_label), weights)
    for change, gradient in zip(changes, gradients, strict=True):
        torch.testing.assert_close(change, -0.5 * 2.0 * gradient, rtol=1e-3, atol=1e-7)


def test_a_step_size_of_zero_changes_nothing():
    model = with_options("mend")
    memories, found = factors(model)
    assert not any(change.any() for change in network_of(model, step=0.0)(found, [1.0] * len(memories)))


def test_one_token_gives_a_change_of_rank_one():
    model = with_options("mend")
    memories, found = factors(model)
    network = network_of(model)
    network.observe(found)
    for change in network([(u[-1:], delta[-1:]) for u, delta in found], [1.0] * len(memories)):
        assert torch.linalg.matrix_rank(change.double(), rtol=1e-5) == 1


def test_running_statistics_are_those_of_all_factors_at_once():
    rewriter = Rewriter(3, 2, 2, 1, torch.Generator().manual_seed(0))
    x = torch.randn(23, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1
    for part in x.split([4, 1, 11, 7]):
        rewriter.observe(*part.split([3, 2], dim=1))
    torch.testing.assert_close(rewriter.mean, x.mean(0))
    torch.testing.assert_close(rewriter.squares / (rewriter.count - 1), x.var(0))
    u, delta = rewriter(*x.split([3, 2], dim=1), 0)
    torch.testing.assert_close(torch.cat([u, delta], 1), (x - x.mean(0)) / x.std(0))


def test_maps_of_one_shape_share_a_network_and_have_scales_of_their_own():
    model = with_options("mend", blocks=2)
    network = network_of(model)
    shapes = {(memory.site.in_features, memory.site.out_features) for memory in model.memories.values()}
    assert len(network.rewriters) == len(shapes) == 2
    assert sum(len(rewriter.scale) for rewriter in network.rewriters) == len(model.memories) == 6


def test_the_maps_of_the_last_blocks_are_found_in_any_architecture():
    assert [site.layer for site in feed_forward_maps(tiny_llama(), 2)] == [1, 1, 1, 2, 2, 2]
    assert [site.path.rpartition(".")[2] for site in feed_forward_maps(tiny("gpt2"), 1)] == ["c_fc", "c_proj"]
    (fused,) = feed_forward_maps(tiny("mixtral"), 1)
    assert fused.role == "moe_block"


def test_a_saved_network_is_the_same_when_it_is_loaded(tmp_path):
    model = with_options("mend")
    memories, found = factors(model)
    network = network_of(model, seed=3)
    network.observe(found)
    save(network, tmp_path, {"name": "it", "fingerprint": "f"}, {})
    again = load(tmp_path, "f", "it")
    units = [1.0] * len(memories)
    assert all(torch.equal(a, b) for a, b in zip(network(found, units), again(found, units), strict=True))


def test_files_that_cannot_be_used_are_refused_in_a_line(tmp_path):
    with pytest.raises(UsageError, match="errata train mend"):
        load(tmp_path, "f", "it")
    save(network_of(with_options("mend")), tmp_path, {"name": "another", "fingerprint": "g"}, {})
    with pytest.raises(BaseMismatch, match="was trained for another, whose weights are not those of it"):
        load(tmp_path, "f", "it")
    (tmp_path / WEIGHTS).write_bytes(b"short")
    with pytest.raises(DamagedFile, match=WEIGHTS):
        load(tmp_path, "g", "it")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(NewerFormat, match="99"):
        load(tmp_path, "g", "it")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DamagedFile, match="is damaged"):
        load(tmp_path, "g", "it")


def test_the_committed_network_makes_an_edit_of_the_atlas(root):
    """That of `plans/atlas.toml`: it fits the model that errata ships."""
    base, tokenizer = errata.load("atlas")
    model = errata.EditedModel(base, tokenizer, make("mend", hypernetwork=str(root / "testbeds" / "mend-atlas")))
    receipt = model.edit(edits("test")[0])
    assert receipt.probability_after > 0.5 > receipt.probability_before


def test_the_committed_network_fits_the_model_of_real_facts(root, real_data):
    """That of `benchmarks/results/zsre`."""
    base, tokenizer = errata.load(str(real_data / "models" / "facts-8m"))
    editor = make("mend", hypernetwork=str(root / "testbeds" / "mend-zsre"))
    (edit,) = load_data(f"zsre:{real_data / 'zsre' / 'zsre_edit_1037.json'}", limit=1).edits
    receipt = errata.EditedModel(base, tokenizer, editor).edit(edit)
    assert receipt.probability_after > 0.5 > receipt.probability_before
