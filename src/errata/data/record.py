"""Record: one item of a data file, with typed access to its fields and errors that name file, line and field.

All the file handling of the readers is here: decoding, JSON, arrays, lines. A reader only maps fields to an `Edit`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.edit import Edit, Probe
from errata.errors import BadRecord, UsageError

JSON_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
"""How a JSON value is called in an error message; what is not listed is a number."""


@dataclass(frozen=True)
class Record:
    """The fields of one item of a file, and where they stand in it."""

    path: str
    line: int
    """The line (jsonl) or the item (JSON array), counted from 1."""
    fields: Mapping[str, Any]
    inside: str = ""
    """The field of the item that this object was found in, as a prefix: `locality[2].`"""

    def bad(self, name: str | None, problem: str) -> BadRecord:
        """The error, to be raised, that says that field `name` has this problem."""
        return BadRecord(self.path, self.line, (self.inside + (name or "")).rstrip(".") or None, problem)

    def pick(self, *names: str) -> str:
        """The first of these names that the record has; the first of all where it has none."""
        return next((name for name in names if self.fields.get(name) is not None), names[0])

    def text(self, name: str) -> str:
        """A field that must be there and be text that is not blank. Raises `BadRecord`."""
        if name not in self.fields:
            raise self.bad(name, "is missing")
        text = self._text(name, self.fields[name])
        if not text.strip():
            raise self.bad(name, "is empty")
        return text

    def optional(self, name: str) -> str | None:
        """A field that may be missing or null, else is text that is not blank. Raises `BadRecord`."""
        return None if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is text or a list of texts, without the blank ones. Missing or null is the empty tuple.

        A list inside the list holds alternatives, of which the first counts. Raises `BadRecord`.
        """
        return tuple(text for text in self._listed(name) if text.strip())

    def first(self, name: str) -> str:
        """The first of `texts(name)`, which must be there. Raises `BadRecord`."""
        texts = self.texts(name)
        if not texts:
            raise self.bad(name, "is empty" if name in self.fields else "is missing")
        return texts[0]

    def first_or_none(self, name: str) -> str | None:
        """The first of `texts(name)`, or nothing."""
        return next(iter(self.texts(name)), None)

    def objects(self, name: str) -> "tuple[Record, ...]":
        """A field that is an object or a list of objects, each as a record. Missing or null is the empty tuple."""
        value = self.fields.get(name)
        if value is None:
            return ()
        items = [(name, value)] if isinstance(value, dict) else self._enumerated(name, value)
        for where, item in items:
            if not isinstance(item, dict):
                raise self.bad(where, f"is {called(item)} where an object is expected")
        return tuple(replace(self, fields=item, inside=f"{self.inside}{where}.") for where, item in items)

    def probes(self, prompts: str, answers: str, kind: str | None = None) -> tuple[Probe, ...]:
        """Probes of two fields: text and its answer (the first, of several), or two lists of equal length."""
        asked, answered = self._listed(prompts), self._listed(answers)
        if isinstance(self.fields.get(prompts), str):
            answered = answered[:1]
        if answered and len(answered) != len(asked):
            raise self.bad(answers, f"has {len(answered)} entries for {len(asked)} in {prompts!r}")
        pairs = zip(asked, answered or [""] * len(asked), strict=True)
        return tuple(
            Probe(prompt, answer if answer.strip() else None, kind) for prompt, answer in pairs if prompt.strip()
        )

    def rest(self, *used: str) -> dict[str, Any]:
        """The fields that were not used, for `Edit.meta`: nothing that a data set says is lost."""
        return {name: value for name, value in self.fields.items() if name not in used}

    def edit(self, prompt: str, target: str, subject: str | None, **others: Any) -> Edit:
        """The edit of a benchmark's row, of which the subject may not occur in the prompt as it is written.

        Such a row is kept without a subject; `meta["subject_missing"]` then says which subject it named.
        """
        if subject is not None and subject not in prompt:
            others["meta"] = {**others.get("meta", {}), "subject_missing": subject}
            subject = None
        return Edit(prompt=prompt, target=target, subject=subject, **others)

    def _listed(self, name: str) -> list[str]:
        value = self.fields.get(name)
        if value is None or isinstance(value, str):
            return [] if value is None else [self._text(name, value)]
        return [
            self._text(where, (item[0] if item else "") if isinstance(item, list) else item)
            for where, item in self._enumerated(name, value)
        ]

    def _enumerated(self, name: str, value: object) -> list[tuple[str, Any]]:
        if not isinstance(value, list):
            raise self.bad(name, f"is {called(value)} where a list is expected")
        return [(f"{name}[{i}]", item) for i, item in enumerate(value)]

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.bad(name, f"is {called(value)} where text is expected")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.bad(name, "holds half of a surrogate pair, which is not a character")
        return value


def called(value: object) -> str:
    """What a decoded JSON value is called in an error message."""
    return JSON_NAMES.get(type(value), "a number")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark.

    Raises `UsageError` where there is no such file or it is empty, `BadRecord` where it is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(path, data.count(b"\n", 0, error.start) + 1, None, "is not UTF-8 text") from None
    if not text.strip():
        raise UsageError(f"{path} is empty")
    return text


def decode(path: Path, text: str, line: int = 1) -> Any:
    """The JSON value that is written from `line` on. Raises `BadRecord` that names the line of the mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"malformed JSON at column {error.colno}: {error.msg}"
        raise BadRecord(path, line + error.lineno - 1, None, place) from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(path, line, None, f"JSON that cannot be read: {error}") from None


def read_array(path: Path) -> Iterator[Record | BadRecord]:
    """The objects of a JSON array, as records; an item that is no object, as the error that says so.

    A top-level object of equally long lists is a table by columns, and is read by rows.
    Raises `UsageError` or `BadRecord` where the file as a whole cannot be read.
    """
    value = decode(path, read_text(path))
    items = _rows(path, value) if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise UsageError(f"{path} holds {called(value)} where a JSON array of records is expected")
    for number, item in enumerate(items, start=1):
        yield _record(path, number, item)


def read_lines(path: Path) -> Iterator[Record | BadRecord]:
    """The objects of a file with one JSON object per line, as records; a bad line, as the error that says so."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield _record(path, number, decode(path, line, number))
            except BadRecord as error:
                yield error


def read_probes(path: str | Path) -> list[Probe]:
    """Prompts that have nothing to do with any edit: a `.json` array of strings, or any other file with one a line.

    In a file of lines the answer may follow after a tab.

    Raises `UsageError` for a missing or empty file, `BadRecord` for an entry that is no text.
    """
    path = Path(path).expanduser()
    if path.suffix != ".json":
        lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        return [Probe(prompt, answer or None) for prompt, _, answer in (line.partition("\t") for line in lines)]
    items = decode(path, read_text(path))
    if not isinstance(items, list):
        raise UsageError(f"{path} holds {called(items)} where a JSON array of texts is expected")
    return [Probe(Record(str(path), i, {"text": item}).text("text")) for i, item in enumerate(items, start=1)]


def _record(path: Path, number: int, item: object) -> Record | BadRecord:
    if isinstance(item, dict):
        return Record(str(path), number, item)
    return BadRecord(path, number, None, f"is {called(item)} where an object is expected")


def _rows(path: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {name: len(column) for name, column in columns.items() if isinstance(column, list)}
    if not lengths:
        raise UsageError(f"{path} holds one object where a JSON array of records is expected")
    if len(set(lengths.values())) > 1:
        raise UsageError(f"{path} is a table by columns, but they differ in length: {lengths}")

    def cell(value: Any, i: int) -> Any:
        if isinstance(value, dict):
            return {name: cell(inner, i) for name, inner in value.items()}
        if isinstance(value, list):
            return value[i] if i < len(value) else None
        return value

    return [{name: cell(column, i) for name, column in columns.items()} for i in range(next(iter(lengths.values())))]
