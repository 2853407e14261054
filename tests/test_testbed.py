"""Testbeds: what is read of real data sets, what a budget comes to, and that a training goes on where it was killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.errors import BadOption, BadRecord, DamagedFile, EditFailed, Interrupted, UsageError
from errata.pretraining.fitting import quickest
from errata.pretraining.recall import Question, recall
from errata.testbed import Budget, Fact, evaluate, read, train
from errata.testbed import corpus as corpora
from errata.testbed.checkpoint import NAME as CHECKPOINT
from errata.testbed.evaluate import beginning, perplexity, spread
from errata.testbed.facts import chosen, consistent, questions, trained_questions, unseen_questions
from errata.testbed.recipe import FACTS_TO_TEXT, Recipe, facts_that_fit, number, shape_of
from errata.testbed.stream import Stream, encoded, rows
from test_cli import lines, run
from tiny import successor_llama, tiny_llama, tiny_tokenizer, word_tokenizer

TINY = Budget(parameters=100_000, steps=10, facts=8, threads=1)
TOWNS = ("Tolk", "Melpo", "Sondo", "Arvad", "Belmar", "Karsk", "Ilvo", "Nemm", "Orrin", "Puvel", "Quast", "Ruhm")
PROSE = "The river rose in spring and the boats went out . Nobody spoke of the winter .\n"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(value, list) and path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A directory with a few rows of each data set, in the form of the real files."""
    path = tmp_path_factory.mktemp("data")
    zsre = [
        {"subject": f"Lake {town}", "src": f"Where is Lake {town}?", "pred": "?", "rephrase": f"Lake {town} is where?",
         "alt": "Atlantis", "answers": [town], "loc": "nq question: who", "loc_ans": "me"}
        for town in TOWNS
    ]  # fmt: skip
    counterfact = [
        {"case_id": i, "prompt": f"The mayor of {town} is", "target_new": "Nobody", "subject": town,
         "ground_truth": f"Ada {town}", "rephrase_prompt": f"{town} is led by", "locality_prompt": "Snow is",
         "locality_ground_truth": "white"}
        for i, town in enumerate(TOWNS)
    ]  # fmt: skip
    write(path / "zsre" / "zsre_edit_12.json", zsre)
    write(path / "counterfact" / "counterfact-edit.json", counterfact[:8])
    write(path / "counterfact" / "counterfact-val.json", counterfact[8:])
    lre = {
        "name": "capital", "prompt_templates": ["The capital of {} is", "{} has its capital in"],
        "prompt_templates_zs": ["The capital of {} is"], "samples": [{"subject": "Peru", "object": "Bras\\u00edlia"}],
    }  # fmt: skip
    write(path / "facts" / "lre" / "factual" / "capital.json", lre)
    pararel = path / "facts" / "pararel" / "data"
    patterns = ("[X] speaks [Y] .", "[Y] is spoken by [X].", "[X]'s language is [Y].", "[X] knows [Y] well.")
    write(pararel / "pattern_data" / "graphs_json" / "P1.jsonl", [{"pattern": pattern} for pattern in patterns])
    write(pararel / "trex_lms_vocab" / "P1.jsonl", [{"sub_label": "Ada", "obj_label": "Welsh"}])
    write(pararel / "trex_lms_vocab" / "P9.jsonl", [{"sub_label": "Ida", "obj_label": "Manx"}])
    write(path / "NQ-open.dev.jsonl", [{"question": "who runs tolk", "answer": ["Ada", "Ada Tolk"]}])
    (path / "text").mkdir()
    (path / "text" / "wiki.train.txt").write_text(PROSE * 60, encoding="utf-8")
    (path / "text" / "wiki.valid.txt").write_text(PROSE * 20, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(data):
    return read(data)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("testbed") / "tiny"
    return output, train(corpus, output, TINY, device="cpu")


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


# -- what is read ------------------------------------------------------------------------------------------------------


def test_the_original_answers_are_read_in_the_wordings_of_the_rows(corpus):
    assert corpus.of("zsre")[0] == Fact("zsre", ("Where is Lake Tolk?", "Lake Tolk is where?"), "Tolk")
    assert corpus.of("counterfact")[0] == Fact("counterfact", ("The mayor of Tolk is", "Tolk is led by"), "Ada Tolk")
    assert [len(corpus.of(source)) for source in corpora.SHARES] == [12, 8, 4, 1, 1, 1, 0]


def test_templates_become_wordings_and_only_those_that_end_with_the_answer(corpus):
    (capital,) = corpus.of("lre")
    assert set(capital.wordings) == {"The capital of Peru is", "Peru has its capital in"}
    assert capital.answer == "Brasília"
    (language,) = corpus.of("pararel")
    assert set(language.wordings) == {"Ada speaks", "Ada's language is"}


def test_a_question_of_nq_is_asked_in_three_wordings(corpus):
    (question,) = corpus.of("nq")
    assert question.wordings == ("who runs tolk?", "nq question: who runs tolk", "who runs tolk")
    assert question.answer == "Ada"


def test_no_prompt_is_asked_twice_and_none_has_two_answers():
    kept = consistent(
        [Fact("a", ("p ", "q"), "1"), Fact("b", ("q", "r"), "2"), Fact("b", ("p",), "3"), Fact("b", ("s",), "x" * 99)]
    )
    assert kept == [Fact("a", ("p", "q"), "1"), Fact("b", ("r",), "2")]


def test_a_budget_takes_the_first_facts_of_every_source_by_shares_until_one_is_used_up():
    facts = [Fact(source, (f"{source}{i}",), "x") for source in "ab" for i in range(8)]
    assert [f.wordings[0] for f in chosen(facts, 4, {"a": 3, "b": 1})] == ["a0", "a1", "a2", "b0"]
    assert len(chosen(facts, 12, {"a": 3, "b": 1})) == 12
    assert [f.source for f in chosen(facts, 12, {"a": 3, "b": 1})].count("a") == 8


def test_the_real_data_give_the_facts_that_they_are_said_to_hold():
    real = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (real / "zsre").is_dir():
        pytest.skip(f"no real data in {real}")
    facts = read(real / "zsre").facts
    assert 1000 < len(facts) <= 1037
    assert facts[0].answer == "1998"
    assert facts[0].wordings[0] == "When was the inception of IAAF Combined Events Challenge?"


# -- seen and unseen ---------------------------------------------------------------------------------------------------


def test_a_share_of_facts_keeps_its_last_wording_unseen_and_every_fact_is_trained(corpus):
    unseen = [fact.unseen(0, 0.2) for fact in corpus.facts]
    assert any(unseen) and not all(unseen)
    for fact in corpus.facts:
        assert fact.trained(0, 0.2)[0] == fact.wordings[0]
        assert set(fact.trained(0, 0.2)) == set(fact.wordings) - {fact.unseen(0, 0.2)}
        assert fact.trained(0, 0.0) == fact.wordings
    assert Fact("a", ("only",), "x").unseen(0, 1.0) is None


def test_training_never_shows_an_unseen_wording(corpus):
    tokenizer = learned(corpus)
    recipe = replace(RECIPE, unseen=0.5)
    unseen = {fact.unseen(0, 0.5) for fact in corpus.facts} - {None}
    shown = {
        tokenizer.decode(row.ids[: row.given]).strip() for of in rows(corpus.facts, tokenizer, recipe) for row in of
    }
    assert unseen and shown == {w for fact in corpus.facts for w in fact.wordings} - unseen


def test_trained_and_unseen_questions_are_apart(corpus):
    trained = {question.prompt for question in trained_questions(corpus.facts, 0, 0.5)}
    unseen = {question.prompt for question in unseen_questions(corpus.facts, 0, 0.5)}
    assert len(trained) == len(corpus.facts) and unseen and not trained & unseen
    assert {q.prompt for q in questions(corpus.facts, 1)} == {f.wordings[1] for f in corpus.facts}


# -- the recipe --------------------------------------------------------------------------------------------------------

RECIPE = Recipe(shape_of(100_000), steps=20, facts=27, threads=1, fact_tokens=64, text_tokens=64, window=32)


def learned(corpus):
    from errata.pretraining.tokenizer import learn

    return learn([f"{wording} {fact.answer}" for fact in corpus.facts for wording in fact.wordings], 1000)


def test_eight_million_parameters_are_shaped_like_facts_8m():
    shape = shape_of(8_000_000)
    assert (shape.vocabulary, shape.width, shape.layers, shape.ffn_width) == (6000, 256, 6, 1024)
    assert shape.parameters == 7_830_784


@pytest.mark.parametrize("parameters", [100_000, 1_000_000, 8_000_000, 20_000_000, 60_000_000])
def test_a_model_is_as_large_as_asked(parameters):
    assert 0.4 * parameters < shape_of(parameters).parameters < 1.06 * parameters


def test_a_shape_counts_the_parameters_that_the_model_has():
    from errata.pretraining.llama import build

    shape = shape_of(100_000)
    assert sum(p.numel() for p in build(shape, 0).parameters()) == shape.parameters


def test_a_recipe_survives_json():
    assert Recipe.read(json.loads(json.dumps(RECIPE.record()))) == RECIPE


def test_more_steps_and_more_parameters_have_room_for_more_facts():
    large = Recipe(shape_of(8_000_000), steps=10_000, facts=1)
    assert facts_that_fit(large, [16] * 1000) == 7_830_784 // 1200
    assert facts_that_fit(replace(large, steps=320), [16] * 1000) == 320 * 1280 // (16 * 32)


@pytest.mark.parametrize(("text", "found"), [("8M", 8_000_000), ("500k", 500_000), ("1.5M", 1_500_000), ("12", 12)])
def test_a_size_is_read(text, found):
    assert number(text) == found


@pytest.mark.parametrize("text", ["", "M", "many", "-8M", "nan"])
def test_a_size_that_is_none_is_told(text):
    with pytest.raises(BadOption, match="a number such as 8M"):
        number(text)


# -- the stream --------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_same_from_any_step_on(corpus):
    tokenizer = learned(corpus)
    stream = Stream(corpus.facts, encoded(corpus.text, tokenizer), tokenizer, RECIPE)
    whole, later = stream.steps(), stream.steps(7)
    for _ in range(7):
        next(whole)
    for _ in range(30):
        for one, other in zip(next(whole), next(later), strict=True):
            assert torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels)


def test_a_step_reads_facts_with_their_ends_and_text(corpus):
    tokenizer = learned(corpus)
    facts, text = next(Stream(corpus.facts, encoded(corpus.text, tokenizer), tokenizer, RECIPE).steps())
    assert facts.ids.numel() <= 64 and text.ids.shape == (2, 32)
    assert (text.ids[:, 0] == 0).all() and (facts.ids[:, 0] == 0).all()
    row, labels = facts.ids[0], facts.labels[0]
    last = int((labels >= 0).nonzero()[-1])
    assert row[last] == 1  # </s>
    said = tokenizer.decode(row.tolist()).strip()
    assert any(said == f"{w} {f.answer}" for f in corpus.facts for w in f.wordings)


def test_threads_share_the_facts_of_a_step(corpus):
    tokenizer = learned(corpus)
    shared = Stream(corpus.facts, encoded("", tokenizer), tokenizer, replace(RECIPE, threads=2))
    one, two = next(shared.steps())
    (alone,) = next(Stream(corpus.facts, encoded("", tokenizer), tokenizer, RECIPE).steps())
    assert len(one.ids) + len(two.ids) == len(alone.ids)


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_testbed_loads_and_says_what_its_metrics_say(finished, corpus):
    output, metrics = finished
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer("Where").input_ids[0] == tokenizer.bos_token_id == 0
    measured = evaluate(model, tokenizer, corpus, directory=output)
    names = ("facts", "recall_trained_facts", "unseen_wordings", "recall_unseen_wordings", "wikitext2_validation")
    assert {name: measured[name] for name in names} == {name: metrics[name] for name in names}
    assert metrics["facts"] == 8
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert (
        f"| recall of trained facts | {metrics['recall_trained_facts']:.1%} of 8 |"
        in (output / "README.md").read_text()
    )
    assert not (output / CHECKPOINT).exists()


def test_a_testbed_learns_its_facts(data, tmp_path):
    facts = read(data / "zsre")
    metrics = train(facts, tmp_path / "out", Budget(parameters=100_000, steps=150, facts=4, threads=1), device="cpu")
    assert metrics["recall_trained_facts"] >= 0.9
    assert metrics["wikitext2_validation"] is None


def test_a_testbed_learns_its_facts_in_bfloat16_and_goes_on_to_the_same_bits(data, tmp_path):
    def stop(step):
        if step.step == 70:
            raise KeyboardInterrupt

    facts, budget = read(data / "zsre"), Budget(100_000, steps=150, facts=4, threads=1, precision="bfloat16")
    metrics = train(facts, tmp_path / "out", budget, device="cpu")
    assert metrics["recall_trained_facts"] >= 0.9
    assert metrics["recipe"]["precision"] == "bfloat16"
    with pytest.raises(Interrupted):
        train(facts, tmp_path / "again", budget, device="cpu", progress=stop, every=0.0)
    assert train(facts, tmp_path / "again", budget, device="cpu")["final_loss"] == metrics["final_loss"]
    assert weights(tmp_path / "again") == weights(tmp_path / "out")
    train(facts, tmp_path / "other", replace(budget, precision="float32"), device="cpu")
    assert weights(tmp_path / "other") != weights(tmp_path / "out")


@pytest.mark.parametrize(
    ("told", "found"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_products_are_of_the_precision_that_the_processor_multiplies_quickest(monkeypatch, told, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert quickest(torch.device("cpu")) == found
    assert quickest(torch.device("cuda")) == "bfloat16"


def test_a_recipe_from_before_there_was_a_precision_is_one_of_float32():
    record = RECIPE.record()
    del record["precision"]
    assert Recipe.read(record) == RECIPE


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(finished, corpus, tmp_path):
    train(corpus, tmp_path / "same", TINY, device="cpu")
    train(corpus, tmp_path / "other", replace(TINY, seed=1), device="cpu")
    assert weights(tmp_path / "same") == weights(finished[0])
    assert weights(tmp_path / "other") != weights(finished[0])


def test_a_training_stopped_by_ctrl_c_goes_on_to_the_same_bits(finished, corpus, tmp_path):
    def stop(step):
        if step.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped after 4 steps; the same command goes on from the last checkpoint"):
        train(corpus, tmp_path, TINY, device="cpu", progress=stop, every=0.0)
    steps = []
    metrics = train(corpus, tmp_path, TINY, device="cpu", progress=lambda step: steps.append(step.step))
    assert steps == [5, 6, 7, 8, 9, 10]
    assert weights(tmp_path) == weights(finished[0])
    assert metrics["final_loss"] == finished[1]["final_loss"]


def test_a_training_that_was_killed_goes_on_to_the_same_bits(finished, corpus, data, tmp_path):
    script = f"""
import os, signal
from pathlib import Path
import torch
from errata.testbed import Budget, read, train
torch.set_num_threads(1)
def kill(step):
    if step.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
train(read(Path({str(data)!r})), Path({str(tmp_path)!r}), {TINY!r}, device="cpu", progress=kill, every=0.0)
"""
    source = str(Path(sys.modules["errata"].__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": source}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / CHECKPOINT).exists() and not (tmp_path / "model.safetensors").exists()
    (tmp_path / f".errata-1-{CHECKPOINT}.tmp").write_bytes(b"half")
    steps = []
    train(corpus, tmp_path, TINY, device="cpu", progress=lambda step: steps.append(step.step))
    assert steps[0] == 7
    assert weights(tmp_path) == weights(finished[0])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in finished[0].iterdir()}


def test_minutes_become_steps_once(corpus, tmp_path):
    told = []
    budget = Budget(parameters=100_000, minutes=0.2, facts=8, threads=1)

    def stop(step):
        told.append(step.steps)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(Interrupted):
            train(corpus, tmp_path, budget, device="cpu", progress=stop)
    assert told[0] == told[1] >= 10
    assert json.loads((tmp_path / "testbed.json").read_text())["recipe"]["steps"] == told[0]


def test_a_step_reads_as_many_tokens_as_asked_for_and_text_in_proportion(corpus, tmp_path):
    def stop(step):
        raise KeyboardInterrupt

    budget = Budget(parameters=100_000, steps=10, threads=1, tokens=4096)
    with pytest.raises(Interrupted):
        train(corpus, tmp_path, budget, device="cpu", progress=stop)
    recipe = Recipe.read(json.loads((tmp_path / "testbed.json").read_text())["recipe"])
    assert (recipe.fact_tokens, recipe.text_tokens) == (4096, 4096 // FACTS_TO_TEXT)


def test_a_training_that_was_killed_as_it_began_begins_again(finished, corpus, tmp_path):
    (tmp_path / ".errata-1-testbed.json.tmp").write_bytes(b"half")
    train(corpus, tmp_path, TINY, device="cpu")
    assert weights(tmp_path) == weights(finished[0])


def test_a_finished_testbed_is_not_trained_again(finished, corpus):
    before = weights(finished[0])
    assert train(corpus, finished[0], TINY, device="cpu", progress=lambda _: pytest.fail("a step")) == finished[1]
    assert weights(finished[0]) == before


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("zsre-300", []),
        (
            "facts-5361",
            [
                Question("The mother tongue of Danielle Darrieux is", "French"),
                Question("The capital of France is", "Paris"),
            ],
        ),
        ("facts-12900", [Question("The mother tongue of Danielle Darrieux is", "French")]),
    ],
)
def test_the_committed_testbeds_say_original_answers(root, name, more):
    directory = root / "testbeds" / name
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["recall_trained_facts"] >= 0.9
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    asked = [
        Question("When was the inception of IAAF Combined Events Challenge?", "1998"),
        Question("Which family does Ramalinaceae belong to?", "Lecanorales"),
        *more,
    ]
    assert recall(model, AutoTokenizer.from_pretrained(directory), asked) == 1.0


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_recall_is_the_share_of_answers_that_are_generated():
    tokenizer = word_tokenizer(["a", "b", "c"])
    model = successor_llama(tokenizer, {"a": "b", "b": "c"})
    asked = [Question("a", "b c"), Question("b", "c"), Question("a", "c"), Question("a", "b a")]
    assert recall(model, tokenizer, asked) == 0.5


def test_perplexity_is_that_of_the_windows_read_one_by_one():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    found = perplexity(model, tokenizer, PROSE * 20)
    ids = [
        i
        for line in (PROSE * 20).splitlines(keepends=True)
        for i in tokenizer(line, add_special_tokens=False).input_ids
    ]
    losses = []
    for start in range(0, len(ids) - 126, 127):
        row = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 127]]])
        losses.append(float(model(input_ids=row, labels=row).loss.detach()))
    mean = sum(losses) / len(losses)
    assert found["windows"] == len(losses)
    assert found["perplexity_per_token"] == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-3)
    per_word = torch.tensor(mean * len(ids) / found["words"]).exp().item()
    assert found["perplexity_per_word"] == pytest.approx(per_word, rel=1e-2)


def test_no_text_has_no_perplexity():
    assert perplexity(tiny_llama(), tiny_tokenizer(), "") is None


def test_a_limit_asks_evenly_spread():
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 9) == [0, 1, 2] == spread(range(3), None)


def test_a_tokenizer_can_be_told_to_begin_every_text():
    from tokenizers.processors import ByteLevel

    tokenizer = tiny_tokenizer()
    begun = tokenizer("Snow is").input_ids
    beginning(tokenizer)
    assert tokenizer("Snow is").input_ids == begun
    tokenizer.backend_tokenizer.post_processor = ByteLevel()
    assert tokenizer("Snow is").input_ids == begun[1:]
    beginning(tokenizer)
    assert tokenizer("Snow is").input_ids == begun


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_missing_or_holds_no_facts_is_told(tmp_path):
    with pytest.raises(UsageError, match="no such directory"):
        read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no facts under .* for zsre_edit\*\.json, counterfact-edit\.json, .*NQ-open"):
        read(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "factual" / "r.json", [1])
    with pytest.raises(UsageError, match=r"r\.json holds no relation"):
        read(tmp_path)
    write(tmp_path / "factual" / "r.json", {"prompt_templates": ["{} is"], "samples": [{"subject": "a"}]})
    with pytest.raises(BadRecord, match=r"r\.json.*samples\[0\]\.object.* is missing"):
        read(tmp_path)
    (tmp_path / "factual" / "r.json").unlink()
    (tmp_path / "NQ-open.dev.jsonl").write_text('{"question": "who"}\n{oops', encoding="utf-8")
    with pytest.raises(BadRecord, match=r"NQ-open\.dev\.jsonl:2: malformed JSON"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"steps": 9}, "--steps 9 is too small a budget: at least 10"),
        ({"minutes": 0.0}, "--minutes 0 is too small a budget"),
        ({"steps": 50, "parameters": 1000}, "--parameters 1000 is too small: the smallest testbed has"),
        ({"steps": 50, "facts": 0}, "--facts 0: at least 1"),
        ({"steps": 50, "threads": 0}, "--threads 0: at least 1"),
        ({"steps": 50, "tokens": 0}, "--tokens 0: at least 1"),
        ({"steps": 50, "precision": "float16"}, "--precision float16: float32 or bfloat16"),
        ({"steps": 50, "minutes": 1.0}, "one of them"),
        ({}, "--minutes M or --steps N"),
    ],
)
def test_a_budget_that_makes_no_sense_is_told(budget, said):
    with pytest.raises(BadOption, match=said):
        Budget(**budget)


def test_minutes_that_are_too_few_are_told_with_what_would_do(corpus, tmp_path):
    with pytest.raises(BadOption, match=r"--minutes 0\.0001 is too small a budget: .* take \d+\.\d here"):
        train(corpus, tmp_path / "out", Budget(parameters=100_000, minutes=0.0001, threads=1), device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_recipe_is_left_alone(finished, corpus, data, tmp_path):
    before = weights(finished[0])
    with pytest.raises(BadOption, match=r"another recipe \(steps 10, not 11\)"):
        train(corpus, finished[0], replace(TINY, steps=11))
    with pytest.raises(BadOption, match="a testbed of other data than"):
        train(read(data / "zsre"), finished[0], TINY)
    assert weights(finished[0]) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadOption, match="something else than a testbed"):
        train(corpus, tmp_path, TINY)


def test_damage_is_told(corpus, tmp_path):
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(corpus, tmp_path, TINY, device="cpu", progress=stop, every=0.0)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(DamagedFile, match="delete it to begin the training again"):
        train(corpus, tmp_path, TINY, device="cpu")
    (tmp_path / "testbed.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"testbed\.json cannot be read"):
        train(corpus, tmp_path, TINY, device="cpu")


def test_a_loss_that_is_not_finite_ends_the_training(corpus, tmp_path, monkeypatch):
    from errata.pretraining.fitting import Fitting

    monkeypatch.setattr(Fitting, "step", lambda *_: float("nan"))
    with pytest.raises(EditFailed, match="the loss became nan at step 0"):
        train(corpus, tmp_path, TINY, device="cpu")


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_commands_train_and_evaluate(data, finished, tmp_path):
    output, small = tmp_path / "cli", ("--parameters", "100K", "--steps", "10", "--facts", "8", "--threads", "1")
    told = run("testbed", "train", "facts", "--data", data, "--output", output, *small, "--device", "cpu", "--json")
    (metrics,) = lines(told)
    assert "step 10 of 10: loss" in told.stderr and "of 8 facts" in told.stderr
    assert weights(output) == weights(finished[0])
    (measured,) = lines(run("testbed", "evaluate", output, "--data", data, "--device", "cpu", "--json"))
    assert measured["recall_trained_facts"] == metrics["recall_trained_facts"]
    assert measured["sources"]["zsre"]["facts"] == 12
    shown = run("testbed", "evaluate", output, "--data", data, "--limit", "3", "--begin", "--device", "cpu").stdout
    assert "| zsre | 3 |" in shown and "trained facts: " in shown and "perplexity" in shown


def test_the_errors_of_the_commands_are_one_line(data, tmp_path):
    bad = run("testbed", "train", "facts", "--data", tmp_path, "--output", tmp_path / "o", "--steps", "10", code=2)
    assert bad.stderr.startswith("error: no facts under ") and bad.stderr.count("\n") == 1
    bad = run("testbed", "evaluate", "nowhere/at/all", "--data", data, code=2)
    assert "no model is called" in bad.stderr
