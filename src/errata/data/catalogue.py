"""`load`: from the name of a data set, such as `zsre:PATH`, to its edits.

Other packages add formats through the entry-point group `errata.data`: a name, and a function from a path to an
iterable of `Edit`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from errata.data import counterfact, easyedit, hallucination, jsonl, temporal, zsre
from errata.data.dataset import Dataset
from errata.data.record import Record, read_array, read_lines, read_probes
from errata.edit import Edit, Probe
from errata.errors import BadOption, BadRecord, UnknownName, UsageError

OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Format:
    """How the files of one format are read."""

    records: Callable[[Path], Iterator[Record | BadRecord]]
    parse: Callable[[Record], Edit]


FORMATS = {
    "zsre": Format(read_array, zsre.parse),
    "counterfact": Format(read_array, counterfact.parse),
    "hallucination": Format(read_array, hallucination.parse),
    "temporal": Format(read_array, temporal.parse),
    "easyedit": Format(read_array, easyedit.parse),
    "jsonl": Format(read_lines, jsonl.parse),
}
SIGNS = (
    ("zsre", {"src", "alt"}),
    ("counterfact", {"requested_rewrite"}),
    ("counterfact", {"case_id", "prompt", "target_new"}),
    ("temporal", {"prompt", "target_new", "ood_rephrase"}),
    ("easyedit", {"prompt", "target_new"}),
    ("easyedit", {"prompts", "target_new"}),
)
"""The fields by which the format of a `.json` file is recognised, the first that fits."""
HINT = "Write KIND:PATH, atlas, or the path of a .jsonl or .json file."


def load(spec: str, *, on_error: OnError = "stop", limit: int | None = None) -> Dataset:
    """The data set that `spec` names: `atlas[:SPLIT]`, `KIND:PATH` or the path of a `.jsonl` or `.json` file.

    With `on_error="skip"` the records that are no edits are collected in `Dataset.skipped`; else the first of them
    raises `BadRecord`. At most `limit` edits are read, and the locality probes of later ones are then not seen.
    Raises `UnknownName` for an unknown kind, `UsageError` for a file that is missing, empty or without an edit.
    """
    if on_error not in get_args(OnError):
        raise BadOption(f"on_error is {on_error!r}; it can be {' or '.join(get_args(OnError))}")
    if limit is not None and limit < 1:
        raise BadOption(f"the limit is {limit}; it must be at least 1, or left out")
    if spec.partition(":")[0] == "atlas":
        return _atlas(spec, limit)
    kind, path = _locate(spec)
    name = f"{kind}:{path.name}"
    if kind not in FORMATS:
        return Dataset(name, tuple(islice(_plugins()[kind].load()(path), limit)))
    edits: list[Edit] = []
    skipped: list[BadRecord] = []
    for edit in _edits(FORMATS[kind], path):
        if isinstance(edit, Edit):
            edits.append(edit)
        elif on_error == "stop":
            raise edit
        else:
            skipped.append(edit)
        if len(edits) == limit:
            break
    if not edits:
        first = f"; the first of {len(skipped)} bad records: {skipped[0]}" if skipped else ""
        raise UsageError(f"{path} holds no edit{first}")
    return Dataset(name, tuple(edits), skipped=tuple(skipped))


def read_irrelevant(where: str | Path) -> list[Probe]:
    """Prompts that edits must leave alone: a file, as `read_probes` reads it, or the locality probes of `KIND:PATH`.

    Raises what `load` and `read_probes` raise, and `UsageError` for data without locality probes.
    """
    kind, colon, _ = str(where).partition(":")
    if colon and kind.isidentifier() and not Path(where).exists():
        probes = [probe for edit in load(str(where)).edits for probe in edit.locality]
        if not probes:
            raise UsageError(f"{where} has no locality probes, so it says nothing of what edits must leave alone")
        return probes
    return read_probes(where)


def _edits(format_: Format, path: Path) -> Iterator[Edit | BadRecord]:
    for record in format_.records(path):
        try:
            yield record if isinstance(record, BadRecord) else format_.parse(record)
        except BadRecord as error:
            yield error


def _locate(spec: str) -> tuple[str, Path]:
    """The kind and the file that `spec` means. Raises `UnknownName` or `UsageError`."""
    kind, colon, rest = spec.partition(":")
    path = Path(spec).expanduser()
    known = {*FORMATS, *_plugins()}
    if kind in known:
        if not rest:
            raise UsageError(f"{kind!r} needs a file: {kind}:PATH")
        return kind, Path(rest).expanduser()
    if path.suffix not in {".json", ".jsonl"} or (colon and not path.exists()):
        raise UnknownName("data set or format", kind, {*known, "atlas"}, HINT)
    return ("jsonl" if path.suffix == ".jsonl" else _recognise(path)), path


def _recognise(path: Path) -> str:
    """The format of a `.json` file, by the fields of its first record that is an object."""
    fields: Iterable[str] = next((r.fields for r in read_array(path) if isinstance(r, Record)), ())
    for kind, sign in SIGNS:
        if sign <= set(fields):
            return kind
    found = f"the fields of its first record are {', '.join(fields)}" if fields else "it holds no record"
    raise UsageError(f"{path} is of no known format: {found}. Write KIND:PATH with one of {', '.join(FORMATS)}")


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="errata.data")}


def _atlas(spec: str, limit: int | None) -> Dataset:
    """The embedded testbed. It is imported here because a user's own file needs none of it."""
    from errata import atlas

    split: Any = spec.partition(":")[2]  # the atlas itself refuses a split that it does not have
    edits = atlas.edits(split) if split else atlas.edits()
    return Dataset(spec, tuple(edits)[:limit], irrelevant=tuple(atlas.irrelevant()))
