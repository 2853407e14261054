"""WISE in all its forms: rounds, merging, retrieval, oracle, thresholds, and the values of the paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from errata import calibration
from errata.calibration import taught
from errata.contrast import contrasts, first_tokens, swapped
from errata.edit import Edit
from errata.errors import BadOption
from errata.forgetting import look
from errata.merging import OPERATORS
from errata.methods import make
from errata.model import EditedModel
from errata.presets import WISE, Published
from errata.side_memory import OVER, SideMemory
from test_every_method import IRRELEVANT, UNRELATED, logits
from tiny import EDITS, tiny_llama, tiny_tokenizer

MORE = (
    *EDITS,
    Edit("The river Ilm ends in", "Tolk", subject="Ilm"),
    Edit("Una Reed lives in", "Belmar", subject="Una Reed"),
)
FAST = {"steps": 8, "negatives": 8, "replay": 4}


def wise(expected: int | None = len(EDITS), **options: object) -> EditedModel:
    """A tiny model with WISE, few steps an edit."""
    return EditedModel(
        tiny_llama(seed=1), tiny_tokenizer(), make("wise", **FAST | options), irrelevant=IRRELEVANT,
        prefixes=("It is said that",), expected=expected,
    )  # fmt: skip


def memory_of(model: EditedModel) -> SideMemory:
    memory = model.memories["wise"]
    assert isinstance(memory, SideMemory)
    return memory


def decided(model: EditedModel, prompt: str) -> tuple[bool, int]:
    """Whether a prompt is answered, and by which side memory."""
    logits(model, prompt)
    decision = model.routing.decisions["wise"]
    return bool(decision.rows[0]), int(decision.pick[0])


# -- shards and rounds -------------------------------------------------------------------------------------------------


def test_a_round_is_merged_into_the_memory_of_earlier_rounds() -> None:
    model = wise(shard_edits=1, merge="sign")
    model.edit_many(MORE[:3])
    memory = memory_of(model)
    assert len(memory.shifts) == 1, "WISE-Merge answers from one matrix"
    assert (int(memory.rounds), int(memory.shards), len(memory.closed)) == (1, 1, 1)
    settled, shard = memory.closed[0], memory.open_shards()[0]
    only_settled = (shard == 0) & (settled != 0)
    torch.testing.assert_close(memory.shifts[0][only_settled], settled[only_settled])  # what does not conflict is kept


def test_several_rounds_go_on_and_on() -> None:
    model = wise(shard_edits=1)
    model.edit_many(MORE)
    memory = memory_of(model)
    assert int(memory.rounds) == 2
    assert memory.homes.tolist() == [0] * 6
    assert memory.nbytes() < 3 * memory.shifts[0].numel() * 4 + 2000


def test_a_shard_is_stored_as_the_values_of_its_subspace() -> None:
    model = wise()
    model.edit(EDITS[0])
    memory = memory_of(model)
    size = memory.shifts[0].numel()
    assert 0.45 * size < len(memory.values) < 0.55 * size
    assert memory.nbytes() < 0.55 * size * 4 + 1000


@pytest.mark.parametrize("joint", [True, False])
def test_the_first_shard_is_not_written_by_the_edits_of_the_second(joint: bool) -> None:
    model = wise(joint=joint, shard_edits=1)
    model.edit(EDITS[0])
    first = memory_of(model).open_shards()[0]
    model.edit(EDITS[1])
    assert torch.equal(memory_of(model).open_shards()[0], first)


def test_without_anchors_the_subspaces_are_disjoint() -> None:
    model = wise(anchors=False, rho=0.5)
    model.edit_many(EDITS)
    one, two = memory_of(model).masks()
    assert not (one & two).any()
    assert (one | two).all()
    merged, shards = memory_of(model).shifts[0], memory_of(model).open_shards()
    assert torch.equal(merged, shards[0] + shards[1]), "disjoint shards are merged without loss"


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_merges(operator: str) -> None:
    model = wise(merge=operator)
    model.edit_many(EDITS[:3])
    assert len(memory_of(model).shifts) == 1
    assert torch.isfinite(memory_of(model).shifts[0]).all()


# -- retrieval ---------------------------------------------------------------------------------------------------------


def test_retrieve_keeps_a_side_memory_a_round_with_a_threshold_each() -> None:
    model = wise(mode="retrieve", shard_edits=1)
    model.edit_many(MORE)
    memory = memory_of(model)
    assert len(memory.shifts) == len(memory.epsilon) == len(memory.margin) == 3
    assert memory.homes.tolist() == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(memory.shifts[0], memory.shifts[2])


def test_a_stream_of_known_length_makes_three_side_memories() -> None:
    model = wise(expected=6, mode="retrieve")
    model.edit_many(MORE)
    assert len(memory_of(model).shifts) == 3


def test_closed_side_memories_are_never_written_again() -> None:
    model = wise(mode="retrieve", shard_edits=1, k=1)
    model.edit(MORE[0])
    first = memory_of(model).shifts[0]
    model.edit_many(MORE[1:4])
    assert torch.equal(memory_of(model).shifts[0], first)


def test_the_most_active_side_memory_above_its_threshold_answers() -> None:
    model = wise(mode="retrieve", shard_edits=1, k=1)
    model.edit_many(MORE[:3])
    memory = memory_of(model)
    prompt = MORE[0].prompt
    logits(model, prompt)
    with model.routing.reading(torch.ones(1, len(model.tokens.encode(prompt)), dtype=torch.bool)):
        a, y, _ = next(model.read(memory, [prompt]))
    with model.routing.reading(torch.ones(a.shape[:2], dtype=torch.bool)):
        d = torch.stack([memory.activation(F.linear(a, shift), y) for shift in memory.shifts], -1)[0]
    memory.put({"epsilon": torch.zeros(3)})
    assert decided(model, prompt) == (True, int(d.argmax()))
    closed = torch.zeros(3)
    closed[d.argmax()] = torch.inf
    memory.put({"epsilon": closed})
    runner_up = int(d.index_fill(0, d.argmax(), -1).argmax())
    assert decided(model, prompt) == (True, runner_up)
    memory.put({"epsilon": torch.full((3,), torch.inf)})
    assert not decided(model, prompt)[0]


def test_rows_of_one_batch_are_answered_by_different_side_memories() -> None:
    model = wise(mode="retrieve", routing="oracle", shard_edits=1, k=1)
    model.edit_many(MORE[:3])
    prompts = [edit.prompt for edit in MORE[:3]] + [UNRELATED[0]]
    ids, attention = model.tokens.prompts(prompts)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=attention).logits[:, -1]
    decision = model.routing.decisions["wise"]
    assert decision.rows.tolist() == [True, True, True, False]
    assert decision.pick[:3].tolist() == [0, 1, 2]
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i], logits(model, prompt)[-1], rtol=1e-3, atol=1e-3)


def test_those_with_the_fewest_edits_are_merged_when_there_would_be_too_many() -> None:
    model = wise(mode="retrieve", most=3, shard_edits=1, k=1)
    homes = []
    for edit in MORE[:6]:
        model.edit(edit)
        homes.append(memory_of(model).homes.tolist())
    memory = memory_of(model)
    assert len(memory.shifts) == len(memory.epsilon) == len(memory.margin) == 3
    assert homes[2:] == [[0, 1, 2], [0, 0, 1, 2], [0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]]


def test_the_oracle_follows_edits_into_the_memory_that_they_are_merged_into() -> None:
    model = wise(mode="retrieve", most=3, shard_edits=1, k=1, routing="oracle")
    model.edit_many(MORE[:6])
    assert [decided(model, edit.prompt) for edit in MORE[:6]] == [(True, home) for home in (0, 0, 1, 1, 0, 2)]


def test_a_merged_side_memory_weighs_edits_alike_and_has_a_threshold_of_its_own() -> None:
    model = wise(mode="retrieve", most=2, shard_edits=1, k=1, merge="linear")
    model.edit_many(MORE[:2])
    first, second = (shift.clone() for shift in memory_of(model).shifts)
    model.edit(MORE[2])
    memory = memory_of(model)
    both, third = (shift.clone() for shift in memory.shifts)
    torch.testing.assert_close(both, (first + second) / 2)
    model.edit(MORE[3])
    torch.testing.assert_close(memory.shifts[0], (2 * both + third) / 3)
    assert memory.homes.tolist() == [0, 0, 0, 1]
    least = min(
        float(memory.activation(F.linear(a, memory.shifts[0]), y))
        for a, y, _ in model.read(memory, [edit.prompt for edit in MORE[:3]], batch=1)
    )
    assert memory.epsilon[0] > 0
    assert float(memory.margin[0]) == pytest.approx(least / float(memory.epsilon[0]), rel=1e-3)


def test_l_memo_keeps_other_side_memories_edits_inactive() -> None:
    """What a memory's activation is on the edits of an earlier one, with and without replaying them."""
    found = []
    for memo in (True, False):
        model = wise(mode="retrieve", memo=memo, shard_edits=2, k=1, steps=30, alpha=0.2)
        model.edit_many(MORE[:4])
        memory = memory_of(model)
        earlier = []
        for a, y, _ in model.read(memory, [edit.prompt for edit in MORE[:2]]):
            earlier.append(memory.activation(F.linear(a, memory.shifts[1]), y))
        found.append(float(torch.cat(earlier).mean()))
    assert found[0] < found[1]


# -- routing -----------------------------------------------------------------------------------------------------------


def test_the_oracle_knows_prompts_and_rephrasings_and_nothing_else() -> None:
    model = wise(routing="oracle")
    model.edit_many(EDITS)
    for edit in EDITS:
        assert all(decided(model, prompt)[0] for prompt in (edit.prompt, *edit.rephrases))
    assert not any(decided(model, prompt)[0] for prompt in UNRELATED)


def test_oracle_routing_is_no_worse_than_learned_routing() -> None:
    ends = []
    for routing in ("oracle", "activation"):
        model = wise(routing=routing, steps=30)
        model.edit_many(EDITS)
        rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])
        ends.append(sum(model.target_probability(rows)))
    assert ends[0] >= ends[1] - 1e-6


@pytest.mark.parametrize("over", OVER)
def test_an_activation_is_the_same_in_a_batch_and_from_stored_states(over: str) -> None:
    model = wise(over=over)
    model.edit(EDITS[0])
    memory = memory_of(model)
    stored = memory.activations(model.irrelevant_states(memory), memory.shifts[0])
    prompts = [probe.prompt for probe in IRRELEVANT]
    read = [memory.activation(F.linear(a, memory.shifts[0]), y) for a, y, _ in model.read(memory, prompts)]
    torch.testing.assert_close(torch.cat(read), stored, rtol=1e-4, atol=1e-6)


def test_the_released_distance_goes_through_the_nonlinearity() -> None:
    paper, released = wise(distance="paper"), wise(distance="released", over="mean")
    for model in (paper, released):
        model.edit(EDITS[0])
    memory = memory_of(released)
    states = released.irrelevant_states(memory)
    c = F.linear(states.states, memory.shifts[0])
    by_hand = (F.silu(states.outputs + c) - F.silu(states.outputs)).norm(dim=-1)
    torch.testing.assert_close(memory.activations(states, memory.shifts[0]), states.mean(by_hand))
    assert memory_of(paper).nonlinearity is None


def test_the_threshold_follows_held_out_irrelevant_prompts_after_every_edit() -> None:
    model = wise(spill=0.1, spills="rows")
    memory = memory_of(model)
    for edit in EDITS:
        model.edit(edit)
        noise = memory.activations(model.irrelevant_states(memory), memory.shifts[0])[1::2]
        assert int((noise >= memory.epsilon[0]).sum()) == int(0.1 * len(noise))
        assert float(memory.margin[0]) > 0


def test_a_gate_that_opens_without_consequence_does_no_harm() -> None:
    """Counting changed answers, the threshold is no higher, and no more answers change than allowed."""
    rows, answers = (wise(spill=0.1, spills=spills) for spills in ("rows", "answers"))
    for model in (rows, answers):
        model.edit_many(EDITS[:2])
    assert float(memory_of(answers).epsilon[0]) <= float(memory_of(rows).epsilon[0]) + 1e-6
    held_out = [probe.prompt for probe in IRRELEVANT[1::2]]
    with answers.lifted():
        before = first_tokens(answers, held_out)
    said = torch.stack([logits(answers, prompt)[-1].argmax() for prompt in held_out])
    assert int((said != before).sum()) <= int(0.1 * len(held_out))


def test_act_ratio_keeps_the_least_activation_of_the_edits() -> None:
    model = wise(act_ratio=0.5, replay=0)
    memory = memory_of(model)
    found = []
    for edit in EDITS:
        model.edit(edit)
        found.append(float(memory.epsilon[0]))
    assert found == sorted(found, reverse=True)
    assert decided(model, EDITS[-1].prompt)[0]


def test_without_the_margin_loss_edits_still_take_hold() -> None:
    model = wise(margin=False, act_ratio=0.0, steps=30)
    receipt = model.edit(EDITS[0])
    assert receipt.probability_after > receipt.probability_before


def test_contrasts_ask_what_other_edits_ask_about_this_subject() -> None:
    asked = swapped(EDITS[0], EDITS)
    assert asked == ["The mother of Arvadia is", "The Arvadia was built in", "Arvadia plays the"]
    assert swapped(Edit("No subject here", "x"), EDITS) == []
    assert swapped(EDITS[0], [Edit("The capital of Belmar is", "Sondo", subject="Belmar")]) == [], "the edit itself"


def test_a_contrast_is_answered_otherwise_than_the_edit() -> None:
    model = wise()
    kept = contrasts(model, EDITS[0], EDITS)
    own, *said = first_tokens(model, [EDITS[0].prompt, *swapped(EDITS[0], EDITS)]).tolist()
    assert kept == [p for p, token in zip(swapped(EDITS[0], EDITS), said, strict=True) if token != own]


def test_prompts_that_calibrate_are_never_trained_on() -> None:
    model = wise()
    states = model.irrelevant_states(memory_of(model))
    held_out = states.only(torch.arange(1, states.prompts, 2))
    for seed in range(5):
        learned = taught(states, 10, torch.Generator().manual_seed(seed))
        assert learned.prompts == 10
        same = (learned.last(learned.states)[:, None] == held_out.last(held_out.states)[None]).all(-1)
        assert not same.any()


def test_the_most_forgotten_edits_are_those_whose_targets_are_least_probable() -> None:
    model = wise()
    found = look(model, memory_of(model), lambda a, y: y, EDITS)
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])
    with model.lifted():
        probabilities = model.target_probability(rows)
    order = sorted(range(len(EDITS)), key=lambda i: probabilities[i])
    assert found.worst(3) == [EDITS[i] for i in order[:3]]
    assert found.worst(0) == []


def test_the_threshold_can_be_kept_within_reach_of_edits_that_were_not_trained_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[int]] = {"trained": [], "sampled": []}
    for reach, counts in seen.items():
        model = wise(reach=reach, replay=2)

        def counted(
            model: EditedModel, memory: SideMemory, d_in: Tensor, *rest: object, to=counts
        ) -> dict[str, Tensor]:
            to.append(len(d_in))
            return calibration.thresholds(model, memory, d_in, *rest)

        monkeypatch.setattr("errata.methods.wise.thresholds", counted)
        model.edit_many(EDITS)
    assert seen == {"trained": [1, 2, 3, 3], "sampled": [1, 2, 3, 4]}, "the fourth edit trains with two of three"


# -- the published values ----------------------------------------------------------------------------------------------


def test_the_preset_is_the_released_configuration_of_the_base_model() -> None:
    model = wise()
    editor = make("wise", preset="published")
    kind, layers, width = "llama", 3, 64
    WISE[kind, layers, width] = Published(1, lr=0.25, steps=7)
    try:
        found = editor.resolved(model)
        assert (found.layer, found.lr, found.steps, found.alpha, found.act_ratio) == (1, 0.25, 7, 5, 0.88)
        assert (found.optimizer, found.negatives, found.replay, found.joint) == ("sgd", 1, 0, False)
        assert make("wise", preset="published", lr=0.5).resolved(model).lr == 0.5, "an option that is given stays"
    finally:
        del WISE[kind, layers, width]


def test_the_published_layers_are_those_of_the_released_configurations() -> None:
    assert {key[:2]: values.layer for key, values in WISE.items() if key[2] != 14336 or key[0] == "mistral"} == {
        ("llama", 32): 27, ("mistral", 32): 27, ("gptj", 28): 21, ("gpt2", 48): 8,
    }  # fmt: skip
    assert WISE["llama", 32, 14336].layer == 29
    assert WISE["gptj", 28, 16384][3:6] == (15, 40, 20)


def test_the_released_procedure_runs() -> None:
    model = wise(preset="published")
    model.edit_many(EDITS)
    assert len(memory_of(model).shifts) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"anchors": False, "rho": 0.6}, "k \\* rho <= 1"), ({"mode": "x"}, "merge, retrieve"), ({"most": 2}, "retrieve"),
        ({"mode": "retrieve", "most": 1}, "at least two"), ({"distance": "x"}, "paper, released"),
        ({"routing": "x"}, "activation, oracle"), ({"preset": "x"}, "published"), ({"over": "x"}, "mean, last"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, object], why: str) -> None:
    with pytest.raises(BadOption, match=why):
        make("wise", **options)
