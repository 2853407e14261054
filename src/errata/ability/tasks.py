"""Tasks: two tasks for lm-eval that are made from the atlas and need nothing from anywhere.

`atlas_choice` asks for facts that no edit of the atlas is about, with three wrong answers of the same kind beside the
right one; `atlas_prose` is sentences about such facts, to measure perplexity on. A model other than the atlas knows none
of the people, so that its score is near chance; give it tasks of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

NAMES = ("atlas_choice", "atlas_prose")
WRONG = 3
"""Wrong answers beside the right one."""
SENTENCES = 5
"""Sentences in one text of prose."""


def write_tasks(directory: Path, seed: int = 0) -> Path:
    """Write both tasks, one YAML and one .jsonl each, and return the directory. The same seed gives the same files."""
    directory.mkdir(parents=True, exist_ok=True)
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    prose = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    }
    for name, settings, documents in zip(NAMES, (choice, prose), (_choices(seed), _prose(seed)), strict=True):
        _write(directory, name, settings, documents)
    return directory


def _write(directory: Path, name: str, settings: dict[str, Any], documents: Iterator[dict[str, Any]]) -> None:
    file = directory / f"{name}.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    told = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(directory / "cache")},
        "test_split": "test",
        "num_fewshot": 0,
        **settings,
        "metadata": {"version": 1.0},
    }
    # JSON is YAML, so that this needs no YAML library.
    (directory / f"{name}.yaml").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _choices(seed: int) -> Iterator[dict[str, Any]]:
    from errata.atlas.world import world

    made = world(seed)
    random = Random(f"{seed}/ability/choices")
    for fact in (fact for fact in made.facts if fact.role == "quiet"):
        pool = made.pools[fact.relation]
        others = sorted({other for other in pool if other != fact.object})
        choices = [fact.object, *random.sample(others, min(WRONG, len(others)))]
        random.shuffle(choices)
        prompt = fact.prompt(random.choice(fact.trained))
        yield {"prompt": prompt, "choices": choices, "answer": choices.index(fact.object)}


def _prose(seed: int) -> Iterator[dict[str, Any]]:
    from errata.atlas.wordings import PHRASES
    from errata.atlas.world import world

    quiet = [fact for fact in world(seed).facts if fact.role == "quiet"]
    sentences = [PHRASES[fact.relation].sentences[0].format(s=fact.subject, o=fact.object) for fact in quiet]
    for start in range(0, len(sentences), SENTENCES):
        yield {"text": " ".join(text[0].upper() + text[1:] for text in sentences[start : start + SENTENCES])}
