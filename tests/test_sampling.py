"""Context prefixes and irrelevant prompts: seeded, and owned by one model."""

import torch

from errata.model import EditedModel
from errata.sampling import Sampling, draw_prefixes, everyday, stable_seed
from errata.tokens import Tokens
from tiny import tiny_llama, tiny_tokenizer


def test_prefixes_are_the_unedited_models_own_and_depend_on_the_seed_only() -> None:
    tokens, base = Tokens(tiny_tokenizer()), tiny_llama()
    torch.manual_seed(1)
    first = draw_prefixes(base, tokens, 0)
    torch.manual_seed(2)
    assert draw_prefixes(base, tokens, 0) == first
    assert draw_prefixes(base, tokens, 1) != first
    assert len(first) == 10
    assert EditedModel(base, tiny_tokenizer()).prefixes() == first


def test_contexts_begin_with_the_bare_prompt() -> None:
    model = EditedModel(tiny_llama(), tiny_tokenizer(), prefixes=("It is said.",))
    assert model.contexts("Snow is") == ["Snow is", "It is said. Snow is"]


def test_a_model_without_irrelevant_prompts_has_everyday_ones() -> None:
    assert Sampling().irrelevant == everyday()
    assert len(everyday()) > 100
    assert all(probe.prompt and probe.answer for probe in everyday())
    assert len({probe.prompt for probe in everyday()}) == len(everyday())


def test_seeds_are_the_same_on_every_machine() -> None:
    assert stable_seed(0, "wise/mask", 0) == 3762921623
    assert stable_seed(1, "wise/mask", 0) == 3762921623 + 1_000_003
