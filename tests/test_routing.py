"""Which tokens are prompt, and what is refused because it cannot be known."""

import pytest
import torch
from transformers import DynamicCache

from errata.errors import RoutingError
from errata.model import EditedModel
from errata.routing import Routing, last_true
from tiny import EDITS, tiny_llama, tiny_tokenizer

PROMPT = EDITS[0].prompt


@pytest.fixture(scope="module")
def model() -> EditedModel:
    edited = EditedModel(tiny_llama(), tiny_tokenizer(), "memoir", prefixes=("It is",))
    edited.edit(EDITS[0])
    return edited


def answered(model: EditedModel) -> list[bool]:
    """What each row decided in the last call."""
    return model.routing.decisions["memoir"].rows.tolist()


def test_decisions_are_made_row_by_row(model: EditedModel) -> None:
    ids, attention = model.tokens.prompts([PROMPT, "Snow is", PROMPT])
    model(input_ids=ids, attention_mask=attention)
    assert answered(model) == [True, False, True]


def test_a_decision_is_held_while_decoding(model: EditedModel) -> None:
    ids, attention = model.tokens.prompts([PROMPT])
    out = model(input_ids=ids, attention_mask=attention, use_cache=True)
    assert model.routing.said == 0
    for said in range(1, 4):
        out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        assert answered(model) == [True]
        assert model.routing.said == said


def test_targets_do_not_leak_into_the_decision(model: EditedModel) -> None:
    rows = model.tokens.rows([(PROMPT, "an answer which is long and has nothing to do with it whatever one thinks")])
    with model.routing.prompt_is(rows.prompt):
        model(input_ids=rows.ids, attention_mask=rows.attention)
    assert answered(model) == [True]


def test_a_second_turn_decides_anew_within_its_scope(model: EditedModel) -> None:
    first, second = model.tokens.encode("Snow is"), model.tokens.encode(PROMPT)
    cache = DynamicCache(config=model.base.config)
    model(input_ids=torch.tensor([first]), past_key_values=cache, use_cache=True)
    before = model.routing.decisions["memoir"]
    turn = torch.tensor([second])
    with pytest.raises(RoutingError, match="a second turn"):
        model(input_ids=turn, past_key_values=cache, use_cache=True)
    with model.routing.prompt_is(torch.ones_like(turn)):
        model(input_ids=turn, past_key_values=cache, use_cache=True)
        assert model.routing.prompt.tolist() == [[True] * len(second)]
    after = model.routing.decisions["memoir"]
    assert after is not before
    assert float(after.score) != float(before.score)


def test_generate_with_a_cache_of_earlier_turns_decides_on_the_new_turn(model: EditedModel) -> None:
    first, second = model.tokens.encode("Snow is"), model.tokens.encode(PROMPT)
    cache = DynamicCache(config=model.base.config)
    model(input_ids=torch.tensor([first]), past_key_values=cache, use_cache=True)
    both = torch.tensor([first + second])
    seen: list[float] = []
    hook = model.base.register_forward_hook(
        lambda *_: seen.append(float(model.routing.decisions["memoir"].score)),
    )
    model.generate(both, attention_mask=torch.ones_like(both), past_key_values=cache, max_new_tokens=3, do_sample=False)
    hook.remove()
    turn = DynamicCache(config=model.base.config)
    model(input_ids=torch.tensor([first]), past_key_values=turn, use_cache=True)
    with model.routing.prompt_is(torch.ones(1, len(second))):
        model(input_ids=torch.tensor([second]), past_key_values=turn, use_cache=True)
    expected = float(model.routing.decisions["memoir"].score)
    assert len(seen) == 3
    assert all(score == pytest.approx(expected) for score in seen)


@pytest.mark.parametrize("argument", [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 2}])
def test_what_cannot_be_routed_is_refused(model: EditedModel, argument: dict[str, int]) -> None:
    ids, attention = model.tokens.prompts([PROMPT])
    with pytest.raises(RoutingError, match="is not supported on an edited model"):
        model.generate(ids, attention_mask=attention, max_new_tokens=2, **argument)


def test_speculative_decoding_is_refused(model: EditedModel) -> None:
    ids, attention = model.tokens.prompts([PROMPT])
    with pytest.raises(RoutingError, match="speculative decoding"):
        model.generate(ids, attention_mask=attention, max_new_tokens=2, assistant_model=tiny_llama())


def test_chunked_prefill_is_refused_in_the_forward_too() -> None:
    routing = Routing()
    with routing.first_columns(5), pytest.raises(RoutingError, match="chunked prefill"):
        routing.observe(torch.nn.Identity(), (), {"input_ids": torch.zeros(1, 3, dtype=torch.long)})


def test_a_mask_of_the_wrong_shape_and_a_missing_prompt_are_errors() -> None:
    routing = Routing()
    with routing.prompt_is(torch.ones(1, 4)), pytest.raises(RoutingError, match="one entry a token"):
        routing.observe(torch.nn.Identity(), (torch.zeros(1, 3, dtype=torch.long),), {})
    with pytest.raises(RoutingError, match="no prompt has been seen"):
        _ = Routing().prompt
    with pytest.raises(RoutingError, match="neither input_ids nor inputs_embeds"):
        routing.observe(torch.nn.Identity(), (), {})


def test_means_are_over_prompt_tokens_only() -> None:
    routing = Routing()
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    values = torch.tensor([[9.0, 1, 3, 9], [5, 9, 9, 9]])
    with routing.reading(mask):
        assert routing.over_prompt(values).tolist() == [2, 5]
        assert routing.last_of_prompt(values).tolist() == [3, 5]
    assert last_true(mask).tolist() == [2, 0]
