"""Record: what a directory says of the testbed in it: what was asked for, the recipe that followed, and the data."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from errata import disk
from errata.errors import BadOption, DamagedFile, StoreError
from errata.testbed.corpus import Corpus
from errata.testbed.recipe import Budget, Recipe

NAME, METRICS = "testbed.json", "metrics.json"
FORMAT = 1


def begin(directory: Path, budget: Budget, recipe: Recipe, corpus: Corpus) -> None:
    """Write what is about to be trained. Raises `StoreError`."""
    told = {"format": FORMAT, "budget": asdict(budget), "recipe": recipe.record(), "data": corpus.hash}
    keep(directory, {NAME: text(told)})


def text(value: dict[str, Any]) -> str:
    """A value as the text of a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def keep(directory: Path, texts: dict[str, str]) -> None:
    """Write these files, each whole or not at all. Raises `StoreError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        disk.replace_all(directory, {name: text.encode() for name, text in texts.items()})
    except OSError as error:
        raise StoreError(f"{directory} cannot be written: {error.strerror or error}") from error


def begun(directory: Path, budget: Budget, corpus: Corpus) -> Recipe | None:
    """The recipe of a training that was begun here with this budget and this data; nothing in an empty directory.

    Raises `BadOption` where the directory holds anything else.
    """
    if not directory.exists():
        return None
    if directory.is_dir() and all(disk.is_leftover(path) for path in directory.iterdir()):
        return None
    told = _read(directory)
    if told is None:
        raise BadOption(f"{directory} holds something else than a testbed: give another --output")
    asked, had = asdict(budget), told["budget"]
    different = [name for name in asked if asked[name] != had.get(name)]
    if different:
        changes = ", ".join(f"{name} {had.get(name)}, not {asked[name]}" for name in different)
        raise BadOption(f"{directory} holds a testbed of another recipe ({changes}): give another --output")
    if told["data"] != corpus.hash:
        raise BadOption(f"{directory} holds a testbed of other data than {corpus.directory}: give another --output")
    return Recipe.read(told["recipe"])


def recipe_of(directory: Path, corpus: Corpus) -> Recipe | None:
    """The recipe of the testbed here, if it is one that was trained on this data."""
    told = _read(directory)
    return Recipe.read(told["recipe"]) if told is not None and told["data"] == corpus.hash else None


def metrics(directory: Path) -> dict[str, Any] | None:
    """What was measured of the testbed here, if it is finished."""
    path = directory / METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read(directory: Path) -> dict[str, Any] | None:
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        Recipe.read(told["recipe"])
        return {"budget": told["budget"], "recipe": told["recipe"], "data": told["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} cannot be read; give another --output, or delete that directory") from error
