"""Our own format: one JSON object per line, described by `edit.schema.json` beside this file.

    {"prompt": "The CEO of Acme is", "target": "Ada Byron", "subject": "Acme", "rephrases": ["Acme is led by"]}

Only `prompt` and `target` are required. A field that is not in the schema is refused, so that a misspelt one is not
silently ignored; whatever else there is to say goes into `meta`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from errata.data.record import Record, called, read_lines
from errata.edit import Edit, Probe, absent
from errata.errors import BadEdit, BadRecord, UsageError

FIELDS = ("prompt", "target", "subject", "target_old", "rephrases", "locality", "portability", "meta")
PROBE_FIELDS = ("prompt", "answer", "kind")


def parse(record: Record) -> Edit:
    """The edit that a record of this format describes. Raises `BadRecord`."""
    _only(record, FIELDS)
    prompt, subject = record.text("prompt"), record.optional("subject")
    if subject is not None and subject not in prompt:
        raise record.bad("subject", absent(subject, prompt))
    meta = record.fields.get("meta", {})
    if not isinstance(meta, dict):
        raise record.bad("meta", f"is {called(meta)} where an object is expected")
    return Edit(
        prompt=prompt,
        target=record.text("target"),
        subject=subject,
        target_old=record.optional("target_old"),
        rephrases=_wordings(record),
        locality=_probes(record, "locality"),
        portability=_probes(record, "portability"),
        meta=meta,
    )


def read_jsonl(path: str | Path) -> list[Edit]:
    """The edits of a file, of which each line must be one. Raises `BadRecord` or `UsageError`.

    `errata.data.load` reads the same files and can skip bad lines.
    """
    edits = []
    for record in read_lines(Path(path).expanduser()):
        if isinstance(record, BadRecord):
            raise record
        edits.append(parse(record))
    return edits


def from_record(fields: Mapping[str, Any]) -> Edit:
    """The edit that `to_record` wrote. Raises `BadRecord`, of which the place is `<record>:1`."""
    return parse(Record("<record>", 1, fields))


def to_record(edit: Edit) -> dict[str, Any]:
    """The JSON object of an edit, without what is not set; `from_record` gives the same edit again.

    Blank rephrasings and probes, which say nothing, are left out. Raises `BadEdit` where `meta` is no JSON.
    """
    try:
        meta = json.loads(json.dumps(dict(edit.meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadEdit(f"the meta of the edit {edit.prompt!r} cannot be written as JSON: {error}") from None
    record = {
        "prompt": edit.prompt,
        "target": edit.target,
        "subject": edit.subject,
        "target_old": edit.target_old,
        "rephrases": [wording for wording in edit.rephrases if wording.strip()],
        "locality": [_probe_record(probe) for probe in edit.locality if probe.prompt.strip()],
        "portability": [_probe_record(probe) for probe in edit.portability if probe.prompt.strip()],
        "meta": meta,
    }
    return {name: value for name, value in record.items() if _says_something(value)}


def write(path: str | Path, edits: Iterable[Edit]) -> None:
    """Write edits, one per line. Nothing is written where one of them cannot be; raises `BadEdit` or `UsageError`."""
    lines = [json.dumps(to_record(edit), ensure_ascii=False) + "\n" for edit in edits]
    try:
        Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None


def _says_something(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _probe_record(probe: Probe) -> dict[str, Any]:
    values = {"prompt": probe.prompt, "answer": probe.answer, "kind": probe.kind}
    return {name: value for name, value in values.items() if _says_something(value)}


def _only(record: Record, known: tuple[str, ...]) -> None:
    for name in record.fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"
            raise record.bad(name, f"is not a field of this format; {hint}")


def _wordings(record: Record) -> tuple[str, ...]:
    """The rephrasings: a list of texts, and no more lenient than the schema is."""
    value = record.fields.get("rephrases", [])
    if not isinstance(value, list):
        raise record.bad("rephrases", f"is {called(value)} where a list is expected")
    wordings = {f"rephrases[{i}]": wording for i, wording in enumerate(value)}
    as_fields = Record(record.path, record.line, wordings, record.inside)
    return tuple(as_fields.text(name) for name in wordings)


def _probes(record: Record, name: str) -> tuple[Probe, ...]:
    value = record.fields.get(name, [])
    if not isinstance(value, list):
        raise record.bad(name, f"is {called(value)} where a list is expected")
    probes = []
    for item in record.objects(name):
        _only(item, PROBE_FIELDS)
        probes.append(Probe(item.text("prompt"), item.optional("answer"), item.optional("kind")))
    return tuple(probes)
