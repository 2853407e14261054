"""The numeric sanity checks of methods.md, the (i) list of each method."""

import math
from itertools import pairwise

import pytest
import torch

from errata.edit import Edit
from errata.errors import BadOption
from errata.masks import overlaps, unpack
from errata.memory import Delta
from errata.methods import make
from errata.methods.grace import Codebook, nearest, place_key, squares
from errata.model import EditedModel
from errata.residual_memory import ResidualMemory
from errata.side_memory import SideMemory
from test_every_method import UNRELATED, edited, fresh, logits
from tiny import EDITS


def with_options(method: str, **options: object) -> EditedModel:
    """A tiny model whose method has these options."""
    plain = fresh(method)
    base = plain.detach()
    return EditedModel(
        base, plain.tokens.tokenizer, make(method, **options), irrelevant=plain.sampling.irrelevant,
        prefixes=plain.sampling.prefixes, expected=len(EDITS),
    )  # fmt: skip


def memory_of(model: EditedModel, kind: type) -> torch.nn.Module:
    """The one memory of a model."""
    (memory,) = model.memories.values()
    assert isinstance(memory, kind)
    return memory


# -- MEMOIR ------------------------------------------------------------------------------------------------------------


def test_memoir_writes_through_its_mask_only() -> None:
    model = fresh("memoir")
    model.edit(EDITS[0])
    memory = memory_of(model, ResidualMemory)
    outside = ~unpack(memory.masks[0, 0], memory.site.in_features)
    assert torch.equal(memory.weight[:, outside], torch.zeros_like(memory.weight[:, outside]))
    assert memory.weight.abs().sum() > 0


def test_memoir_tries_again_with_longer_steps_until_the_prompt_is_answered_with_the_target() -> None:
    hard = {"steps": 2, "lr": 1e-6}
    assert [with_options("memoir", tries=n, **hard).edit(EDITS[0]).steps for n in (1, 3)] == [2, 6]
    model = with_options("memoir", tries=12, **hard)
    receipt = model.edit(EDITS[0])
    assert receipt.steps < 24
    assert receipt.loss_after < receipt.loss_before
    assert model.answer([EDITS[0].prompt])[0].startswith(EDITS[0].target)


def test_memoir_masks_never_change() -> None:
    one, four = fresh("memoir"), edited("memoir", "llama")
    one.edit(EDITS[0])
    assert torch.equal(memory_of(one, ResidualMemory).masks[:, 0], memory_of(four, ResidualMemory).masks[:, 0])


def test_memoir_with_all_features_is_dense_residual_fine_tuning() -> None:
    model = with_options("memoir", active=1.0, tau=0.0)
    model.edit(EDITS[0])
    memory = memory_of(model, ResidualMemory)
    assert unpack(memory.masks, memory.site.in_features).all()
    for prompt in UNRELATED:
        logits(model, prompt)
        assert model.routing.decisions["memoir"].rows.all()


def test_memoir_the_same_prompt_again_takes_over_its_mask() -> None:
    model = fresh("memoir")
    model.edit(EDITS[0])
    model.edit(Edit(EDITS[0].prompt, "Sondo"))
    memory = memory_of(model, ResidualMemory)
    assert memory.masks.shape[:2] == (3, 1)
    assert memory.owners.tolist() == [1]
    assert model.explain(EDITS[0].prompt)["memories"][0]["nearest"][0]["target"] == "Sondo"


def test_memoir_threshold_rises_as_edits_come() -> None:
    model = fresh("memoir")
    found = []
    for edit in EDITS:
        model.edit(edit)
        found.append(memory_of(model, ResidualMemory).threshold)
    assert all((later >= sooner).all() for sooner, later in pairwise(found))
    memory = memory_of(model, ResidualMemory)
    views = zip(memory.irrelevant, memory.masks, memory.threshold, strict=True)
    wrongly = torch.stack([memory.score(there, masks).amax(1) >= tau for there, masks, tau in views]).any(0)
    assert wrongly.float().mean() <= 0.005 + 3 / memory.irrelevant.shape[1]


def test_memoir_is_found_by_whichever_mask_is_nearest() -> None:
    """Of its views, a request is routed by that which is furthest above its own threshold."""
    model = edited("memoir", "llama")
    memory = memory_of(model, ResidualMemory)
    for prompt in [*(edit.prompt for edit in EDITS), *UNRELATED]:
        logits(model, prompt)
        decision = model.routing.decisions["memoir"]
        ((a, _, seen),) = model.read(memory, [prompt])
        with model.routing.reading(seen):
            masks = memory.mask(memory.features(a))
        scores = torch.stack([memory.score(m, stored)[0] for m, stored in zip(masks, memory.masks, strict=True)])
        assert bool(decision.rows) == bool((scores >= memory.threshold[:, None]).any())
        room = (scores - memory.threshold[:, None]) / (1 - memory.threshold[:, None])
        assert int(decision.pick) == int(room.amax(0).argmax())


def test_memoir_weight_decay_shrinks_all_of_the_memory_as_released() -> None:
    plain, decayed = with_options("memoir"), with_options("memoir", weight_decay=1e-2)
    for model in (plain, decayed):
        model.edit_many(EDITS[:2])
    first = unpack(memory_of(plain, ResidualMemory).masks[0, 0], 64) & ~unpack(
        memory_of(plain, ResidualMemory).masks[0, 1], 64
    )
    norm = [float(memory_of(m, ResidualMemory).weight[:, first].norm()) for m in (plain, decayed)]
    assert norm[1] < norm[0]


def test_overlap_of_a_prompt_with_itself_is_exact() -> None:
    memory = memory_of(edited("memoir", "llama"), ResidualMemory)
    assert all((overlaps(masks, masks).diagonal() == memory.active).all() for masks in memory.masks)


# -- WISE --------------------------------------------------------------------------------------------------------------


def test_wise_changes_nothing_outside_the_shard_masks() -> None:
    memory = memory_of(edited("wise", "llama"), SideMemory)
    shards, masks = memory.open_shards(), memory.masks()
    assert len(shards) == 2
    for shard, mask in zip(shards, masks, strict=True):
        assert not shard[~mask].any()
        assert shard[mask].any()
    assert not memory.shifts[0][~(masks[0] | masks[1])].any()


def test_wise_without_a_shift_never_answers() -> None:
    model = fresh("wise")
    for prompt in (EDITS[0].prompt, *UNRELATED):
        logits(model, prompt)
        assert not model.routing.decisions["wise"].rows.any()


def test_wise_act_ratio_opens_and_closes_the_gate() -> None:
    closed, opened = with_options("wise", act_ratio=math.inf), with_options("wise", act_ratio=0.0)
    for model, expected in ((closed, False), (opened, True)):
        model.edit(EDITS[0])
        logits(model, EDITS[0].prompt)
        assert bool(model.routing.decisions["wise"].rows[0]) is expected


def test_wise_merges_as_many_shards_as_it_is_told() -> None:
    memory = memory_of(edited("wise", "llama"), SideMemory)
    assert (int(memory.shards), int(memory.edits), int(memory.rounds)) == (2, 2, 0)
    rounds = with_options("wise", shard_edits=1, k=2)
    rounds.edit_many(EDITS[:3])
    memory = memory_of(rounds, SideMemory)
    assert (int(memory.shards), int(memory.rounds), len(memory.closed)) == (1, 1, 1)


def test_wise_mask_density_is_rho() -> None:
    model = with_options("wise", rho=0.3)
    model.edit(EDITS[0])
    (mask,) = memory_of(model, SideMemory).masks()
    n = mask.numel()
    assert abs(float(mask.float().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


# -- GRACE -------------------------------------------------------------------------------------------------------------


def test_grace_edit_prompt_hits_its_own_key() -> None:
    model = edited("grace", "llama")
    for i, edit in enumerate(EDITS):
        logits(model, edit.prompt)
        decision = model.routing.decisions["grace"]
        assert bool(decision.rows[0])
        assert int(decision.pick[0]) == i
        assert abs(float(decision.score[0])) < 1e-4


@pytest.mark.parametrize(
    ("placement", "first", "second"),
    [("last", "001000", "000100"), ("prompt", "111000", "011100"), ("answer", "001110", "000100")],
)
def test_grace_places_its_value(placement: str, first: str, second: str) -> None:
    memory = Codebook(memory_of(edited("grace", "llama"), Codebook).site, placement)
    prompt = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]]).bool()
    places = memory.places(prompt, torch.tensor([3, 1])).int().tolist()
    assert ["".join(map(str, row)) for row in places] == [first, second]


@pytest.mark.parametrize("placement", ["last", "answer"])
def test_grace_decodes_what_it_says_under_teacher_forcing_beyond_the_target_too(placement: str) -> None:
    model = with_options("grace", placement=placement)
    model.edit(Edit(EDITS[0].prompt, "Tolk in Harns"))
    prompt, target = model.tokens.pair(EDITS[0].prompt, "Tolk in Harns and elsewhere")
    ids = torch.tensor([prompt + target])
    with model.routing.prompt_is(torch.arange(ids.shape[1])[None] < len(prompt)):
        forced = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    told = model(input_ids=ids[:, : len(prompt)], use_cache=True)
    said = [told.logits[0, -1]]
    for i in range(len(prompt), ids.shape[1]):
        told = model(input_ids=ids[:, i : i + 1], past_key_values=told.past_key_values, use_cache=True)
        said.append(told.logits[0, -1])
    assert len(memory_of(model, Codebook).labels[0]) >= 3
    torch.testing.assert_close(torch.stack(said), forced, rtol=1e-4, atol=1e-4)


def test_grace_with_no_radius_is_an_exact_match_memory() -> None:
    model = with_options("grace", epsilon=0.0)
    model.edit_many(EDITS)
    for prompt in (*UNRELATED, *EDITS[0].rephrases):
        logits(model, prompt)
        assert not model.routing.decisions["grace"].rows.any()


def book_with(key: list[float], label: list[int], epsilon: float) -> dict[str, torch.Tensor]:
    empty = {
        "keys": torch.zeros(0, 2), "squares": torch.zeros(0), "values": torch.zeros(0, 3), "epsilon": torch.zeros(0),
        "labels": torch.zeros(0, 0, dtype=torch.long), "owners": torch.zeros(0, dtype=torch.long),
    }  # fmt: skip
    return place_key(empty, torch.tensor(key), torch.zeros(3), torch.tensor(label), epsilon)[0]


def test_grace_conflicting_edits_split_their_balls() -> None:
    book, j = place_key(book_with([0.0, 0], [7], 3.0), torch.tensor([1.0, 0]), torch.zeros(3), torch.tensor([8]), 3.0)
    assert j == 1
    assert book["epsilon"].tolist() == pytest.approx([0.5 - 1e-5, 0.5])
    assert float(book["epsilon"].sum()) < 1.0, "disjoint"


def test_grace_agreeing_edits_share_a_key() -> None:
    book, j = place_key(
        book_with([0.0, 0], [7, 9], 1.0), torch.tensor([1.5, 0]), torch.zeros(3), torch.tensor([7, 9]), 1.0
    )
    assert j == 0
    assert book["epsilon"].tolist() == [1.5]
    assert len(book["keys"]) == 1


def test_grace_far_edits_get_keys_of_their_own() -> None:
    book, j = place_key(
        book_with([0.0, 0], [7], 1.0), torch.tensor([9.0, 0]), torch.zeros(3), torch.tensor([8, 8]), 1.0
    )
    assert j == 1
    assert book["epsilon"].tolist() == [1, 1]
    assert book["labels"].tolist() == [[7, -1], [8, 8]]


def test_grace_finds_the_nearest_of_many_keys_and_its_exact_distance() -> None:
    keys, q = torch.randn(500, 32), torch.randn(5, 32)
    keys[7] = q[3]
    distance, index = nearest(q, keys, squares(keys))
    every = torch.cdist(q, keys, compute_mode="donot_use_mm_for_euclid_dist")
    assert index[:, 0].tolist() == every.argmin(dim=1).tolist()
    torch.testing.assert_close(distance, every.sort(dim=1).values[:, : distance.shape[1]])
    assert distance[3, 0] == 0, "the very same query is at no distance at all"


def test_grace_stores_one_vector_an_edit() -> None:
    memory = memory_of(edited("grace", "llama"), Codebook)
    assert memory.keys.shape == (4, 64)
    assert memory.values.shape == (4, 32)


# -- FT-L --------------------------------------------------------------------------------------------------------------


def test_ft_l_stays_in_its_box_after_every_edit() -> None:
    model = with_options("ft_l", epsilon=5e-4)
    before = torch.zeros_like(memory_of(model, Delta).shift)
    for edit in EDITS:
        model.edit(edit)
        shift = memory_of(model, Delta).shift
        assert float((shift - before).abs().max()) <= 5e-4 + 1e-9
        before = shift


def test_ft_l_drift_bounds_all_edits_together() -> None:
    model = with_options("ft_l", epsilon=5e-4, drift=6e-4)
    model.edit_many(EDITS)
    assert float(memory_of(model, Delta).shift.abs().max()) <= 6e-4 + 1e-9


def test_ft_l_released_objective_is_an_option() -> None:
    proper, released = with_options("ft_l", epsilon=None), with_options("ft_l", epsilon=None, objective="prompt_last")
    ends = [model.edit(EDITS[1]).probability_after for model in (proper, released)]
    assert ends[0] > ends[1]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ft_l", {"objective": "x"}), ("ft_l", {"steps": 0}), ("grace", {"start": "hot"}), ("grace", {"epsilon": -1.0}),
        ("memoir", {"active": 0.0}), ("memoir", {"feature": "x"}), ("memoir", {"tries": 0}),
        ("wise", {"rho": 0.0}), ("wise", {"k": 0}),
        ("wise", {"merge": "soup"}), ("wise", {"margins": "x"}),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(method: str, options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match=method):
        make(method, **options)
