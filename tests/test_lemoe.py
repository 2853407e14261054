"""LEMoE: experts batch by batch, older ones frozen, routed by keys (methods.md, section 4)."""

import pytest
import torch

from errata.anchors import FEATURES
from errata.edit import Edit
from errata.errors import BadOption, RoutingError
from errata.methods import make
from errata.methods.lemoe import ANCHORS, Anchors, Experts
from errata.model import EditedModel
from errata.ordering import measured
from test_every_method import IRRELEVANT, UNRELATED, logits
from tiny import EDITS, tiny_llama, tiny_tokenizer

MORE = (
    *EDITS,
    Edit("The river Ilm ends in", "Tolk", subject="Ilm"),
    Edit("Una Reed lives in", "Belmar", subject="Una Reed"),
)


def lemoe(**options: object) -> EditedModel:
    """A tiny model with LEMoE."""
    return EditedModel(
        tiny_llama(seed=1), tiny_tokenizer(), make("lemoe", **{"batch": 2, "steps": 40, "width": 16} | options),
        irrelevant=IRRELEVANT, prefixes=("It is said that",),
    )  # fmt: skip


def parts(model: EditedModel) -> tuple[Anchors, Experts]:
    anchors, experts = model.memories[ANCHORS], model.memories["lemoe"]
    assert isinstance(anchors, Anchors)
    assert isinstance(experts, Experts)
    return anchors, experts


def picked(model: EditedModel, prompt: str) -> int | None:
    """The expert that answers a prompt."""
    logits(model, prompt)
    decision = model.routing.decisions[ANCHORS]
    return int(decision.pick[0]) if bool(decision.rows[0]) else None


def test_experts_are_added_batch_by_batch_and_older_ones_are_frozen() -> None:
    model = lemoe()
    model.edit_many(MORE[:2])
    anchors, experts = parts(model)
    before = {**anchors.tensors(), **experts.tensors()}
    model.edit_many(MORE[2:])
    assert len(experts.up) == 3
    assert anchors.owners.tolist() == [0, 0, 1, 1, 2, 2]
    for name in ("keys", "inner", "outer"):
        assert torch.equal(getattr(anchors, name)[:1], before[name]), name
    for name in ("up", "down"):
        assert torch.equal(getattr(experts, name)[:1], before[name]), name


def test_a_score_of_an_older_expert_never_changes() -> None:
    model = lemoe()
    model.edit_many(MORE[:2])
    anchors, _ = parts(model)
    before = anchors.scores(anchors.prompts[:2])[:, 0]
    model.edit_many(MORE[2:])
    torch.testing.assert_close(anchors.scores(anchors.prompts[:2])[:, 0], before)


def test_a_new_expert_begins_by_saying_nothing() -> None:
    model = lemoe(steps=0)
    before = [logits(model, edit.prompt) for edit in EDITS]
    model.edit(EDITS[0])
    _, experts = parts(model)
    assert not experts.down.any()
    assert experts.up.any()
    for edit, untouched in zip(EDITS, before, strict=True):
        torch.testing.assert_close(logits(model, edit.prompt), untouched)


def test_edits_are_sent_where_they_were_trained() -> None:
    """Routing is the same in training and inference: what the router reads is not changed by any edit."""
    model = lemoe()
    model.edit_many(MORE)
    anchors, _ = parts(model)
    assert [picked(model, edit.prompt) for edit in MORE] == anchors.owners.tolist()
    assert float(anchors.margin) > 0


def test_irrelevant_prompts_are_rejected_as_calibrated() -> None:
    model = lemoe(spill=0.1)
    model.edit_many(MORE)
    anchors, _ = parts(model)
    fit, threshold, _ = anchors.fit(anchors.irrelevant)
    assert float((fit >= threshold).float().mean()) <= 0.1 + 1e-6


def test_a_cushion_raises_the_threshold_by_its_share_of_the_way() -> None:
    thresholds = []
    for cushion in (0.0, 0.25):
        model = lemoe(cushion=cushion)
        model.edit(EDITS[0])
        thresholds.append(parts(model)[0].threshold)
    torch.testing.assert_close(thresholds[1], thresholds[0] + 0.25 * (1 - thresholds[0]))


@pytest.mark.parametrize("feature", FEATURES)
def test_what_routes_is_changed_by_no_edit(feature: str) -> None:
    """Consistent routing: what a prompt is routed by is the same before the first edit and after the last."""
    model = lemoe(feature=feature)
    before = model.editor.points(model, MORE)
    assert before.shape[:2] == (6, len(FEATURES[feature]))
    model.edit_many(MORE)
    torch.testing.assert_close(model.editor.points(model, MORE), before)
    assert [picked(model, edit.prompt) for edit in MORE] == parts(model)[0].owners.tolist()


def test_a_prompt_is_routed_by_the_view_that_is_furthest_above_its_threshold() -> None:
    model = lemoe()
    model.edit_many(MORE)
    anchors, _ = parts(model)
    e = torch.cat([anchors.irrelevant, anchors.prompts])
    fit, threshold, _ = anchors.fit(e)
    assert torch.equal(fit >= threshold, (anchors.near(e).amax(2) >= anchors.threshold).any(1))


def test_of_the_experts_that_take_a_prompt_the_keys_decide() -> None:
    """An expert takes only what is near to one of its own edits: another with a higher score does not get it."""
    model = lemoe()
    model.edit_many(MORE)
    anchors, _ = parts(model)
    e = anchors.prompts
    scores, taken = anchors.scores(e), (anchors.near(e) >= anchors.threshold[:, None]).any(1)
    _, _, pick = anchors.fit(e)
    assert taken.any(1).all()
    for i in range(len(e)):
        assert int(pick[i]) == max((t for t in range(3) if taken[i, t]), key=lambda t: float(scores[i, t]))
    anchors.put({"keys": -anchors.keys, "threshold": torch.full_like(anchors.threshold, 0.999)})
    assert anchors.fit(e)[2].tolist() == anchors.owners.tolist(), (
        "where one expert takes a prompt, its key is not asked"
    )


def test_the_end_is_learnt_with_the_target() -> None:
    answers = []
    for end in (True, False):
        model = lemoe(end=end, steps=80)
        model.edit(EDITS[0])
        answers.append(model.answer([EDITS[0].prompt], 12)[0])
    assert answers[0] == EDITS[0].target
    assert answers[1].startswith(EDITS[0].target)
    assert answers[1] != EDITS[0].target


def test_one_by_one_a_buffer_fills_an_expert_which_is_trained_anew_on_all_that_it_holds() -> None:
    """The online variant: no edit is known before it comes."""
    model = lemoe(batch=3)
    sizes = []
    for edit in MORE:
        model.edit(edit)
        sizes.append(len(parts(model)[1].up))
    assert sizes == [1, 1, 1, 2, 2, 2]
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in MORE])
    with model.lifted():
        untouched = model.target_probability(rows)
    assert all(after > before for after, before in zip(model.target_probability(rows), untouched, strict=True))


def test_unrelated_prompts_are_the_base_model_s() -> None:
    model = lemoe()
    model.edit_many(MORE)
    assert sum(picked(model, prompt) is None for prompt in UNRELATED) >= 3


def test_without_edits_nothing_is_answered() -> None:
    model = lemoe()
    assert picked(model, EDITS[0].prompt) is None


def test_one_batch_is_one_expert() -> None:
    model = lemoe(batch=4)
    model.edit_batch(EDITS)
    anchors, experts = parts(model)
    assert len(experts.up) == 1
    assert anchors.owners.tolist() == [0] * 4
    rows = model.tokens.rows([(edit.prompt, edit.target) for edit in EDITS])
    with model.lifted():
        untouched = model.target_probability(rows)
    assert all(after > before for after, before in zip(model.target_probability(rows), untouched, strict=True))


def test_a_large_batch_is_planned_and_every_edit_gets_an_expert() -> None:
    model = lemoe()
    planned = model.editor.order(model, MORE)
    model.edit_batch(MORE)
    anchors, experts = parts(model)
    assert len(experts.up) == 3
    owners = anchors.owners.tolist()
    assert sorted(owners) == [0, 0, 1, 1, 2, 2]
    batches = [tuple(i for i, owner in enumerate(owners) if owner == t) for t in range(3)]
    assert sorted(batches) == sorted(planned.batches)


def test_planning_puts_like_edits_together() -> None:
    model = lemoe()
    edits = [
        Edit(f"The {thing} of {place} is", "Tolk") for thing in ("capital", "river") for place in ("Arvadia", "Belmar")
    ]
    order = model.editor.order(model, edits)
    embedded = model.editor.points(model, edits).flatten(1)
    across = measured(embedded, [(0, 3), (1, 2)])
    assert order.within - order.between >= across.within - across.between


def test_a_correction_of_an_older_batch_takes_its_prompt_over() -> None:
    model = lemoe()
    model.edit_many(MORE[:4])
    model.edit(Edit(EDITS[0].prompt, "Sondo"))
    assert picked(model, EDITS[0].prompt) == 2
    assert parts(model)[0].owners.tolist() == [-1, 0, 1, 1, 2], "the edit that was replaced is no anchor any more"


def test_a_call_without_tokens_is_refused_where_embeddings_route() -> None:
    model = lemoe(feature="embedding")
    model.edit(EDITS[0])
    ids, _ = model.tokens.prompts([EDITS[0].prompt])
    with model.lifted():
        embeddings = model.base.get_input_embeddings()(ids)
    with pytest.raises(RoutingError, match="input_ids"):
        model(inputs_embeds=embeddings)


@pytest.mark.parametrize(
    "options", [{"batch": 0}, {"width": 0}, {"spill": 1.0}, {"feature": "x"}, {"cushion": 1.0}], ids=str
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match="lemoe"):
        make("lemoe", **options)
