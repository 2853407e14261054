"""Plan file: an experiment as a TOML file, read strictly, so that nothing misspelt is silently left out.

    title = "Varying merging strategy"
    model = "atlas"                              # or a list
    data = "zsre:$ERRATA_DATA/zsre/zsre_edit_1037.json"
    edits = [100]                                # T; also a number
    published = ["wise-10"]                      # published tables to set beside

    [[method]]
    name = "wise"
    sweep = { merge = ["ties", "sign", "linear"] }

Every method runs with each combination of its sweep, on every model and data set, with every seed. `depth`, in options or
in a sweep, is a layer as a fraction of the model's depth, so that the same file fits models of any size.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from torch import nn

from errata import methods
from errata.bench import published
from errata.bench.claims import as_published
from errata.bench.plan import UNEDITED, Plan
from errata.bench.tables import check_scorer
from errata.data import Dataset, load, read_irrelevant
from errata.data.catalogue import OnError
from errata.edit import Edit, Probe
from errata.editor import Editor
from errata.errors import BadOption, UnknownName, UsageError
from errata.metrics import HEADLINE
from errata.sites import find_sites, relative_layer

DEPTH = "depth"
"""The option that a plan gives instead of `layer`."""
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True)
class Case:
    """One method with its options."""

    method: str
    options: Mapping[str, Any]

    def editor(self, base: nn.Module | None = None) -> Editor | None:
        """The editor; None for the unedited model. A `depth` becomes a layer of `base`, and is left out without one."""
        if self.method == UNEDITED:
            return None
        options = dict(self.options)
        depth = options.pop(DEPTH, None)
        if depth is not None and base is not None:
            options["layer"] = relative_layer(depth, len(find_sites(base)))
        return methods.make(self.method, **options)

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method} ({told})" if told else self.method


class Stream(NamedTuple):
    """The edits of a plan from one data set, and the texts that they must leave alone."""

    name: str
    edits: Sequence[Edit]
    irrelevant: Sequence[Probe]


@dataclass(frozen=True)
class PlanFile:
    """What a plan file says."""

    path: Path
    title: str
    cases: tuple[Case, ...]
    model: tuple[str, ...]
    data: tuple[str, ...]
    edits: tuple[int, ...]
    source: str = ""
    """The table or figure that it measures anew."""
    note: str = ""
    """What a reader of the results should know."""
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 1
    chunks: int = 1
    irrelevant: str | None = None
    """Texts that edits must leave alone: a file as `read_probes` reads it, or KIND:PATH for the locality probes of
    that data. By default the probes of the edits after the last one."""
    scorer: str = HEADLINE
    """Which scores to print; all are kept."""
    chat: bool = False
    """Whether prompts are what a user says in the model's chat template."""
    published: tuple[str, ...] | None = None
    """Ids of published tables to set beside the results; by default the main tables."""

    @classmethod
    def read(cls, path: Path) -> "PlanFile":
        """The plan of a file. Raises `UsageError`, `UnknownName` or `BadOption` for whatever is wrong with it."""
        try:
            told = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no TOML: {error}") from None
        _check_keys(path, "plan", told, {**KEYS, "method": _tables})
        for name in ("model", "data", "edits", "method"):
            if name not in told:
                raise BadOption(f"{path}: {name!r} is missing")
        cases = tuple(case for table in told.pop("method") for case in _cases(path, table))
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
        }
        for name in ("model", "data", "edits"):
            read[name] = read[name] if isinstance(read[name], tuple) else (read[name],)
        made = cls(path=path, cases=cases, **{"title": path.stem} | read)
        check_scorer(made.scorer)
        published.numbers(made.published)
        return made

    def with_(self, **changes: Any) -> "PlanFile":
        """The same plan on another model, data, ...; what is None is left as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def only(self, methods: Sequence[str]) -> "PlanFile":
        """The same plan with these of its methods. Raises `UnknownName` for one that it does not have."""
        there = {case.method for case in self.cases}
        for name in methods:
            if name not in there:
                raise UnknownName(f"method of {self.path}", name, there)
        return replace(self, cases=tuple(case for case in self.cases if case.method in methods))

    def as_published(self) -> "PlanFile":
        """The same without what errata has added to methods, but where a case says so itself: what a paper claims of it."""
        cases = [replace(case, options={**as_published(case.method), **case.options}) for case in self.cases]
        return replace(self, cases=tuple(case for i, case in enumerate(cases) if case not in cases[:i]))

    def streams(self, on_error: OnError = "stop") -> list[Stream]:
        """The edits of each data set. Raises `BadOption` where the plan asks for more than there are."""
        found = []
        longest = max(self.edits)
        for spec in self.data:
            dataset = load(expanded(spec), on_error=on_error)
            there = len(dataset.edits)
            if longest > there:
                raise BadOption(
                    f"{self.path}: edits {longest} is more than the {there} of {dataset.name}; give other data, or --edits"
                )
            if self.irrelevant is not None:
                dataset = Dataset(dataset.name, dataset.edits, tuple(read_irrelevant(expanded(self.irrelevant))))
            count = longest if self.chunks == 1 else max(longest, min(longest * self.chunks, there))
            found.append(Stream(dataset.name, *dataset.stream(count)))
        return found

    def plans(self, base: nn.Module, tokenizer: Any, model: str, streams: Sequence[Stream]) -> Iterator[Plan]:
        """The plans for one model (of which `base` may be an outline, to count them), in the order of the file."""
        for stream, seed, case in product(streams, self.seeds, self.cases):
            yield Plan(
                base, tokenizer, case.editor(base), model, stream.name, stream.edits, stream.irrelevant, self.edits,
                seed, self.batch_size, self.chunks, chat=self.chat,
            )  # fmt: skip


def expanded(text: str) -> str:
    """A text with the variables of the environment in it. Raises `UsageError` for one that is not set."""
    for name in VARIABLE.findall(text):
        if name not in os.environ:
            raise UsageError(f"{text} names ${name}, which is not set: set it, or give --model, --data or --irrelevant")
    return os.path.expandvars(text)


def _cases(path: Path, table: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of one [[method]]: each combination of its sweep."""
    _check_keys(path, "method", table, METHOD_KEYS)
    if "name" not in table:
        raise BadOption(f"{path}: a [[method]] has no 'name'")
    name, sweep = table["name"], table.get("sweep", {})
    for option, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise BadOption(f"{path}: sweep {option!r} of {name} is {values!r}; a list of values is expected")
    for values in product(*sweep.values()):
        options = {**table.get("options", {}), **dict(zip(sweep, values, strict=True))}
        if name == UNEDITED and options:
            raise BadOption(f"{path}: the unedited model has no options")
        case = Case(name, {key: _typed(path, name, key, value) for key, value in options.items()})
        case.editor()
        yield case


def _typed(path: Path, method: str, name: str, value: Any) -> Any:
    """An option as its annotation has it: a float where 1 is written, None for "none"."""
    if name == DEPTH:
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise BadOption(f"{path}: depth={value!r} of {method} must be a fraction, from 0 to 1")
        return float(value)
    hints = get_type_hints(methods.find(method))
    if name not in hints:
        return value  # `with_options` says which options there are
    allowed = get_args(hints[name]) or (hints[name],)
    if value == "none" and NoneType in allowed:
        return None
    if type(value) is int and int not in allowed and float in allowed:
        return float(value)
    if type(value) not in allowed:
        there = " or ".join("none" if kind is NoneType else kind.__name__ for kind in allowed)
        raise BadOption(f"{path}: {name}={value!r} of {method} must be {there}")
    return value


def _check_keys(path: Path, what: str, table: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    for name, value in table.items():
        if name not in keys:
            raise UnknownName(f"key of a {what} in {path}", name, keys)
        wanted = keys[name](value)
        if wanted:
            raise BadOption(f"{path}: {name} is {value!r}; it must be {wanted}")


def _text(value: Any) -> str:
    return "" if isinstance(value, str) and value.strip() else "text"


def _texts(value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    return "" if listed and all(not _text(item) for item in listed) else "text, or a list of texts"


def _count(value: Any) -> str:
    return "" if type(value) is int and value >= 1 else "a number from 1"


def _switch(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _counts(value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    return "" if listed and all(not _count(item) for item in listed) else "a number from 1, or a list of them"


def _seeds(value: Any) -> str:
    fits = isinstance(value, list) and value and all(type(item) is int and item >= 0 for item in value)
    return "" if fits else "a list of numbers from 0"


def _list_of_texts(value: Any) -> str:
    return "" if isinstance(value, list) and all(not _text(item) for item in value) else "a list of texts"


def _table(value: Any) -> str:
    return "" if isinstance(value, dict) else "a table"


def _tables(value: Any) -> str:
    return (
        ""
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        else "[[method]] tables"
    )


KEYS = {
    "title": _text, "source": _text, "note": _text, "model": _texts, "data": _texts, "edits": _counts, "seeds": _seeds,
    "batch_size": _count, "chunks": _count, "irrelevant": _text, "scorer": _text, "published": _list_of_texts,
    "chat": _switch,
}  # fmt: skip
"""Key of a plan -> what is wrong with its value: what it must be, or nothing."""
METHOD_KEYS = {"name": _text, "options": _table, "sweep": _table}
