"""In-context editing: what the model reads, what its caller sees, and which edit is retrieved."""

import pytest
import torch

from architectures import tiny
from errata.context import stack_site
from errata.edit import Edit
from errata.errors import BadOption, NoSite, RoutingError
from errata.methods import make
from errata.methods.in_context import Corrections
from errata.sites import find_blocks
from test_every_method import UNRELATED, edited, fresh, logits
from test_method_checks import memory_of, with_options
from tiny import EDITS

KINDS = ("llama", "gpt2", "gptj", "gpt_neox", "opt")


def by_hand(model, edit, prompt):
    """What the pretrained model says after the text of an edit and a prompt, read as one text."""
    context = model.tokens.encode(model.editor.template.format(prompt=edit.prompt, target=edit.target))
    query = model.tokens.encode(prompt)[1:]  # without the mark of the beginning
    with model.lifted() as base, torch.no_grad():
        return base(input_ids=torch.tensor([context + query])).logits[0, len(context) :]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_prompt_is_read_behind_the_text_of_its_edit(kind):
    model = fresh("in_context", kind)
    model.edit_many(EDITS)
    for edit in EDITS:
        torch.testing.assert_close(
            logits(model, edit.prompt)[1:], by_hand(model, edit, edit.prompt), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache_goes_on_behind_the_text(kind):
    model = fresh("in_context", kind)
    model.edit_many(EDITS)
    ids, attention = model.tokens.prompts([EDITS[0].prompt, UNRELATED[0], EDITS[1].prompt])
    common = {"attention_mask": attention, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 2}
    cached, uncached = (model.generate(ids, use_cache=flag, **common) for flag in (True, False))
    assert torch.equal(cached, uncached)
    assert cached.shape[1] <= ids.shape[1] + 6


def test_the_caller_sees_its_own_tokens_only():
    model = edited("in_context", "llama")
    ids, attention = model.tokens.prompts([EDITS[0].prompt, UNRELATED[0]])
    assert model(input_ids=ids, attention_mask=attention).logits.shape[:2] == ids.shape


def test_each_prompt_retrieves_its_own_edit():
    model = edited("in_context", "llama")
    for i, edit in enumerate(EDITS):
        logits(model, edit.prompt)
        decision = model.routing.decisions["in_context"]
        assert bool(decision.rows[0])
        assert int(decision.pick[0]) == i
        assert model.explain(edit.prompt)["memories"][0]["nearest"][0]["target"] == edit.target


def test_a_later_edit_of_the_same_prompt_takes_its_place():
    model = fresh("in_context")
    model.edit(EDITS[0])
    model.edit(Edit(EDITS[0].prompt, "Sondo"))
    memory = memory_of(model, Corrections)
    assert len(memory.texts) == 1
    text = model.tokens.decode(memory.texts[0][memory.texts[0] >= 0])
    assert "Sondo" in text
    assert EDITS[0].target not in text


def test_what_is_kept_of_an_edit_is_its_key_and_its_text():
    memory = memory_of(edited("in_context", "llama"), Corrections)
    assert memory.keys.shape == (4, 2, 32)
    assert memory.texts.shape[0] == 4


def test_the_threshold_can_shut_and_open_every_gate():
    for threshold, expected in ((1.1, False), (-1.0, True)):
        model = with_options("in_context", threshold=threshold)
        model.edit(EDITS[0])
        for prompt in (EDITS[0].prompt, UNRELATED[0]):
            logits(model, prompt)
            assert bool(model.routing.decisions["in_context"].rows[0]) is expected


def test_requests_that_cannot_be_put_in_context_are_refused():
    model = with_options("in_context", threshold=-1.0)
    model.edit(EDITS[0])
    ids, _ = model.tokens.prompts([EDITS[0].prompt])
    embedded = model.base.get_input_embeddings()(ids)
    with torch.no_grad(), pytest.raises(RoutingError, match="embeddings"):
        model(inputs_embeds=embedded)
    with torch.no_grad(), pytest.raises(RoutingError, match="4 dimensions"):
        model(input_ids=ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1]))
    with torch.no_grad():
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
        whole = torch.ones_like(ids, dtype=torch.bool)[:, 3:]
        with pytest.raises(RoutingError, match="second turn"), model.routing.prompt_is(whole):
            model(input_ids=ids[:, 3:], past_key_values=cache, attention_mask=torch.ones_like(ids))


def test_the_stack_of_every_architecture_is_found():
    for kind in KINDS:
        site = stack_site(tiny(kind), 1)
        assert site.role == "stack"
        assert find_blocks(tiny(kind))[0].startswith(site.path)


def test_a_model_without_a_stack_is_refused():
    class Bare(torch.nn.Module):
        base_model_prefix = ""

        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    with pytest.raises(NoSite, match="Bare has no stack"):
        stack_site(Bare(), 0)


@pytest.mark.parametrize("options", [{"template": "{prompt}"}, {"spill": 1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(BadOption, match="in_context"):
        make("in_context", **options)
