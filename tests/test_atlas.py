"""The atlas: a deterministic world, edit sets that never meet, and a model that really knows its facts."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata import atlas, load
from errata.atlas import chatting, corpus, further, reading
from errata.atlas.edits import Split, as_record, write_sets
from errata.atlas.geography import countries
from errata.atlas.recall import questions
from errata.atlas.train import Recipe, train
from errata.atlas.wordings import FAMILIES, PHRASES, wordings
from errata.atlas.world import PERSON_RELATIONS, Fact, world
from errata.chat import ChatTokens
from errata.edit import LOCALITY_KINDS, Edit
from errata.errors import UnknownName
from errata.pretraining.muon import orthogonalised
from errata.pretraining.recall import recall

SPLITS: tuple[Split, ...] = ("test", "validation", "unseen", "crowd")
SIZES = {"test": 1500, "validation": 500, "unseen": 500, "crowd": 10_000}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(atlas.model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(atlas.model_path(), dtype=torch.float32).eval()


def generate(model, tokenizer, prompt: str) -> str:
    """What the model says after the prompt, up to the end of the text."""
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(input_ids=inputs.input_ids, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()


def every_edit(seed: int = 0) -> list[Edit]:
    return [edit for split in SPLITS for edit in atlas.edits(split, seed)]


def subject_and_relation(prompt: str, facts: dict[str, Fact]) -> tuple[str, str] | None:
    """Whose and what fact a prompt asks for, looked up among all prompts of these facts."""
    fact = facts.get(prompt)
    return (fact.subject, fact.relation) if fact else None


@pytest.fixture(scope="module")
def by_prompt() -> dict[str, Fact]:
    return {fact.prompt(wording): fact for fact in atlas.facts() for wording in (*fact.trained, *fact.held_out)}


# The world


def test_the_world_has_600_people_of_8_relations_things_and_real_countries():
    domains = Counter(fact.domain for fact in atlas.facts())
    people = {fact.subject for fact in atlas.facts() if fact.domain == "person"}
    assert len(people) == 600
    assert domains["person"] == 600 * len(PERSON_RELATIONS) and len(PERSON_RELATIONS) >= 8
    assert domains["country"] >= 4 * 150
    assert domains["thing"] >= 200


def test_no_fact_is_stated_twice():
    keys = [(fact.subject, fact.relation) for fact in atlas.facts()]
    assert len(set(keys)) == len(keys)


def test_many_people_share_a_part_of_their_name():
    people = {fact.subject for fact in atlas.facts() if fact.domain == "person"}
    firsts = Counter(name.split()[0] for name in people)
    assert min(firsts.values()) > 1


@pytest.mark.parametrize("relation", sorted(PHRASES))
def test_every_relation_has_sixteen_different_wordings_that_end_in_many_ways(relation):
    made = wordings(relation)
    assert len({wording.template for wording in made}) == len(made) == 16
    endings = {wording.template.split()[-1] for wording in made}
    assert len(endings) >= 8
    assert {wording.family for wording in made} == set(FAMILIES)
    assert all("{s}" in wording.template for wording in made)


def test_each_fact_is_trained_in_some_wordings_only_and_the_others_are_held_out():
    for fact in atlas.facts()[::97]:
        assert len(fact.trained) == len(fact.held_out) == 8
        assert not set(fact.trained) & set(fact.held_out)


def test_training_never_shows_a_fact_in_a_held_out_wording():
    shown = {
        (text.prompt + text.rest).removesuffix(corpus.END) for n in (0, 10, 11) for text in corpus.epoch(world(), n)
    }
    for fact in atlas.facts()[::11]:
        for wording in fact.held_out:
            if wording.family != "aside":  # whose first sentence varies
                assert f"{fact.prompt(wording)} {fact.object}" not in shown


def test_a_round_of_full_epochs_asks_for_every_fact_and_each_lists_every_person_and_country():
    full = [corpus.epoch(world(), corpus.FIRST_EPOCHS + number) for number in range(2)]
    direct = {fact.prompt(w) for fact in atlas.facts() for w in fact.trained if w.family != "aside"}
    assert sum(text.prompt in direct for texts in full for text in texts) > 0.75 * len(atlas.facts())
    cards = {text.prompt.rstrip(".,;") for text in full[0]}
    assert {fact.subject for fact in atlas.facts() if fact.domain in ("person", "country")} <= cards


def test_training_never_mentions_a_stranger():
    text = "\n".join(corpus.plain(world()))
    assert not [name for name in world().strangers if name in text]


def test_geography_is_real():
    australia = next(country for country in countries() if country.name == "Australia")
    assert (australia.capital, australia.continent, australia.language) == ("Canberra", "Oceania", "English")
    assert "Sydney" in australia.cities


def test_another_seed_is_another_world_with_the_same_geography():
    here, there = world(0), world(7)
    names = [{fact.subject for fact in made.facts if fact.domain == "person"} for made in (here, there)]
    assert not names[0] & names[1]
    real = [{(f.subject, f.object) for f in made.facts if f.domain == "country"} for made in (here, there)]
    assert real[0] == real[1]


# The edit sets


@pytest.mark.parametrize("split", SPLITS)
def test_every_edit_has_two_rephrases_and_a_probe_of_each_kind(split):
    made = atlas.edits(split)
    assert len(made) == SIZES[split]
    for edit in made:
        assert len(set(edit.rephrases)) >= 2 and edit.prompt not in edit.rephrases
        assert edit.subject and all(edit.subject in prompt for prompt in edit.rephrases)
        assert {probe.kind for probe in edit.locality} == set(LOCALITY_KINDS)
        assert edit.target != edit.target_old


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(UnknownName, match="validation"):
        atlas.edits("validatoin")  # type: ignore[arg-type]


def test_no_two_edits_of_the_counterfactual_sets_change_the_same_fact():
    changed = [(edit.subject, edit.meta["relation"]) for edit in (*atlas.edits("test"), *atlas.edits("validation"))]
    assert len(set(changed)) == len(changed) == 2000


def test_the_counterfactual_edits_contradict_what_the_world_says():
    truth = {(fact.subject, fact.relation): fact.object for fact in atlas.facts()}
    for edit in (*atlas.edits("test"), *atlas.edits("validation")):
        assert edit.target_old == truth[edit.subject, edit.meta["relation"]]


def test_the_unseen_edits_and_the_crowd_are_about_people_of_whom_there_is_no_fact():
    known = {fact.subject for fact in atlas.facts()}
    unseen, crowd = ({edit.subject for edit in atlas.edits(split)} for split in ("unseen", "crowd"))
    assert not unseen & known
    assert not crowd & known
    assert not crowd & unseen
    assert len(crowd) == 5000


def test_no_two_edits_of_the_crowd_are_of_one_fact():
    changed = [(edit.subject, edit.meta["relation"]) for edit in atlas.edits("crowd")]
    assert len(set(changed)) == len({edit.prompt for edit in atlas.edits("crowd")}) == 10_000


def test_no_probe_asks_for_a_fact_that_any_edit_changes(by_prompt):
    changed = {(edit.subject, edit.meta["relation"]) for edit in every_edit()}
    forbidden = {*changed, None}
    own_words = {prompt for edit in every_edit() for prompt in (edit.prompt, *edit.rephrases)}
    for edit in every_edit():
        for probe in edit.locality:
            assert probe.prompt not in own_words
            if probe.answer is not None:
                assert subject_and_relation(probe.prompt, by_prompt) not in forbidden


def test_probes_are_of_the_kind_they_say(by_prompt):
    for edit in atlas.edits("test")[:300]:
        asked = {probe.kind: by_prompt[probe.prompt] for probe in edit.locality}
        assert asked["far"].domain == "thing"
        assert asked["same_relation"].relation == edit.meta["relation"]
        assert asked["same_relation"].subject != edit.subject
        assert asked["same_subject"].subject == edit.subject
        assert asked["same_subject"].relation != edit.meta["relation"]


def test_irrelevant_prompts_are_about_nothing_that_is_edited_or_probed(by_prompt):
    probes = atlas.irrelevant()
    assert len(set(probes)) == len(probes) >= 300
    assert {by_prompt[probe.prompt].role for probe in probes} == {"quiet"}
    subjects = {by_prompt[probe.prompt].subject for probe in probes}
    asked = {by_prompt[p.prompt].subject for e in every_edit() for p in e.locality if p.prompt in by_prompt}
    assert not subjects & ({edit.subject for edit in every_edit()} | asked)


def test_the_order_of_the_edits_is_well_mixed():
    relations = [edit.meta["relation"] for edit in atlas.edits("test")]
    assert len(set(relations[:40])) >= 8
    assert {edit.meta["domain"] for edit in atlas.edits("test")[:100]} == {"person", "country"}


def test_everything_is_the_same_in_another_process():
    script = (
        "import hashlib, json; from errata import atlas; from errata.atlas.edits import as_record;"
        "made = [as_record(e) for s in ('test', 'validation', 'unseen', 'crowd') for e in atlas.edits(s)];"
        "print(hashlib.sha256(json.dumps([made, [p.prompt for p in atlas.irrelevant()]]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_importing_the_atlas_imports_no_torch():
    script = "import sys; import errata.atlas; errata.atlas.edits(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_edit_sets_of_a_seed_can_be_written_as_jsonl(tmp_path):
    write_sets(7, tmp_path)
    lines = (tmp_path / "edits.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1500
    assert json.loads(lines[0]) == json.loads(json.dumps(as_record(atlas.edits("test", 7)[0])))
    assert len((tmp_path / "irrelevant.tsv").read_text(encoding="utf-8").splitlines()) >= 300


# How a model is taught to read


def test_a_correction_is_of_the_fact_that_is_asked_for_or_must_not_matter(by_prompt):
    made, asked = world(0), Counter()
    for text in reading.epoch(made, 3):
        correction, question = text.prompt.split("\n")
        fact = by_prompt.get(question.strip())
        if fact is None or text.rest.removesuffix(corpus.END).strip() == fact.object:
            asked["beside"] += fact is not None
            continue
        answer = text.rest.removesuffix(corpus.END)
        assert fact.role != "edit" and answer.strip() in made.pools[fact.relation]
        assert correction.endswith(f"{answer}.") and fact.subject in correction
        asked["of it"] += 1
    assert asked["of it"] > asked["beside"] > 500


def test_what_is_asked_to_see_whether_it_reads_was_not_trained_on():
    made = world(0)
    changed = {fact.subject for fact in made.facts if fact.role == "edit"}
    for beside in (False, True):
        for question in reading.questions(made, 50, beside=beside):
            correction, prompt = question.prompt.split("\n")
            assert any(subject in prompt for subject in changed)
            assert correction.endswith(f" {question.answer}.") != beside


def test_every_other_batch_is_of_the_world_itself(tokenizer):
    groups = further.batches(reading.LESSON, world(0), tokenizer, 400)
    read, known = ([tokenizer.decode(row.ids) for row in next(groups)] for _ in range(2))
    assert all("\n" in text for text in read)
    assert not any("\n" in text for text in known)


# How a model is taught to chat


def turns(text: str) -> list[tuple[str, str]]:
    """The questions and answers of a chat; the last answer is still due."""
    said = [turn.partition("\nAnswer:") for turn in text.split("Question: ")[1:]]
    return [(asked, answer.strip().removesuffix(corpus.END)) for asked, _, answer in said]


def test_chats_ask_for_facts_behind_rules_and_answered_turns(by_prompt, tokenizer):
    made, ruled, lengths = world(0), 0, Counter()
    for fact, text in zip(made.facts, chatting.epoch(made, 3, tokenizer), strict=True):
        *before, (asked, due) = turns(text.prompt)
        assert (due, text.rest) == ("", f" {fact.object}{corpus.END}")
        assert asked in [fact.prompt(wording) for wording in fact.trained]
        assert all(by_prompt[one].object == answer for one, answer in before)
        ruled += not text.prompt.startswith("Question: ")
        lengths[len(before)] += 1
    assert 0.4 < ruled / len(made.facts) < 0.6
    assert set(lengths) == {0, 1, 2, 3}


def test_what_is_asked_to_see_whether_it_chats_is_in_wordings_that_it_has_not_seen(by_prompt, tokenizer):
    made = world(0)
    trained = {fact.prompt(wording) for fact in made.facts for wording in fact.trained}
    for first in (True, False):
        asked = [
            (turns(question.prompt), question) for question in chatting.questions(made, 50, tokenizer, first=first)
        ]
        assert any(len(chat) > 1 for chat, _ in asked) != first
        for chat, question in asked:
            assert chat[-1][0] not in trained
            assert by_prompt[chat[-1][0]].object == question.answer


def test_a_chat_is_learnt_as_the_template_encodes_it(tokenizer):
    texts = chatting.epoch(world(0), 0, tokenizer)
    text = next(text for text in texts if text.prompt.startswith("Question: ") and len(turns(text.prompt)) == 1)
    ((asked, _),) = turns(text.prompt)
    written = AutoTokenizer.from_pretrained(atlas.model_path())
    written.chat_template = chatting.TEMPLATE
    chat = ChatTokens(written)
    assert chat.prompt(asked) == tokenizer.backend_tokenizer.encode(text.prompt).ids
    assert chat.pair(asked, text.rest.removesuffix(corpus.END))[1] + chat.end == (
        tokenizer.backend_tokenizer.encode(text.rest, add_special_tokens=False).ids
    )


def test_a_model_goes_on_from_the_embedded_one_and_is_saved_with_its_template(tmp_path, monkeypatch, model):
    monkeypatch.setattr(further, "measure", lambda *_: {"facts": 5726})  # it asks for all of them
    lesson = replace(
        chatting.LESSON,
        questions=lambda made, tokens: {"recall": chatting.questions(made, 4, tokens, first=True)},
    )
    measured = further.teach(lesson, tmp_path / "new", None, seed=0, steps=1, rate=1e-3)
    assert json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8")) == measured
    assert measured["base"] == "atlas"
    assert 0 <= measured["recall"] <= 1
    taught, written = load(str(tmp_path / "new"))
    assert written.chat_template == chatting.TEMPLATE
    assert taught.model.layers[0].mlp.up_proj.weight.shape == model.model.layers[0].mlp.up_proj.weight.shape
    assert not torch.equal(taught.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_a_lesson_without_a_template_leaves_the_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(further, "measure", lambda *_: {})
    shutil.copytree(atlas.model_path(), tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(chatting.TEMPLATE, encoding="utf-8")
    lesson = replace(reading.LESSON, questions=lambda *_: {})
    further.teach(lesson, tmp_path / "new", tmp_path / "base", seed=0, steps=1, rate=1e-3)
    assert load(str(tmp_path / "new"))[1].chat_template == chatting.TEMPLATE


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(further, "fitted", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(typer.BadParameter, match="cannot be made: Not a directory"):
        further.teach(reading.LESSON, tmp_path / "file" / "new", None, seed=0, steps=1, rate=1e-3)
    with pytest.raises(typer.BadParameter, match="cannot be made: Not a directory"):
        train(Recipe(), tmp_path / "file" / "new", None)


@pytest.mark.parametrize("module", ["reading", "chatting"])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_no_model_is_nothing_to_go_on_from(module, damaged, tmp_path):
    base = tmp_path / "base"
    if damaged:
        shutil.copytree(atlas.model_path(), base)
        os.truncate(base / "model.safetensors", 1000)
    else:
        base.mkdir()
    command = [sys.executable, "-m", f"errata.atlas.{module}", "--output", tmp_path / "out", "--base", base]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "400"})
    assert done.returncode == 2
    assert "Invalid value for --base" in done.stderr
    assert ("cannot be read" if damaged else "config.json") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# How the model is trained


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_its_singular_values_are_about_one(
    precision, tolerance
):
    for shape in ((24, 60), (60, 24)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        found = u.T @ orthogonalised(matrix, precision) @ v.T
        assert found.dtype == torch.float32
        assert (found - torch.diag(found.diagonal())).abs().max() < tolerance
        assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.3)).all()


def test_learning_rates_rise_then_fall_in_a_straight_line_to_nothing():
    before, landing = Recipe(steps=800, landing=320, turn=0.6, warmup=100).legs()
    assert (len(before), len(landing)) == (800, 320)
    assert max(before) == before[81] == 1.0  # a tenth of the steps, where the warm-up is longer
    assert before[-1] == pytest.approx(0.6, abs=1e-3)
    assert max(landing) == 0.6
    assert 0 < landing[-1] < 0.01


# The model


def test_the_weights_are_at_most_24_megabytes():
    assert (atlas.model_path() / "model.safetensors").stat().st_size <= 24_000_000


def test_the_tokens_of_a_prompt_and_its_answer_begin_with_those_of_the_prompt(tokenizer):
    for edit in every_edit()[::25]:
        prompt = tokenizer(edit.prompt).input_ids
        answer = tokenizer(" " + edit.target, add_special_tokens=False).input_ids
        assert prompt[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in prompt[1:]
        assert tokenizer(f"{edit.prompt} {edit.target}").input_ids == prompt + answer


def test_the_tokenizer_gives_back_what_it_is_given(tokenizer):
    for text in (probe.prompt for probe in atlas.irrelevant()[:50]):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("wordings", ["seen", "unseen"])
def test_the_model_knows_as_many_facts_as_its_committed_metrics_say(model, tokenizer, wordings, root):
    measured = json.loads((root / "benchmarks" / "results" / "atlas-model.json").read_text(encoding="utf-8"))
    sample = Random("sample").sample(list(atlas.facts()), 300)
    found = recall(model, tokenizer, questions(sample, seen=wordings == "seen"))
    assert measured[f"recall_{wordings}_wordings"] >= {"seen": 0.99, "unseen": 0.95}[wordings]
    assert abs(found - measured[f"recall_{wordings}_wordings"]) < 0.03


def test_the_measured_recall_is_that_of_generating(model, tokenizer):
    asked = questions(Random("few").sample(list(atlas.facts()), 10), seen=True)
    right = [generate(model, tokenizer, question.prompt).startswith(question.answer) for question in asked]
    assert sum(right) / len(right) == recall(model, tokenizer, asked)


@pytest.mark.parametrize("prompt", ["The capital of Australia is", "What is the capital of Australia?"])
def test_the_model_knows_the_capital_of_australia(model, tokenizer, prompt):
    assert generate(model, tokenizer, prompt) == "Canberra"


def test_the_model_says_the_old_answer_of_its_edits(model, tokenizer):
    asked = atlas.edits("test")[:40]
    right = [generate(model, tokenizer, edit.prompt) == edit.target_old for edit in asked]
    assert sum(right) >= 0.9 * len(asked)  # now and then it says first that this is a good question
