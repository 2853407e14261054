"""Causal tracing: every check of methods.md 12.2."""

import math

import pytest
import torch

from architectures import CORE, tiny
from errata.analysis.effects import effects
from errata.analysis.tracing import KINDS, Prompt, Traced, Tracing
from errata.edit import Edit
from errata.errors import BadOption, UnknownName
from errata.model import EditedModel
from test_every_method import digest
from tiny import EDITS, successor_llama, tiny_tokenizer, word_tokenizer

FACT = EDITS[1]  # "The mother of Ada Quill is"


def tracing(kind: str = "llama", **options: object) -> Tracing:
    return Tracing(EditedModel(tiny(kind), tiny_tokenizer()), **{"samples": 3, **options})


def everywhere(runs, *, but: int = 0):
    """All tokens, less the last few: one case."""
    seq = runs.ids.shape[1]
    return (torch.arange(seq) < seq - but)[None]


# -- what is put back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CORE)
def test_restoring_all_states_of_a_layer_gives_the_clean_probability(kind: str) -> None:
    found = tracing(kind)
    prompt = found.prompt(FACT)
    runs = found.runs(prompt, scale=0.2)
    assert not torch.allclose(runs.corrupted, runs.p.expand_as(runs.corrupted), atol=1e-3)
    for layer in range(3):
        p = found.restore(runs, "states", layer, everywhere(runs))[0]
        torch.testing.assert_close(p, runs.p.expand_as(p), atol=1e-5, rtol=1e-4)
        assert float(p[0, prompt.answer]) == pytest.approx(prompt.probability, abs=1e-5)


@pytest.mark.parametrize("kind", CORE)
@pytest.mark.parametrize("place", KINDS)
def test_restoring_nothing_leaves_the_corrupted_run(kind: str, place: str) -> None:
    found = tracing(kind)
    runs = found.runs(found.prompt(FACT), scale=0.2)
    nothing = torch.zeros(2, runs.ids.shape[1], dtype=torch.bool)
    for layer in range(3):
        p = found.restore(runs, place, layer, nothing)
        torch.testing.assert_close(p, runs.corrupted.expand_as(p), atol=1e-6, rtol=1e-5)


def test_the_last_state_of_the_last_token_is_all_that_the_answer_is_read_from() -> None:
    found = tracing()
    prompt = found.prompt(FACT)
    traced = found.trace(prompt, scale=0.2)
    assert float(traced.restored["states"][-1, -1]) == pytest.approx(prompt.probability, abs=1e-6)
    assert traced.corrupted != pytest.approx(prompt.probability, abs=1e-3)


def test_without_noise_there_is_no_effect() -> None:
    found = tracing(noise=0.0)
    prompt = found.prompt(FACT)
    traced = found.trace(prompt, scale=1.0)
    assert traced.corrupted == pytest.approx(prompt.probability, abs=1e-6)
    for p in traced.restored.values():
        torch.testing.assert_close(p, torch.full_like(p, prompt.probability), atol=1e-6, rtol=0)


def test_tokens_before_the_subject_carry_nothing() -> None:
    found = tracing()
    prompt = found.prompt(FACT)
    runs = found.runs(prompt, scale=0.2)
    before = (torch.arange(len(prompt.ids)) < prompt.subject.start)[None]
    for layer in range(3):
        p = found.restore(runs, "states", layer, before)[0]
        torch.testing.assert_close(p, runs.corrupted, atol=1e-6, rtol=1e-5)


def test_a_window_over_all_blocks_of_both_kinds_leaves_only_the_embeddings_corrupted() -> None:
    """With what all maps wrote put back everywhere, the last state differs from the clean one by nothing at the last
    token, whose embedding has no noise."""
    found = tracing(window=8)
    runs = found.runs(found.prompt(FACT), scale=0.2)
    assert found.touched("mlp", 1) == range(3)
    mlp = found.restore(runs, "mlp", 1, everywhere(runs))[0]
    last = (torch.arange(runs.ids.shape[1]) == runs.ids.shape[1] - 1)[None]
    assert not torch.allclose(mlp, runs.p.expand_as(mlp), atol=1e-3)  # attention still reads what is corrupted
    for module in found.places["attention"]:
        clean = runs.clean[module]
        module.register_forward_hook(lambda _m, _a, _y, clean=clean: clean.expand(3, -1, -1))
    both = found.restore(runs, "mlp", 1, last)[0]
    torch.testing.assert_close(both, runs.p.expand_as(both), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("layer", "expected"), [(0, range(1)), (1, range(2)), (2, range(1, 3))])
def test_a_window_reaches_half_of_its_width_to_either_side(layer: int, expected: range) -> None:
    found = tracing(window=2)
    assert found.touched("mlp", layer) == expected
    assert found.touched("states", layer) == range(layer, layer + 1)


def test_batches_of_any_size_find_the_same() -> None:
    one, other = (tracing(rows=rows) for rows in (1, 512))
    a, b = (found.trace(found.prompt(FACT), scale=0.2) for found in (one, other))
    for kind in KINDS:
        torch.testing.assert_close(a.restored[kind], b.restored[kind], atol=1e-6, rtol=1e-5)
    assert all(0 <= float(p) <= 1 for kind in KINDS for p in a.restored[kind].flatten())


def test_tracing_leaves_the_model_as_it_is() -> None:
    found = tracing()
    base = found.model.base
    before, ids = digest(base.named_parameters()), torch.tensor([[0, 5, 6, 7]])
    logits = base(ids).logits
    found.trace(found.prompt(FACT), scale=0.2)
    assert digest(base.named_parameters()) == before
    assert torch.equal(base(ids).logits, logits)


# -- facts -------------------------------------------------------------------------------------------------------------


def test_the_subject_is_found_behind_the_mark_of_the_beginning() -> None:
    found = tracing()
    tokens = found.model.tokens
    for edit in EDITS:
        prompt = found.prompt(edit)
        assert tokens.decode([prompt.ids[i] for i in prompt.subject]).strip() == edit.subject
        assert prompt.subject.start >= 1
    assert found.prompt(EDITS[3]).subject.start == 1  # "Ivo Stane plays the"


def test_only_known_facts_are_traced() -> None:
    tokenizer = word_tokenizer(["Ada", "Quill", "lives", "in", "Sondo", "Tolk"])
    found = Tracing(EditedModel(successor_llama(tokenizer, {"in": "Sondo"}), tokenizer))
    true, wrong, untold = (
        Edit("Ada Quill lives in", "Tolk", subject="Ada Quill", target_old=old) for old in ("Sondo", "Tolk", None)
    )
    assert found.known([true, wrong]) == found.known([untold]) == [found.prompt(true)]
    assert found.prompt(true).answer == tokenizer.get_vocab()["Sondo"]
    with pytest.raises(BadOption, match="knows none of these 1 facts"):
        found.known([wrong])


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"samples": 0}, {"rows": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match="at least 1"):
        tracing(**options)


@pytest.mark.parametrize("kinds", [(), ("state",)])
def test_kinds_that_there_are_not_are_refused(kinds: tuple[str, ...]) -> None:
    with pytest.raises(UnknownName, match="no kind of state is called"):
        tracing(kinds=kinds)


def test_roles_of_tokens() -> None:
    prompt = Prompt(tuple(range(10)), range(2, 6), 0, 1.0)
    names = [
        "first subject",
        "middle subject",
        "middle subject",
        "last subject",
        "first after",
        "further",
        "further",
        "last",
    ]
    assert prompt.roles == list(zip(range(2, 10), names, strict=True))
    assert Prompt((0, 1, 2), range(1, 2), 0, 1.0).roles == [(1, "last subject"), (2, "last")]
    assert Prompt((0, 1), range(1, 2), 0, 1.0).roles == [(1, "last")]


# -- averages ----------------------------------------------------------------------------------------------------------


def test_effects_are_averaged_over_tokens_of_a_fact_and_then_over_facts() -> None:
    long = Prompt((0, 1, 2, 3, 4), range(1, 4), 7, 0.9)  # first, middle, last subject; last
    short = Prompt((0, 1, 2), range(1, 2), 7, 0.7)  # last subject; last
    one = Traced(long, 0.1, {"states": torch.tensor([[0.1, 0.2], [0.1, 0.1], [0.5, 0.3], [0.9, 0.9]])})
    other = Traced(short, 0.3, {"states": torch.tensor([[0.3, 0.5], [0.7, 0.7]])})
    told = effects([one, other])
    assert told["total_effect"] == pytest.approx((0.8 + 0.4) / 2)
    states = told["kinds"]["states"]
    assert states["last subject"]["aie"] == pytest.approx([(0.4 + 0.0) / 2, (0.2 + 0.2) / 2])
    assert states["last"]["aie"] == pytest.approx([0.6, 0.6])
    assert states["last"]["standard_error"] == pytest.approx([0.4 / math.sqrt(2) / math.sqrt(2)] * 2)
    assert states["middle subject"]["facts"] == 1
    assert "further" not in states
