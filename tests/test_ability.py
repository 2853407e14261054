"""General ability: what lm-eval is told of a model in memory, tasks that need nothing from anywhere, and lm-eval itself."""

import importlib.util
import json
import sys

import pytest
import torch

from errata import atlas
from errata.ability import Scorer, evaluate, write_tasks
from errata.errors import MissingExtra, UsageError
from errata.methods import make
from errata.model import EditedModel
from test_cli import lines, model, run
from tiny import EDITS, successor_llama, tiny_llama, tiny_tokenizer, word_tokenizer

__all__ = ["model"]

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'errata[eval]'"
)


@pytest.fixture
def tiny():
    return EditedModel(tiny_llama(), tiny_tokenizer())


def log_probability(model, head, tail):
    ids = torch.tensor([head + tail])
    logits = model.base(input_ids=ids).logits[0].log_softmax(-1)
    return sum(float(logits[len(head) + i - 1, token].detach()) for i, token in enumerate(tail))


# -- the scorer --------------------------------------------------------------------------------------------------------


def test_a_continuation_has_the_likelihood_of_its_tokens_after_the_context(tiny):
    pairs = [("The mother of Ada Quill is", " Una Reed"), ("Snow is", " white"), ("The capital of Arvadia is ", "Tolk")]
    found = Scorer(tiny, batch_size=2).log_likelihoods(pairs)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        head = tiny.tokens.encode(context.rstrip())
        tail = tiny.tokens.encode(context + continuation)[len(head) :]
        assert value == pytest.approx(log_probability(tiny, head, tail), abs=1e-4)


def test_greedy_is_what_the_model_says():
    scorer = Scorer(EditedModel(successor_llama(WORDS, {"a": "b", "b": "c", "c": "a"}), WORDS))
    found = scorer.log_likelihoods([("a", " b c"), ("a", " c"), ("b", " c a b"), ("b", " c b")])
    assert [greedy for _, greedy in found] == [True, False, True, False]


WORDS = word_tokenizer(["a", "b", "c"])


def test_an_empty_context_is_the_beginning_of_a_text(tiny):
    ((value, _),) = Scorer(tiny).log_likelihoods([("", "Snow is")])
    assert value == pytest.approx(log_probability(tiny, [0], tiny.tokens.encode("Snow is")[1:]), abs=1e-4)


def test_an_empty_continuation_is_certain(tiny):
    assert Scorer(tiny).log_likelihoods([("Snow is", "")]) == [(0.0, True)]


def test_a_context_that_does_not_fit_is_cut_at_its_beginning(tiny):
    scorer = Scorer(tiny)
    long = "Snow is white " * 400
    ((value, _),) = scorer.log_likelihoods([(long, " heat")])
    head, tail = tiny.tokens.encode(long.rstrip()), tiny.tokens.encode(long + " heat")
    tail = tail[len(head) :]
    assert value == pytest.approx(log_probability(tiny, head[-(scorer.longest - len(tail)) :], tail), abs=1e-3)


def test_the_likelihood_of_a_text_is_that_of_its_windows(tiny):
    scorer, text = Scorer(tiny), "The Osk bridge was built in 1907"
    ids = tiny.tokens.encode(text)[1:]
    assert scorer.rolling(text) == pytest.approx(log_probability(tiny, [0], ids), abs=1e-3)
    scorer.longest = 5
    windows = [log_probability(tiny, ([0] if i == 0 else [ids[i - 1]]), ids[i : i + 4]) for i in range(0, len(ids), 4)]
    assert scorer.rolling(text) == pytest.approx(sum(windows), abs=1e-3)


def test_generation_ends_where_it_is_told_to():
    scorer = Scorer(EditedModel(successor_llama(WORDS, {"a": "b", "b": "c", "c": "a"}), WORDS))
    assert scorer.generate("a", [], 3).split() == ["b", "c", "a"]
    assert scorer.generate("a", ["a"], 6).split() == ["b", "c"]


def test_edits_are_in_force_and_routed_by_the_context():
    edited = EditedModel(tiny_llama(), tiny_tokenizer(), make("grace"))
    edit = EDITS[3]
    pairs = [(edit.prompt, f" {edit.target}"), ("Mira Cole plays the", " harp")]
    before = Scorer(edited).log_likelihoods(pairs)
    edited.edit(edit)
    after = Scorer(edited).log_likelihoods(pairs)
    assert after[0][0] > before[0][0] + 0.1
    assert after[1] == pytest.approx(before[1], abs=1e-5)
    with edited.lifted():
        for found, wanted in zip(Scorer(edited).log_likelihoods(pairs), before, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)


# -- the tasks ---------------------------------------------------------------------------------------------------------


def test_the_tasks_of_the_atlas_ask_for_facts_that_no_edit_is_about(tmp_path):
    write_tasks(tmp_path)
    documents = [json.loads(line) for line in (tmp_path / "atlas_choice.jsonl").read_text().splitlines()]
    answers = {fact.prompt(w): fact.object for fact in atlas.facts() if fact.role == "quiet" for w in fact.trained}
    assert len(documents) > 400
    for document in documents:
        assert document["choices"][document["answer"]] == answers[document["prompt"]]
        assert len(set(document["choices"])) == len(document["choices"]) >= 2
    edited = {edit.prompt for edit in atlas.edits("test")}
    assert not edited & {document["prompt"] for document in documents}
    assert len({document["answer"] for document in documents}) == 4


def test_the_tasks_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        write_tasks(tmp_path / name)
    for task in ("atlas_choice.jsonl", "atlas_prose.jsonl"):
        assert (tmp_path / "one" / task).read_bytes() == (tmp_path / "two" / task).read_bytes()
    prose = json.loads((tmp_path / "one" / "atlas_prose.jsonl").read_text().splitlines()[0])["text"]
    assert prose.count(".") >= 5


# -- lm-eval -----------------------------------------------------------------------------------------------------------


def test_without_lm_eval_one_line_says_what_to_install(tiny, monkeypatch):
    for name in ("lm_eval", "lm_eval.api.model", "lm_eval.evaluator", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra) as caught:
        evaluate(tiny)
    told = "measuring general ability needs 'lm-eval', which is not installed: pip install 'errata[eval]'"
    assert str(caught.value) == told


def test_the_command_says_so_too(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    said = run("ability", model, "--device", "cpu", code=2).stderr
    assert said.startswith("error: measuring general ability needs 'lm-eval'") and said.count("\n") == 1


def test_tasks_that_do_not_exist_are_told_before_anything_is_imported(tiny, tmp_path):
    with pytest.raises(UsageError, match="no such directory; --tasks wants one"):
        evaluate(tiny, tmp_path / "nowhere")


@needs_lm_eval
def test_the_atlas_is_able_by_lm_eval():
    from errata import loading

    found = evaluate(EditedModel(*loading.load("atlas", device="cpu")), limit=20)
    assert found["atlas_choice"]["acc"] >= 0.9
    assert 1 < found["atlas_prose"]["byte_perplexity"] < 10


@needs_lm_eval
def test_lm_eval_scores_what_the_scorer_scores(tiny, tmp_path):
    write_tasks(tmp_path)
    documents = [json.loads(line) for line in (tmp_path / "atlas_choice.jsonl").read_text().splitlines()[:8]]
    right = 0
    for document in documents:
        pairs = [(document["prompt"], f" {choice}") for choice in document["choices"]]
        values = [value for value, _ in Scorer(tiny).log_likelihoods(pairs)]
        right += values.index(max(values)) == document["answer"]
    assert evaluate(tiny, tmp_path, limit=8)["atlas_choice"]["acc"] == pytest.approx(right / 8)


@needs_lm_eval
def test_a_directory_without_tasks_or_with_a_broken_one_is_told(tiny, tmp_path):
    with pytest.raises(UsageError, match="no tasks in"):
        evaluate(tiny, tmp_path)
    broken = {"task": "broken", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}
    (tmp_path / "broken.yaml").write_text(json.dumps(broken | {"test_split": "test", "output_type": "multiple_choice"}))
    with pytest.raises(UsageError, match="cannot be run"):
        evaluate(tiny, tmp_path)


@needs_lm_eval
def test_nothing_is_downloaded(tiny, tmp_path):
    remote = {"task": "remote", "dataset_path": "allenai/ai2_arc", "dataset_name": "ARC-Easy", "test_split": "test"}
    task = {**remote, "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"}
    (tmp_path / "remote.yaml").write_text(json.dumps(task))
    with pytest.raises(UsageError, match=r"cannot be run: .*(offline|OFFLINE|Offline)"):
        evaluate(tiny, tmp_path)


@needs_lm_eval
def test_the_command_measures(model):
    told = lines(run("ability", model, "--limit", "4", "--device", "cpu", "--json"))
    assert [row["task"] for row in told] == ["atlas_choice", "atlas_prose"]
    assert not told[0]["edited"] and 0 <= told[0]["acc"] <= 1
