"""MEMOIR's ablations: what an edit is written through, and how it is found again (methods.md, section 1)."""

from pathlib import Path

import pytest
import torch

from architectures import tiny
from errata.edit import Edit
from errata.errors import BadOption
from errata.masks import overlaps, unpack
from errata.methods import make
from errata.model import EditedModel
from errata.residual_memory import ResidualMemory
from test_every_method import UNRELATED, edited, logits, memories_of
from test_method_checks import memory_of, with_options
from tiny import EDITS, tiny_tokenizer

REPHRASED = tuple(rephrase for edit in EDITS for rephrase in edit.rephrases)
PROMPTS = (*(edit.prompt for edit in EDITS), *REPHRASED, *UNRELATED)


def made(**options: object) -> EditedModel:
    """A tiny model with all of `EDITS`, by MEMOIR with these options."""
    model = with_options("memoir", **options)
    model.edit_many(EDITS)
    return model


def memory(model: EditedModel) -> ResidualMemory:
    found = memory_of(model, ResidualMemory)
    assert isinstance(found, ResidualMemory)
    return found


def decided(model: EditedModel, prompt: str) -> tuple[bool, int]:
    """Whether a prompt is answered, and the edit whose mask is nearest."""
    logits(model, prompt)
    decision = model.routing.decisions["memoir"]
    return bool(decision.rows[0]), int(memory(model).owners[decision.pick[0]])


def written(model: EditedModel, edit: int) -> torch.Tensor:
    """(ff,) bool: the columns of the edit with this stored mask."""
    found = memory(model)
    return unpack(found.through(torch.tensor(edit)), found.site.in_features)


def test_nothing_is_stored_by_default_that_only_an_ablation_needs() -> None:
    assert set(memory(edited("memoir", "llama")).tensors()) == {
        "weight", "permutation", "background", "masks", "distinct", "owners", "irrelevant", "noise", "threshold", "moment",
        "closed", "rounds",
    }  # fmt: skip


# -- no permutation ----------------------------------------------------------------------------------------------------


def test_without_the_permutation_an_edit_writes_through_its_largest_features() -> None:
    plain, permuted = made(permutation=False, feature="last"), made(feature="last")
    ((a, _, seen),) = plain.read(memory(plain), [EDITS[0].prompt])
    with plain.routing.reading(seen):
        centred = memory(plain).features(a)[0, 1] - memory(plain).background[1]
    largest = centred.abs().topk(memory(plain).active).indices
    assert sorted(written(plain, 0).nonzero().flatten().tolist()) == sorted(largest.tolist())
    images = memory(permuted).permutation[largest]
    assert sorted(written(permuted, 0).nonzero().flatten().tolist()) == sorted(images.tolist())


def test_without_the_permutation_prompts_are_routed_as_with_it() -> None:
    plain, permuted = made(permutation=False), edited("memoir", "llama")
    assert [decided(plain, prompt) for prompt in PROMPTS] == [decided(permuted, prompt) for prompt in PROMPTS]
    assert not torch.equal(memory(plain).weight, memory(permuted).weight)


# -- random masks ------------------------------------------------------------------------------------------------------


def test_a_random_mask_is_found_by_its_own_prompt_alone() -> None:
    model = made(mask="random")
    for i, edit in enumerate(EDITS):
        assert decided(model, edit.prompt) == (True, i)
    base = EditedModel(tiny("llama"), tiny_tokenizer())
    for prompt in (*REPHRASED, *UNRELATED):
        assert not decided(model, prompt)[0]
        assert torch.equal(logits(model, prompt), logits(base, prompt)), "a rephrasing is the pretrained model's"


def test_random_masks_have_n_features_of_which_they_share_n_by_chance() -> None:
    model = made(mask="random")
    columns = torch.stack([written(model, i) for i in range(len(EDITS))])
    active, width = memory(model).active, memory(model).site.in_features
    assert columns.sum(1).tolist() == [active] * len(EDITS)
    shared = (columns[:, None] & columns[None]).sum(-1).float()
    others = shared[~torch.eye(len(EDITS), dtype=torch.bool)] / active
    assert abs(float(others.mean()) - active / width) < 0.12
    assert not memory(model).weight[:, ~columns.any(0)].any(), "nothing is written outside"


def test_random_masks_do_not_depend_on_the_features() -> None:
    """Another prompt in the same place of the stream is written through the same columns."""
    one, other = with_options("memoir", mask="random"), with_options("memoir", mask="random")
    one.edit(EDITS[0])
    other.edit(EDITS[3])
    assert torch.equal(written(one, 0), written(other, 0))
    assert not torch.equal(memory(one).masks, memory(other).masks)


def test_random_columns_are_routed_as_always() -> None:
    random, default = made(mask="random_columns"), edited("memoir", "llama")
    assert [decided(random, prompt) for prompt in PROMPTS] == [decided(default, prompt) for prompt in PROMPTS]
    assert torch.equal(memory(random).masks, memory(default).masks)
    assert not torch.equal(written(random, 0), written(default, 0))


def test_a_new_target_of_the_same_prompt_is_written_through_its_random_mask_again() -> None:
    model = with_options("memoir", mask="random")
    model.edit(EDITS[0])
    before = written(model, 0)
    model.edit(Edit(EDITS[0].prompt, "Sondo"))
    assert torch.equal(written(model, 0), before)
    assert (len(memory(model).written), memory(model).owners.tolist()) == (1, [1])
    assert model.answer([EDITS[0].prompt])[0].startswith("Sondo")


# -- the threshold -----------------------------------------------------------------------------------------------------


def test_the_raw_overlap_is_the_share_of_features() -> None:
    model = made(overlap="raw")
    (mask, *_) = masks = memory(model).masks
    assert torch.equal(memory(model).score(mask, mask), overlaps(mask, mask) / memory(model).active)
    chance = memory(model).active / memory(model).site.in_features
    corrected = (memory(model).score(mask, mask) - chance) / (1 - chance)
    torch.testing.assert_close(memory(edited("memoir", "llama")).score(mask, masks[0]), corrected)


def test_a_raw_threshold_decides_as_the_corrected_one_that_it_is() -> None:
    chance = 18 / 64
    raw, corrected = made(overlap="raw", tau=0.6), made(tau=(0.6 - chance) / (1 - chance))
    found = [decided(raw, prompt) for prompt in PROMPTS]
    assert found == [decided(corrected, prompt) for prompt in PROMPTS]
    assert {answered for answered, _ in found} == {True, False}


def test_a_calibrated_threshold_decides_alike_on_both_scales() -> None:
    raw, corrected = made(overlap="raw"), edited("memoir", "llama")
    assert [decided(raw, prompt) for prompt in PROMPTS] == [decided(corrected, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("overlap", ["raw", "corrected"])
def test_without_conditional_activation_every_prompt_is_answered(overlap: str) -> None:
    model = made(tau=-1.0, overlap=overlap)
    assert all(decided(model, prompt)[0] for prompt in PROMPTS)


# -- several masks an edit ---------------------------------------------------------------------------------------------


def test_prefixed_prompts_are_ways_to_the_same_columns() -> None:
    model, default = made(prefixed=True, reworded=0.0), edited("memoir", "llama")
    assert memory(model).masks.shape[1] == 4 * len(EDITS), "the bare prompt, and behind each of three prefixes"
    assert len(memory(model).written) == len(EDITS)
    assert torch.equal(memory(model).masks[:, ::4], memory(default).masks)
    for i, edit in enumerate(EDITS):
        for context in model.contexts(edit.prompt):
            assert decided(model, context) == (True, i)
            decision = model.routing.decisions["memoir"]
            assert float(decision.score[0]) == pytest.approx(1.0)
            assert torch.equal(memory(model).through(decision.pick[0]), memory(default).masks[0, i])


def test_a_new_target_takes_all_masks_of_its_prompt_over() -> None:
    model = with_options("memoir", prefixed=True)
    model.edit_many(EDITS[:2])
    model.edit(Edit(EDITS[0].prompt, "Sondo"))
    assert memory(model).owners.tolist() == [2] * 4 + [1] * 4


# -- all of them -------------------------------------------------------------------------------------------------------

ABLATIONS = [
    {"mask": "random"}, {"mask": "random_columns", "prefixed": True}, {"permutation": False, "overlap": "raw"},
    {"size": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_what_was_saved_is_loaded_and_goes_on_bit_for_bit(options: dict[str, object], tmp_path: Path) -> None:
    whole, half = made(**options), with_options("memoir", **options)
    half.edit_many(EDITS[:2])
    half.save_pretrained(tmp_path)
    resumed = EditedModel.from_pretrained(tmp_path, base=tiny("llama"), tokenizer=tiny_tokenizer())
    for prompt in PROMPTS:
        assert torch.equal(logits(resumed, prompt), logits(half, prompt))
    resumed.edit_many(EDITS[2:])
    assert memories_of(resumed) == memories_of(whole)


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_a_batch_of_prompts_is_routed_as_each_alone(options: dict[str, object]) -> None:
    model = made(**options)
    ids, attention = model.tokens.prompts(PROMPTS)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=attention)
    together = model.routing.decisions["memoir"].rows.tolist()
    assert together == [decided(model, prompt)[0] for prompt in PROMPTS]


@pytest.mark.parametrize(
    "options",
    [{"mask": "x"}, {"overlap": "x"}, {"mask": "random", "tau": -1.0}, {"mask": "random", "prefixed": True}],
    ids=str,
)
def test_what_is_no_ablation_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match="memoir"):
        make("memoir", **options)


# -- size --------------------------------------------------------------------------------------------------------------


def test_a_smaller_memory_has_columns_for_some_features_only() -> None:
    half, whole = made(size=0.5, capacity=None), made(capacity=None)
    small, large = memory(half), memory(whole)
    assert small.weights() == small.weight.numel() == large.weights() / 2 == large.site.in_features * 16
    assert small.nbytes() < large.nbytes()
    assert small.kept is not None
    assert len(small.kept.unique()) == small.width == 32
    assert half.answer([EDITS[-1].prompt])[0].startswith(EDITS[-1].target)


def test_what_a_smaller_memory_has_no_columns_for_does_not_move_it() -> None:
    model = made(size=0.5)
    found = memory(model)
    ((a, y, seen),) = model.read(found, [EDITS[0].prompt])
    assert found.kept is not None
    other = a.clone()
    unused = torch.ones(a.shape[-1], dtype=torch.bool).index_fill(0, found.kept, value=False)
    other[..., unused] += 1
    with model.routing.reading(seen):
        assert torch.equal(found.features(a), found.features(other))
        decision = found.decide(a, y)
        assert decision.rows.all()
        assert torch.equal(found.correct(a, y, decision), found.correct(other, y, decision))


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_what_is_closed_is_never_moved_again() -> None:
    """With room for one edit each, the logits of every edit's prompt are at the end what they were when it was made."""
    model, then = with_options("memoir", capacity=1e-3), []
    for edit in EDITS:
        model.edit(edit)
        then.append(logits(model, edit.prompt))
    found = memory(model)
    assert found.closed is not None
    assert found.rounds is not None
    assert found.rounds.tolist() == list(range(len(EDITS)))
    assert len(found.closed) == len(EDITS) - 1
    assert found.weights() == found.weight.numel() * len(EDITS)
    for i, edit in enumerate(EDITS):
        if decided(model, edit.prompt) == (True, i):
            assert torch.equal(logits(model, edit.prompt), then[i])
    assert decided(model, EDITS[0].prompt) == (True, 0)


def test_a_batch_is_answered_from_several_rounds() -> None:
    model = with_options("memoir", capacity=1e-3)
    model.edit_many(EDITS)
    prompts = [edit.prompt for edit in EDITS]
    assert model.answer(prompts) == [model.answer([prompt])[0] for prompt in prompts]


def test_a_prompt_is_taught_anew_in_the_round_of_its_newer_edit() -> None:
    model, again = with_options("memoir", capacity=1e-3), Edit(EDITS[0].prompt, EDITS[1].target)
    model.edit_many([*EDITS[:2], again])
    found = memory(model)
    assert found.rounds is not None
    assert found.rounds.tolist() == [2, 1]
    assert decided(model, again.prompt) == (True, 2)
    assert model.answer([again.prompt])[0].startswith(again.target)


def test_edits_of_a_batch_share_a_round_and_capacity_is_counted_in_edits() -> None:
    model = with_options("memoir", capacity=1e6 * 2 / memory(made()).weight.numel(), prefixed=True)
    model.edit_many(EDITS[:3], batch_size=3)
    model.edit(EDITS[3])
    found = memory(model)
    assert found.rounds is not None
    assert [found.rounds[found.owners == edit].unique().tolist() for edit in range(4)] == [[0], [0], [0], [1]]


def test_without_a_capacity_one_matrix_takes_all() -> None:
    found = memory(made(capacity=None))
    assert found.closed is None
    assert found.rounds is None
    assert found.weights() == found.weight.numel()


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_of_nothing_is_refused(capacity: float) -> None:
    with pytest.raises(BadOption, match="more than 0, or none"):
        make("memoir", capacity=capacity)


@pytest.mark.parametrize("size", [0.0, -1.0, 1.5])
def test_a_size_that_is_no_share_is_refused(size: float) -> None:
    with pytest.raises(BadOption, match="a share of the input features"):
        make("memoir", size=size)
