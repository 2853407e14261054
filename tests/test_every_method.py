"""The conformance suite: what errata promises of every method, on every core architecture.

Methods are discovered; nobody edits this file to add one. A promise that a method cannot make is waived in the method's
own `waives`, with the reason. `pytest -k memoir` runs the rows of one method.
"""

import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from architectures import CORE, tiny
from errata import methods
from errata.edit import Edit, Probe
from errata.editor import Receipt
from errata.errors import EditFailed, MissingExtra
from errata.model import EditedModel
from tiny import EDITS, tiny_tokenizer

IRRELEVANT = tuple(
    Probe(f"{start} {thing} {verb}", "so")
    for start in ("The", "Some", "Why do", "Old")
    for thing in ("river", "bread", "clock", "window", "paper")
    for verb in ("moves slowly", "is never late", "?")
)
STEPS = 20
"""Most steps an edit."""
UNRELATED = ("Snow is", "A cup of tea for", "When it rains in the hills", "Seven times eight equals")
PROMPTS = [edit.prompt for edit in EDITS]

pytestmark = pytest.mark.filterwarnings("ignore")


def fresh(method: str, kind: str = "llama", *, seed: int = 0, base: nn.Module | None = None) -> EditedModel:
    """A tiny model with a method and no edits. Skips the test where a package that the method needs is missing.

    The options are the defaults, but for the most steps an edit: no promise is about how far a fit goes.
    """
    steps = getattr(methods.make(method), "steps", None)
    editor = methods.make(method, **({} if steps is None else {"steps": min(steps, STEPS)}))
    try:
        return EditedModel(
            base if base is not None else tiny(kind), tiny_tokenizer(), editor, irrelevant=IRRELEVANT,
            prefixes=("It is said that", "Yes,", "In 1990 the"), expected=len(EDITS), seed=seed,
        )  # fmt: skip
    except MissingExtra as missing:
        pytest.skip(str(missing))


class Made(NamedTuple):
    """A tiny model with all of `EDITS`, and how it came to be."""

    model: EditedModel
    receipts: list[Receipt]
    before: str
    """A hash of the pretrained parameters before any edit, ..."""
    after: str
    """... and after them."""
    sizes: list[tuple[int, int]]
    """After every edit, what the model says that it stores, and what it does; bytes."""


@functools.cache
def made(method: str, kind: str) -> Made:
    """Shared by the tests that only read: `tests/conftest.py` has one worker run them all."""
    base = tiny(kind)
    before = digest(base.named_parameters())
    model = fresh(method, base=base)
    sizes: list[tuple[int, int]] = []
    receipts = model.edit_many(EDITS, done=lambda _: sizes.append((model.nbytes(), stored(model))))
    with model.lifted():
        return Made(model, receipts, before, digest(base.named_parameters()), sizes)


def edited(method: str, kind: str) -> EditedModel:
    """A tiny model with all of `EDITS`."""
    return made(method, kind).model


@functools.cache
def begun(method: str) -> EditedModel:
    """A tiny model with the first edit, shared by the tests of what must leave it as it is."""
    model = fresh(method)
    model.edit(EDITS[0])
    return model


def stored(model: EditedModel) -> int:
    """Bytes of all tensors of the memories."""
    tensors = [t for memory in model.memories.values() for t in memory.state_dict().values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def digest(tensors: Iterator[tuple[str, Tensor]]) -> str:
    """A hash of named tensors."""
    state = hashlib.sha256()
    for name, tensor in tensors:
        state.update(name.encode() + tensor.detach().float().numpy().tobytes())
    return state.hexdigest()


def memories_of(model: EditedModel) -> str:
    """A hash of all that the edits have written."""
    return digest((f"{n}/{k}", t) for n, m in model.memories.items() for k, t in m.tensors().items())


def logits(model: EditedModel, prompt: str) -> Tensor:
    """Logits after a prompt, alone in its batch."""
    ids, attention = model.tokens.prompts([prompt])
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=attention).logits[0]
    return found


def promise(name: str, method: str) -> None:
    """Skip, with the method's own reason, where it waives this promise."""
    waived = methods.find(method).waives
    if name in waived:
        pytest.skip(f"{method} waives {name!r}: {waived[name]}")


every_method = pytest.mark.parametrize("method", methods.names())
every_kind = pytest.mark.parametrize("kind", CORE)


@every_method
def test_waived_promises_exist(method: str) -> None:
    known = {"unrelated prompts", "first edit held", "target probability", "contradiction", "revert"}
    assert set(methods.find(method).waives) <= known


@every_kind
@every_method
def test_target_probability_rises(method: str, kind: str) -> None:
    promise("target probability", method)
    receipt = made(method, kind).receipts[0]
    assert receipt.probability_after is not None
    assert receipt.probability_before is not None
    assert receipt.probability_after > receipt.probability_before


@every_kind
@every_method
def test_pretrained_parameters_are_untouched(method: str, kind: str) -> None:
    found = made(method, kind)
    assert found.after == found.before
    assert all(parameter.grad is None for parameter in found.model.base.parameters())


@every_kind
@every_method
def test_lifted_is_the_pretrained_model_bit_for_bit(method: str, kind: str) -> None:
    model, base = edited(method, kind), EditedModel(tiny(kind), tiny_tokenizer())
    names = [name for name, _ in base.base.named_modules()]
    before = [logits(model, prompt) for prompt in PROMPTS]
    with model.lifted():
        assert [name for name, _ in model.base.named_modules()] == names
        for prompt in PROMPTS:
            assert torch.equal(logits(model, prompt), logits(base, prompt))
    after = [logits(model, prompt) for prompt in PROMPTS]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)), "the edits are back after the scope"


@every_kind
@every_method
def test_lifted_comes_back_after_an_exception(method: str, kind: str) -> None:
    model = edited(method, kind)
    before = logits(model, PROMPTS[0])
    with pytest.raises(ZeroDivisionError), model.disable_edits():
        raise ZeroDivisionError
    assert torch.equal(logits(model, PROMPTS[0]), before)


@every_kind
@every_method
def test_unrelated_prompts_are_bit_identical_to_the_base(method: str, kind: str) -> None:
    promise("unrelated prompts", method)
    model, base = edited(method, kind), EditedModel(tiny(kind), tiny_tokenizer())
    same = [torch.equal(logits(model, prompt), logits(base, prompt)) for prompt in UNRELATED]
    assert sum(same) >= len(same) - 1, same


@every_kind
@every_method
def test_first_edit_still_holds_after_the_last(method: str, kind: str) -> None:
    promise("first edit held", method)
    model = edited(method, kind)
    rows = model.tokens.rows([(EDITS[0].prompt, EDITS[0].target)])
    untouched = EditedModel(tiny(kind), tiny_tokenizer()).target_probability(rows)[0]
    assert model.target_probability(rows)[0] > untouched


@every_method
def test_save_and_load_give_the_same_logits(method: str, tmp_path: Path) -> None:
    for kind in ("llama", "gpt2"):
        model = edited(method, kind)
        model.save_pretrained(tmp_path / kind)
        again = EditedModel.from_pretrained(tmp_path / kind, base=tiny(kind), tokenizer=tiny_tokenizer())
        for prompt in (*PROMPTS, *UNRELATED):
            assert torch.equal(logits(again, prompt), logits(model, prompt))
        assert again.edits == model.edits


@every_method
def test_a_loaded_model_goes_on_as_the_saved_one_would(method: str, tmp_path: Path) -> None:
    whole, half = edited(method, "llama"), fresh(method)
    half.edit_many(EDITS[:2])
    half.save_pretrained(tmp_path)
    resumed = EditedModel.from_pretrained(tmp_path, base=tiny("llama"), tokenizer=tiny_tokenizer())
    resumed.edit_many(EDITS[2:])
    assert memories_of(resumed) == memories_of(whole)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
@every_method
def test_the_same_seed_twice_gives_the_same_bits(method: str, kind: str) -> None:
    again = fresh(method, kind)
    torch.manual_seed(123)
    again.edit_many(EDITS)
    assert memories_of(again) == memories_of(edited(method, kind))


@every_method
def test_two_models_in_one_process_do_not_meet(method: str) -> None:
    one, other = fresh(method), fresh(method, "gpt2")
    untouched = logits(other, PROMPTS[0])
    for edit in EDITS[:2]:
        one.edit(edit)
    assert torch.equal(logits(other, PROMPTS[0]), untouched)
    for edit in EDITS[2:]:
        other.edit(edit)
        one.edit(edit)
    assert memories_of(one) == memories_of(edited(method, "llama"))


@every_kind
@every_method
def test_a_batch_answers_as_each_prompt_alone(method: str, kind: str) -> None:
    model = edited(method, kind)
    prompts = [*PROMPTS, *UNRELATED]
    together = model.answer(prompts, 4)
    assert together == [model.answer([prompt], 4)[0] for prompt in prompts]


@every_kind
@every_method
def test_padding_on_either_side_changes_no_decision_and_no_answer(method: str, kind: str) -> None:
    model = edited(method, kind)
    prompts = [*PROMPTS, *UNRELATED]
    last = []
    for side in ("left", "right"):
        ids, attention = model.tokens.prompts(prompts, side)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        extra = {} if kind == "bloom" else {"position_ids": positions}
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=attention, **extra).logits
        places = attention.shape[1] - 1 - attention.flip(1).argmax(1)
        last.append(out[torch.arange(len(out)), places])
        rows = [{name: bool(d.rows[i]) for name, d in model.routing.decisions.items()} for i in range(len(prompts))]
        for prompt, decided in zip(prompts, rows, strict=True):
            logits(model, prompt)
            assert decided == {name: bool(d.rows[0]) for name, d in model.routing.decisions.items()}
    torch.testing.assert_close(last[0], last[1], rtol=1e-3, atol=1e-3)


@every_kind
@every_method
def test_generation_is_the_same_with_and_without_the_cache(method: str, kind: str) -> None:
    model = edited(method, kind)
    ids, attention = model.tokens.prompts([*PROMPTS, *UNRELATED])
    common = {"attention_mask": attention, "do_sample": False, "max_new_tokens": 5, "pad_token_id": 2}
    assert torch.equal(model.generate(ids, use_cache=True, **common), model.generate(ids, use_cache=False, **common))


@every_kind
@every_method
def test_teacher_forced_argmax_is_the_generated_text(method: str, kind: str) -> None:
    model = edited(method, kind)
    for prompt in PROMPTS:
        ids, attention = model.tokens.prompts([prompt])
        out = model.generate(ids, attention_mask=attention, do_sample=False, max_new_tokens=4, pad_token_id=2)
        mask = torch.arange(out.shape[1])[None] < ids.shape[1]
        with model.routing.prompt_is(mask), torch.no_grad():
            forced = model(input_ids=out, attention_mask=torch.ones_like(out)).logits.argmax(-1)
        new = out[0, ids.shape[1] :]
        real = len(new) if 1 not in new.tolist() else new.tolist().index(1) + 1
        assert torch.equal(forced[0, ids.shape[1] - 1 : -1][:real], new[:real])


@every_method
def test_beams_of_one_prompt_share_its_decision(method: str) -> None:
    model = edited(method, "llama")
    ids, attention = model.tokens.prompts([*PROMPTS[:2], *UNRELATED[:2]])
    common = {"attention_mask": attention, "do_sample": False, "max_new_tokens": 4, "pad_token_id": 2, "num_beams": 3}
    cached, uncached = (model.generate(ids, use_cache=flag, **common) for flag in (True, False))
    assert torch.equal(cached, uncached)


@every_kind
@every_method
def test_training_mode_changes_nothing(method: str, kind: str) -> None:
    model = edited(method, kind)
    before = logits(model, PROMPTS[0])
    for name, memory in model.memories.items():
        memory.train()
        assert torch.equal(logits(model, PROMPTS[0]), before), name
        memory.eval()


@every_method
def test_an_edit_in_training_mode_is_the_same_edit_and_keeps_the_mode(method: str) -> None:
    base = tiny("gpt2")  # has dropout
    base.train()
    model = fresh(method, base=base)
    model.edit_many(EDITS)
    assert base.training
    assert memories_of(model) == memories_of(edited(method, "gpt2"))


@every_method
def test_reading_never_writes(method: str) -> None:
    model = edited(method, "llama")
    before = memories_of(model), digest(model.base.named_parameters())
    logits(model, PROMPTS[0])
    model.answer([*PROMPTS, *UNRELATED], 3)
    told = model.explain(PROMPTS[0])
    assert told["memories"]
    assert (memories_of(model), digest(model.base.named_parameters())) == before


@every_method
def test_full_graph_compilation_sees_the_edit(method: str) -> None:
    model = edited(method, "llama")
    torch.compiler.reset()
    compiled = torch.compile(model.base, fullgraph=True, backend="eager")
    ids, attention = model.tokens.prompts([PROMPTS[0], UNRELATED[0]])
    with torch.no_grad():
        both = (run(input_ids=ids, attention_mask=attention, use_cache=False).logits for run in (compiled, model))
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


@every_kind
@every_method
def test_bfloat16_base(method: str, kind: str) -> None:
    model = fresh(method, base=tiny(kind, dtype=torch.bfloat16))
    receipt = model.edit(EDITS[0])
    assert receipt.probability_after is not None
    assert receipt.probability_before is not None
    risen = receipt.probability_after >= receipt.probability_before
    assert risen or "target probability" in methods.find(method).waives
    assert logits(model, PROMPTS[0]).dtype == torch.bfloat16


class Sealed(nn.Linear):
    """A linear map whose weight cannot be read from outside, as in quantised and offloaded models."""

    def __init__(self, inner: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self._inner = [inner]

    @property
    def weight(self) -> Tensor:
        raise RuntimeError("the weight of a sealed map cannot be read")

    def forward(self, a: Tensor) -> Tensor:
        found: Tensor = self._inner[0](a)
        return found


@every_method
def test_a_base_that_can_only_be_called(method: str) -> None:
    base = tiny("llama")
    for layer in base.model.layers:
        layer.mlp.down_proj = Sealed(layer.mlp.down_proj)
    model = fresh(method, base=base)
    model.edit_many(EDITS)
    assert memories_of(model) == memories_of(edited(method, "llama"))


@every_method
def test_nbytes_is_what_is_stored(method: str) -> None:
    said, found = zip(*made(method, "llama").sizes, strict=True)
    assert said == found
    assert list(said) == sorted(said)


@every_method
def test_a_failing_edit_leaves_everything_as_it_was(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = begun(method)
    before, history = memories_of(model), list(model.history)

    def broken(*args: object, **kwargs: object) -> Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    module = type(model.editor).__module__
    monkeypatch.setattr(f"{module}.target_nll", broken)
    with pytest.raises(EditFailed, match="the loss became nan"):
        model.edit(EDITS[1])
    assert memories_of(model) == before
    assert model.history == history


@every_method
def test_an_interrupted_edit_leaves_everything_as_it_was(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = begun(method)
    before = memories_of(model)

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    module = type(model.editor).__module__
    loop = next((name for name in ("fit", "fit_each") if hasattr(sys.modules[module], name)), None)
    if loop is None:
        pytest.skip(f"{method} learns nothing by gradient descent")
    monkeypatch.setattr(f"{module}.{loop}", stop)
    with pytest.raises(KeyboardInterrupt):
        model.edit(EDITS[1])
    assert memories_of(model) == before
    assert len(model.history) == 1


@every_method
def test_the_same_edit_twice_is_made_once(method: str) -> None:
    model = begun(method)
    before = memories_of(model)
    receipt = model.edit(EDITS[0])
    assert "already in force" in receipt.note
    assert memories_of(model) == before


@every_method
def test_a_contradicting_edit_wins_and_says_so(method: str) -> None:
    model = fresh(method)
    model.edit(EDITS[0])
    other = Edit(EDITS[0].prompt, "Sondo", subject=EDITS[0].subject)
    receipt = model.edit(other)
    assert receipt.supersedes == EDITS[0].id
    assert EDITS[0].target in receipt.note
    assert model.edits == [other]
    assert model.history == [EDITS[0], other]
    promise("contradiction", method)
    rows = model.tokens.rows([(other.prompt, other.target), (other.prompt, EDITS[0].target)])
    new, old = model.target_probability(rows)
    assert new > old
