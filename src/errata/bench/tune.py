"""Tune: the same search for every method, on edits that no test scores.

A method says in `Editor.search` which values each option may have. The default settings come first, then settings drawn
from the product of these values, without repetition, until the budget is spent: `budget` trials, each one stream over the
same validation edits. The best mean of the headline average wins; a tie goes to the earlier trial, so to the defaults.
A setting that hardly edits leaves everything alone and has an average of a third, which some methods do not reach: only
trials with half of the best reliability count.

The log is the rows of all trials (`results.jsonl`, resumed like any benchmark); what was chosen is `settings.json`, which
`errata bench --settings` reads and refuses for a run that would score an edit it was tuned on.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any

from errata import methods
from errata.bench import record
from errata.bench.plan import Plan
from errata.bench.record import Row
from errata.bench.stream import Progress, run
from errata.data.dataset import Dataset
from errata.edit import Edit, Probe
from errata.errors import BadOption, DamagedFile, UnknownName, UsageError
from errata.metrics import HEADLINE, Reference, mean

FORMAT = 1
FILE = "settings.json"
EDITS = 0.5
"""The share of the best reliability below which a setting does not count."""
Options = dict[str, Any]
Space = Mapping[str, Sequence[Any]]
"""Option -> the values it may have."""


@dataclass(frozen=True)
class Trial:
    """One setting of one method, and how it did."""

    method: str
    options: Options
    """Those that differ from the defaults."""
    rows: tuple[Row, ...]

    @property
    def score(self) -> float:
        """The mean over the checkpoints of the headline average."""
        return self._mean("average")

    @property
    def reliability(self) -> float:
        """The mean over the checkpoints of the headline reliability."""
        return self._mean("reliability")

    def _mean(self, name: str) -> float:
        return mean(row.scores[HEADLINE][name] or 0.0 for row in self.rows) or 0.0


@dataclass(frozen=True)
class Protocol:
    """What all methods of one settings file have in common."""

    model: str
    data: str
    checkpoints: tuple[int, ...]
    budget: int
    seed: int
    batch_size: int
    validation: tuple[str, ...]
    """The validation edits, by the first twelve hexadecimal digits of the hash of each prompt."""
    chat: bool = False


def validation(data: Dataset, n: int) -> tuple[list[Edit], list[Probe]]:
    """The last `n` edits of a data set, and irrelevant prompts: its own, or the probes of the 2n edits before those.

    A benchmark scores edits from the beginning, so the two do not meet in data sets that are long enough; `Settings`
    makes sure of it. Raises `UsageError` where there are fewer than 2n edits.
    """
    if len(data.edits) < 2 * n:
        raise UsageError(f"{data.name} has {len(data.edits)} edits: too few to set {n} of them aside for tuning")
    turned = Dataset(data.name, (*data.edits[-n:], *data.edits[-3 * n : -n]), data.irrelevant)
    return turned.stream(n)


def trials(method: str, budget: int, seed: int = 0, space: Space | None = None) -> list[Options]:
    """The settings to try: the defaults, then others from the product of the values, drawn without repetition.

    At most `budget`, and fewer only where there are no more. Raises `BadOption` for a method that declares no values,
    `UnknownName` for an option that it does not have.
    """
    editor = methods.find(method)
    space = dict(editor.search if space is None else space)
    if not space:
        raise BadOption(f"{method} declares no values to search; give some: --search NAME=VALUE,VALUE")
    known = {f.name: f.default for f in fields(editor)}
    for name in space:
        if name not in known:
            raise UnknownName(f"option of {method}", name, known)
    total = math.prod(len(values) for values in space.values())
    order = Random(f"{seed}/tune/{method}").sample(range(total), total)
    drawn = (_of_index(space, i) for i in order)
    others = [{name: value for name, value in options.items() if value != known[name]} for options in drawn]
    return [{}, *(options for options in others if options)][:budget]


def _of_index(space: Space, index: int) -> Options:
    """The settings of one index into the product of the values."""
    found = {}
    for name, values in space.items():
        index, place = divmod(index, len(values))
        found[name] = values[place]
    return found


def tune(
    plan: Plan, method: str, budget: int, output: Path, *, space: Space | None = None,
    progress: Callable[[int, Trial], None] = lambda *_: None, step: Progress | None = None,
) -> Trial:  # fmt: skip
    """Try settings of one method on the plan's edits, keep the log in `output`, and enter the best in its settings file.

    The plan's own editor is ignored. The same call goes on where an earlier one was stopped. Raises `BadOption` when the
    file was made under another protocol: then the methods in it would not be comparable.
    """
    protocol = protocol_of(plan, budget)
    there = Settings.read(output / FILE) if (output / FILE).is_file() else None
    if there is not None and there.protocol != protocol:
        mine, theirs = asdict(protocol), asdict(there.protocol)
        different = ", ".join(name for name in mine if mine[name] != theirs[name])
        raise BadOption(f"{output / FILE} was tuned with another {different}: give another --output")
    reference = Reference()
    made = []
    for i, options in enumerate(trials(method, budget, plan.seed, space)):
        editor = methods.make(method, **options)
        rows = run(replace(plan, editor=editor), output, step, reference)
        made.append(Trial(method, options, tuple(rows)))
        progress(i, made[-1])
    best = best_of(made)
    chosen = {
        "options": best.options,
        "score": round(best.score, 4),
        "default_score": round(made[0].score, 4),
        "trials": len(made),
        "searched": {name: list(values) for name, values in (space or methods.find(method).search).items()},
    }
    Settings(protocol, {**(there.chosen if there else {}), method: chosen}).write(output / FILE)
    return best


def best_of(made: Sequence[Trial]) -> Trial:
    """The first with the best score, of the trials that edit: with `EDITS` of the best reliability or more."""
    least = EDITS * max(trial.reliability for trial in made)
    return max((trial for trial in made if trial.reliability >= least), key=lambda trial: trial.score)


def protocol_of(plan: Plan, budget: int) -> Protocol:
    """The protocol of a search over the edits of a plan."""
    points = tuple(plan.checkpoints)
    seen = tuple(prompt_hash(edit) for edit in plan.edits)
    return Protocol(plan.model, plan.data, points, budget, plan.seed, plan.batch_size, seen, plan.chat)


def prompt_hash(edit: Edit) -> str:
    """Twelve hexadecimal digits that stand for an edit's prompt."""
    return hashlib.sha256(edit.prompt.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Settings:
    """The settings file: for each method what was chosen, and how."""

    protocol: Protocol
    chosen: Mapping[str, Mapping[str, Any]]

    def options(self, method: str) -> Options:
        """The chosen options of a method; none for one that was not tuned."""
        return dict(self.chosen.get(method, {}).get("options", {}))

    def check_disjoint(self, edits: Iterable[Edit], where: object) -> None:
        """Raise `BadOption` when one of these edits, which are to be scored, was tuned on."""
        seen = set(self.protocol.validation)
        scored = list(edits)
        shared = sum(prompt_hash(edit) in seen for edit in scored)
        if shared:
            raise BadOption(
                f"{shared} of the {len(scored)} edits to be scored were tuned on by {where}; score others, or fewer"
            )

    def write(self, path: Path) -> None:
        """Write the file, in place of the one that may be there."""
        objective = f"{HEADLINE} average, mean over the checkpoints, at {EDITS:g} of the best reliability or more"
        content = {"format": FORMAT, "objective": objective}
        text = json.dumps(
            content | {"protocol": asdict(self.protocol), "methods": dict(sorted(self.chosen.items()))}, indent=2
        )
        waiting = path.with_name(f".{path.name}.tmp")
        waiting.write_text(text + "\n", encoding="utf-8")
        waiting.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """The settings of a file. Raises `UsageError` where there is none, `DamagedFile` for another thing."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            told = content["protocol"]
            lists = {name: tuple(told[name]) for name in ("checkpoints", "validation")}
            return cls(Protocol(**{**told, **lists}), content["methods"])
        except OSError as error:
            raise UsageError(f"{path} holds no settings ({error.strerror}); make some: errata tune METHOD") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(f"{path} is no settings file, or is damaged: {error}") from error


def log(output: Path) -> Iterator[Row]:
    """The rows of all trials in a directory."""
    return iter(record.read(output))
