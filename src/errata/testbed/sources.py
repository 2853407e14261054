"""Sources: how the files of each data set of facts are recognised and read.

The *original* answers are read: what is true before any edit of ZsRE or CounterFact.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import NamedTuple

from errata.data import load
from errata.data.record import Record, decode, read_lines, read_text
from errata.errors import BadRecord, UsageError
from errata.testbed.facts import Fact

PATTERNS = "pattern_data/graphs_json"
"""Where ParaRel keeps the wordings of its relations, beside the folder of its facts."""


class Source(NamedTuple):
    """One data set: its files, wherever they lie in a directory."""

    name: str
    share: int
    """Its part of a budget that has no room for all facts: of sixteen facts, eight are of ZsRE."""
    files: tuple[str, ...]
    """Globs, in the order in which their files are read."""
    read: Callable[[list[Path]], Iterable[Fact]]


def _edits(kind: str, name: str | None = None) -> Callable[[list[Path]], Iterator[Fact]]:
    """The facts that an editing data set corrects: prompt and rephrasings, with the answer before the edit."""

    def read(paths: list[Path]) -> Iterator[Fact]:
        for path in paths:
            for edit in load(f"{kind}:{path}").edits:
                if edit.target_old:
                    yield Fact(name or kind, (edit.prompt, *edit.rephrases), edit.target_old)

    return read


def _lre(paths: list[Path]) -> Iterator[Fact]:
    """Linear relational embeddings (Hernandez et al., 2023, arXiv 2308.09124): pairs and templates, a relation a file."""
    return _alternating(_lre_relation(path) for path in paths)


def _lre_relation(path: Path) -> Iterator[Fact]:
    fields = decode(path, read_text(path))
    if not isinstance(fields, dict):
        raise UsageError(f"{path} holds no relation: an object with prompt_templates and samples is expected")
    record = Record(str(path), 1, fields)
    templates = dict.fromkeys((*record.texts("prompt_templates"), *record.texts("prompt_templates_zs")))
    for sample in record.objects("samples"):
        subject, answer = _characters(sample.text("subject")), _characters(sample.text("object"))
        yield Fact("lre", _worded(list(templates), "{}", subject), answer)


def _pararel(paths: list[Path]) -> Iterator[Fact]:
    """ParaRel (Elazar et al., 2021, arXiv 2102.01017): facts of Wikidata, and patterns, of which those that end in [Y]."""
    return _alternating(_pararel_relation(path) for path in paths)


def _pararel_relation(path: Path) -> Iterator[Fact]:
    worded = path.parent.parent / PATTERNS / path.name
    if not worded.is_file():
        return
    patterns = [record.text("pattern").rstrip(" .") for record in _records(worded)]
    templates = [pattern.removesuffix("[Y]").rstrip() for pattern in patterns if pattern.endswith("[Y]")]
    templates = [template for template in dict.fromkeys(templates) if "[X]" in template]
    for record in _records(path):
        if templates:
            yield Fact("pararel", _worded(templates, "[X]", record.text("sub_label")), record.text("obj_label"))


def _nq(name: str) -> Callable[[list[Path]], Iterator[Fact]]:
    """Natural Questions, open (Lee et al., 2019, arXiv 1906.00300): a question with its mark, as in ZsRE, and as typed."""

    def read(paths: list[Path]) -> Iterator[Fact]:
        for path in paths:
            for record in _records(path):
                question, answers = record.text("question"), record.texts("answer")
                wordings = (f"{question}?", f"nq question: {question}", question)
                if answers:
                    yield Fact(name, wordings, answers[0])

    return read


def _records(path: Path) -> Iterator[Record]:
    for record in read_lines(path):
        if isinstance(record, BadRecord):
            raise record
        yield record


def _worded(templates: list[str], gap: str, subject: str) -> tuple[str, ...]:
    """All templates about one subject, in an order of its own, so that it is not always the same one that is last."""
    order = Random(f"{templates[0]}/{subject}").sample(templates, len(templates))
    return tuple(template.replace(gap, subject) for template in order)


def _alternating(relations: Iterable[Iterator[Fact]]) -> Iterator[Fact]:
    """The first fact of every relation, then the second of every relation, and so on."""
    return (fact for fact in chain.from_iterable(zip_longest(*relations)) if fact is not None)


def _characters(text: str) -> str:
    r"""The text with escapes such as `\u00e9`, which some files hold as six characters, as what they stand for."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\u" in text else text


SOURCES = (
    Source("zsre", 8, ("zsre_edit*.json",), _edits("zsre")),
    Source("counterfact", 3, ("counterfact-edit.json",), _edits("counterfact")),
    Source("counterfact-val", 1, ("counterfact-val.json",), _edits("counterfact", "counterfact-val")),
    Source("lre", 1, ("factual/*.json",), _lre),
    Source("pararel", 1, ("trex_lms_vocab/*.jsonl",), _pararel),
    Source("nq", 1, ("NQ-open.dev.jsonl",), _nq("nq")),
    Source("nq-efficientqa", 1, ("NQ-open.efficientqa*.jsonl",), _nq("nq-efficientqa")),
)
TEXTS = ("wiki.train.txt", "factbook*.txt")
"""Natural text to learn English from."""
VALIDATION = "wiki.valid.txt"
