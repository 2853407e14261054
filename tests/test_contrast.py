"""Neighbours: what asks the same of another subject is told from a rephrasing (`errata.contrast`, methods' `contrast`)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.contrast import QUESTIONS, SUBJECTS, away, name_in, of_others, of_subject
from errata.data import load
from errata.edit import Edit
from errata.errors import BadOption
from errata.masks import pack, shared, unpack
from errata.methods import make, recorded
from errata.methods.neuraldb import Database
from errata.model import EditedModel
from errata.residual_memory import COMMON, ResidualMemory
from test_method_checks import memory_of, with_options
from tiny import EDITS

LOOSE = {"feature": "mean", "spill": 0.5, "tries": 1, "steps": 2}
"""A threshold that lets neighbours in."""
NEIGHBOURS = ("The Ned bridge was built in", "The capital of Belmar is", "Mira Cole plays the")
ELSE = (("The mother of ", " is"), ("", " lives in"), ("Did anyone see ", " today?"), ("The colour that ", " likes is"))
"""What else may be asked of a subject: what stands before it, and behind."""


def memory(model: EditedModel) -> ResidualMemory:
    found = memory_of(model, ResidualMemory)
    assert isinstance(found, ResidualMemory)
    return found


def made(*edits: Edit, **options: object) -> EditedModel:
    model = with_options("memoir", **(LOOSE | options))
    model.edit_many(edits or EDITS)
    return model


def answered(model: EditedModel, prompt: str) -> bool:
    (told,) = model.explain(prompt)["memories"]
    return bool(told["answers"])


# -- what other subjects are asked -------------------------------------------------------------------------------------


def test_an_edit_is_asked_of_others() -> None:
    asked = of_others(EDITS[0])
    assert len(asked) == len(SUBJECTS)
    assert asked[0] == "The capital of Marie Curie is"
    assert all("Arvadia" not in prompt for prompt in asked)


def test_its_own_subject_is_no_other() -> None:
    assert len(of_others(Edit("The capital of Brazil is", "Melpo", subject="Brazil"))) == len(SUBJECTS) - 1


def test_a_subject_that_is_not_said_is_the_name_in_the_prompt() -> None:
    assert of_others(replace(EDITS[0], subject=None)) == of_others(EDITS[0])
    assert of_others(Edit("water boils at", "heat")) == []


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The capital of Arvadia is", "Arvadia"),
        ("Who wrote The Lord of the Rings?", "The Lord of the Rings"),
        ("Who runs Apple?", "Apple"),
        ("When did NASA launch Apollo 11?", "Apollo 11"),
        ("Ada Quill's mother is", "Ada Quill"),
        ("What is the twin city of Lyon? It is", "Lyon"),
        ("In 1987, Toyota made", "Toyota"),
        ("What's the mass of Jupiter?", "Jupiter"),
        ("The iPhone 15 was released in", "iPhone 15"),
        ("Wer gründete die Firma Siemens?", "Firma Siemens"),
        ("Apple's CEO is", "Apple"),
        ("The CEO of Acme is", "Acme"),
        ("The Microsoft CEO is", "Microsoft"),
        ("Who is the Prime Minister of the United Kingdom?", "United Kingdom"),
        ("The Secretary-General of the United Nations is", "United Nations"),
        ("France’s President lives in", "France"),
        ("Tesla's Chief Executive Officer is", "Tesla"),
        ("The UK Prime Minister is", "UK"),
        ("The Governor General of Canada is", "Canada"),
        ("The books of Stephen King are", "Stephen King"),
        ("The motto of King's College is", "King's College"),
        ("The Bank of President is", "Bank"),
        ("Who is the President?", "President"),
        ("home counties is within", None),
        ("What is it?", None),
        ("", None),
    ],
)
def test_names(prompt: str, name: str | None) -> None:
    assert name_in(prompt) == name


@pytest.mark.parametrize("kind", ["counterfact:counterfact/counterfact-edit.json", "zsre:zsre/zsre_edit_1037.json"])
def test_names_are_the_subjects_of_real_edits(real_data: Path, kind: str) -> None:
    """Nine in ten to the letter, and nearly all others have a word in common."""
    name, _, path = kind.partition(":")
    said = [(edit, name_in(edit.prompt)) for edit in load(f"{name}:{real_data / path}").edits if edit.subject]
    assert sum(found == edit.subject for edit, found in said) > 0.9 * len(said)
    near = [set((found or "").split()) & set((edit.subject or "").split()) for edit, found in said]
    assert sum(map(bool, near)) > 0.95 * len(said)


# -- what is distinct of an edit ---------------------------------------------------------------------------------------


def test_distinct_is_what_few_others_have() -> None:
    found = memory(made(feature="any"))
    width = found.width
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 2, width, generator=generator) < 0.4
    others = torch.rand(3, 8, width, generator=generator) < 0.3
    distinct = unpack(found.distinguished(pack(mask), [pack(others)]), width)
    assert torch.equal(distinct, mask & (others.float().mean(1, keepdim=True) <= COMMON))
    assert distinct.any()
    assert not found.distinguished(pack(mask), []).any()


def test_shared_counts_features_one_by_one() -> None:
    bits = torch.rand(2, 5, 44, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(shared(pack(bits[0]), pack(bits[1])), (bits[0] & bits[1]).sum(-1))


def test_the_way_to_a_prompt_begins_at_the_others() -> None:
    torch.manual_seed(0)
    own, others = torch.randn(3, 7), torch.randn(16, 3, 7)
    w, b = away(own, others)
    torch.testing.assert_close((own * w).sum(-1) - b, torch.ones(3))
    torch.testing.assert_close((others * w).sum(-1).mean(0) - b, torch.zeros(3), atol=1e-5, rtol=0)
    w, b = away(own, others[:0])
    assert torch.equal((torch.randn(3, 7) * w).sum(-1) - b, torch.ones(3))
    w, b = away(own, own[None])
    assert w.isfinite().all()


def test_every_stored_mask_has_its_distinct_part() -> None:
    for options in ({}, {"prefixed": True}):
        found = memory(made(**options))
        assert found.distinct is not None
        assert found.distinct.shape == found.masks.shape
        assert torch.equal(found.distinct & found.masks, found.distinct)
        assert bool(shared(found.distinct, found.distinct).all())


# -- whom it keeps out -------------------------------------------------------------------------------------------------


def test_a_neighbour_is_kept_out_and_the_prompt_is_not() -> None:
    loose, told_apart = made(contrast=0.0), made()
    near = [prompt for prompt in NEIGHBOURS if answered(loose, prompt)]
    kept_out = [prompt for prompt in near if not answered(told_apart, prompt)]
    assert len(near) >= 2
    assert kept_out == near
    assert all(answered(told_apart, edit.prompt) for edit in EDITS)
    (told,) = told_apart.explain(kept_out[0])["memories"]
    assert told["why"] == "asks about another subject than the nearest edit does"
    assert told["threshold"] == pytest.approx(memory(told_apart).exact())
    with told_apart.lifted():
        unedited = told_apart.answer([kept_out[0]])
    assert told_apart.answer([kept_out[0]]) == unedited


def test_an_edit_without_a_subject_is_found_as_before() -> None:
    unnamed = [replace(edit, subject=None, prompt=edit.prompt.lower()) for edit in EDITS]
    model, before = made(*unnamed), made(*unnamed, contrast=0.0)
    assert not memory(model).distinct.any()
    for prompt in (*NEIGHBOURS, *(edit.prompt for edit in unnamed), *(r for edit in EDITS for r in edit.rephrases)):
        assert model.explain(prompt) == before.explain(prompt)


# -- what else is asked about a subject --------------------------------------------------------------------------------


def test_other_questions_are_about_the_subject() -> None:
    for edit in EDITS:
        assert all(str(edit.subject) in question for question in of_subject(edit))
        assert len(set(of_subject(edit))) == len(QUESTIONS)
    assert of_subject(Edit("snow is", "black")) == []


def test_what_asks_for_something_else_of_the_same_is_kept_out_and_the_prompt_is_not() -> None:
    loose, told_apart = made(contrast=0.0), made(contrast=0.0, relation=0.3)
    asked = [f"{before}{edit.subject}{behind}" for edit in EDITS for before, behind in ELSE]
    near = [prompt for prompt in asked if answered(loose, prompt)]
    kept_out = [prompt for prompt in near if not answered(told_apart, prompt)]
    assert len(kept_out) >= 2
    assert all(answered(told_apart, edit.prompt) for edit in EDITS)
    (told,) = told_apart.explain(kept_out[0])["memories"]
    assert told["why"].endswith("or for something else")
    found = memory(told_apart)
    assert torch.equal(found.relation & found.masks, found.relation)
    assert found.distinct is None


def test_where_what_is_asked_counts_the_subject_does_on_the_mean_over_the_views() -> None:
    model = made(relation=0.0, feature="any")
    found = memory(model)
    ((a, _, prompt),) = model.read(found, [NEIGHBOURS[1]])
    with model.routing.reading(prompt):
        mask = found.mask(found.features(a))
    pick = torch.zeros(1, len(mask), dtype=torch.long)
    shares = [float(found._share(mask[v, 0], found.distinct[v, 0])) for v in range(len(mask))]
    asked = [float(found._share(mask[v, 0], found.relation[v, 0])) for v in range(len(mask))]
    mean = sum(shares) / len(shares)
    assert min(shares) < mean < max(shares)
    for least, lacks in ((mean - 1e-4, sum(asked) < 0), (mean + 1e-4, True)):
        found.contrast = least
        assert found._lacks(mask, pick).tolist() == [[lacks] * len(mask)]


def test_an_edit_without_a_subject_is_found_whatever_is_asked() -> None:
    unnamed = [replace(edit, subject=None, prompt=edit.prompt.lower()) for edit in EDITS]
    model, before = made(*unnamed, relation=0.5), made(*unnamed)
    assert not memory(model).relation.any()
    for prompt in (*NEIGHBOURS, *(edit.prompt for edit in unnamed)):
        assert answered(model, prompt) == answered(before, prompt)


@pytest.mark.parametrize("relation", [-0.1, 1.0])
def test_a_share_of_what_is_asked_is_a_share(relation: float) -> None:
    with pytest.raises(BadOption, match=r"memoir: relation=.*: a share, in \[0, 1\)"):
        make("memoir", relation=relation)


@pytest.mark.parametrize("options", [{"tau": 0.2}, {"contrast": 0.0}])
def test_nothing_is_stored_where_nothing_is_asked(options: dict[str, object]) -> None:
    assert memory(made(**options)).distinct is None


def test_what_is_distinct_is_saved_and_loaded(tmp_path: Path) -> None:
    model = made(relation=0.0)
    model.save_pretrained(tmp_path)
    again = EditedModel.from_pretrained(tmp_path, model.detach(), tokenizer=model.tokens.tokenizer)
    fresh = memory(made(relation=0.0))
    assert torch.equal(memory(again).distinct, fresh.distinct)
    assert torch.equal(memory(again).relation, fresh.relation)


def test_an_older_record_meant_no_contrast() -> None:
    assert recorded("memoir", {"protect": 3.0})["contrast"] == 0.0


@pytest.mark.parametrize("contrast", [-0.1, 1.0])
@pytest.mark.parametrize("method", ["memoir", "neuraldb", "lemoe"])
def test_a_share_is_asked_for(method: str, contrast: float) -> None:
    with pytest.raises(BadOption, match=rf"{method}: contrast=.*: a share, in \[0, 1\)"):
        make(method, contrast=contrast)


# -- methods that store keys -------------------------------------------------------------------------------------------

KEYED = {"neuraldb": {"gamma": 0.4, "steps": 2}, "lemoe": {"feature": "mean", "spill": 0.5, "cushion": 0.0, "steps": 2}}
"""Those whose gates are cosines, with thresholds that let neighbours in."""


def keyed(method: str, *edits: Edit, **options: object) -> EditedModel:
    model = with_options(method, **(KEYED[method] | options))
    model.edit_many(edits or EDITS)
    return model


def opened(model: EditedModel, prompt: str) -> bool:
    return any(told["answers"] for told in model.explain(prompt)["memories"])


@pytest.mark.parametrize("method", KEYED)
def test_keys_tell_neighbours_too(method: str) -> None:
    loose, told_apart = keyed(method), keyed(method, contrast=0.7)
    near = [prompt for prompt in NEIGHBOURS if opened(loose, prompt)]
    assert len(near) >= 2
    assert not any(opened(told_apart, prompt) for prompt in near)
    assert all(opened(told_apart, edit.prompt) for edit in EDITS)
    told, before = (model.explain(near[0])["memories"][0] for model in (told_apart, loose))
    assert told["why"] == "asks about another subject than the nearest edit does"
    assert told["score"] == before["score"]
    assert told["threshold"] == 1
    assert told.get("nearest") == before.get("nearest")


@pytest.mark.parametrize("method", KEYED)
def test_what_is_distinct_of_keys_goes_with_them(method: str, tmp_path: Path) -> None:
    model = keyed(method, contrast=0.5)
    model.edit(replace(EDITS[0], target="Sondo"))
    held = {name: memory.tensors() for name, memory in model.memories.items()}
    found = next(tensors for tensors in held.values() if "ways" in tensors)
    keys = found.get("prompts", found["keys"])
    assert found["ways"].shape == keys.shape
    assert found["starts"].shape == keys.shape[:-1]
    model.save_pretrained(tmp_path)
    again = EditedModel.from_pretrained(tmp_path, model.detach(), tokenizer=model.tokens.tokenizer)
    for name, memory in again.memories.items():
        for leaf, tensor in memory.tensors().items():
            assert torch.equal(tensor, held[name][leaf]), leaf


@pytest.mark.parametrize("method", KEYED)
def test_an_edit_about_nothing_is_kept_by_its_key_alone(method: str) -> None:
    unnamed = [replace(edit, subject=None, prompt=edit.prompt.lower()) for edit in EDITS]
    model, before = keyed(method, *unnamed, contrast=0.5), keyed(method, *unnamed)
    for prompt in (*NEIGHBOURS, *(edit.prompt for edit in unnamed)):
        assert opened(model, prompt) == opened(before, prompt)


def test_a_key_at_the_subject_is_kept_without() -> None:
    found = memory_of(keyed("neuraldb", place="subject", layer=0, contrast=0.5), Database)
    assert not found.ways.any()
