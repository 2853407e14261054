"""Checkpoint: an edited model as a directory, without its base model. Never pickle, never remote code.

    errata.json                       what it is: format, method and options, base and its fingerprint; sha256 of the
                                      files and of itself
    memories-<sha12>.safetensors      all that was learned: "<memory>/<tensor>"
    edits-<sha12>.jsonl               the history: every edit in order, those that were replaced included
    README.md                         the model card, for people; never read back

Saving is safe against crashes and full disks: all is first written beside the old state, and `errata.json` is replaced
after the files that it names. Until that moment the old state loads, from then on the new one.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

import errata
from errata import disk, ledger
from errata.card import card
from errata.edit import Edit, Probe
from errata.errors import BadOption, BadRecord, BaseMismatch, DamagedFile, NewerFormat, StoreError, UsageError
from errata.fingerprint import fingerprint

if TYPE_CHECKING:
    from errata.model import EditedModel

FORMAT = 3
MANIFEST = "errata.json"
OURS = re.compile(r"memories-[0-9a-f]{12}\.safetensors|edits-[0-9a-f]{12}\.jsonl|\.errata-.*\.tmp")
"""The files that a save may remove once nothing names them."""
Model = TypeVar("Model", bound="EditedModel")


# -- saving ------------------------------------------------------------------------------------------------------------


def save(model: "EditedModel", directory: Path, *, recorded: bool = False) -> dict[str, Any]:
    """Write the edits of a model to a directory, and give back the manifest.

    On any failure what was there before still loads. Raises `StoreError` when the disk is full or the directory cannot
    be written; and for a directory with a ledger, unless what is saved is `recorded` in it.
    """
    if model.editor is None:
        raise BadOption("this model has no editing method, so there is nothing to save")
    if ledger.exists(directory) and not recorded:
        raise StoreError(f"{directory} keeps a ledger, so open it with errata.Store to edit it, or save elsewhere")
    tensors, edits = _tensors_of(model), _lines_of(model.history)
    named = {
        f"memories-{_sha(tensors)[:12]}.safetensors": tensors,
        f"edits-{_sha(edits)[:12]}.jsonl": edits,
    }
    manifest = settings_of(model) | {
        "edits": len(model.history),
        "batches": _runs(model.batches),
        "files": {name: _sha(content) for name, content in named.items()},
    }
    manifest["sha256"] = sealed(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # The order matters: the manifest after the files that it names.
    contents = named | {MANIFEST: text.encode(), "README.md": card(model, manifest).encode()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        disk.replace_all(directory, contents)
        _remove_old(directory, keep=contents)
    except OSError as error:
        kept = "the edits saved there before are kept" if (directory / MANIFEST).exists() else "nothing was saved"
        raise StoreError(f"the edits cannot be saved to {directory}: {error.strerror or error}; {kept}") from error
    return manifest


def _remove_old(directory: Path, keep: Iterable[str]) -> None:
    for path in directory.iterdir():
        if OURS.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)


def sha_of(model: "EditedModel") -> str:
    """sha256 of the file of its memories that a model would be saved with: the same state has the same."""
    return _sha(_tensors_of(model))


def _tensors_of(model: "EditedModel") -> bytes:
    import safetensors.torch

    # Cloned, because safetensors refuses tensors that share memory.
    flat = {
        f"{name}/{leaf}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, memory in model.memories.items()
        for leaf, tensor in memory.tensors().items()
    }
    return safetensors.torch.save(flat)


def _lines_of(history: Iterable[Edit]) -> bytes:
    from errata.data import jsonl

    return "".join(json.dumps(jsonl.to_record(edit), ensure_ascii=False) + "\n" for edit in history).encode()


def settings_of(model: "EditedModel") -> dict[str, Any]:
    """What a model was made with: all that an empty one like it needs."""
    assert model.editor is not None
    with model.lifted() as base:
        known = {
            "name": model.base_name,
            "revision": getattr(getattr(base, "config", None), "_commit_hash", None),
            "dtype": str(next(base.parameters()).dtype).removeprefix("torch."),
            "fingerprint": fingerprint(base),
        }
    return {
        "format": FORMAT,
        "errata": errata.__version__,
        "method": model.editor.name,
        "options": model.editor.options(),
        "sites": {name: memory.site.path for name, memory in model.memories.items()},
        "base": known,
        "seed": model.sampling.seed,
        "expected": model.expected,
        "chat": model.chat,
        "prefixes": None if model.sampling.prefixes is None else list(model.sampling.prefixes),
        "irrelevant": [asdict(probe) for probe in model.sampling.irrelevant],
    }


def _runs(batches: Iterable[int]) -> list[list[int]]:
    """How many edits were made at once, as [size, times in a row]."""
    return [[size, len(list(run))] for size, run in groupby(batches)]


def sealed(manifest: dict[str, Any]) -> str:
    """sha256 of what a manifest says, whatever the order and the layout of its entries."""
    said = {entry: value for entry, value in manifest.items() if entry != "sha256"}
    return _sha(json.dumps(said, sort_keys=True).encode())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- loading -----------------------------------------------------------------------------------------------------------


def load(
    cls: type[Model],
    directory: Path,
    base: Any = None,
    tokenizer: Any = None,
    *,
    base_name: str | None = None,
    device: str | None = None,
) -> Model:
    """The edited model that was saved in `directory`: same logits, bit for bit.

    Its base is loaded by the recorded name, or by `base_name`, unless it is given together with its tokenizer. Raises
    `BaseMismatch` for another base, `DamagedFile` and `NewerFormat` for files that cannot be trusted.
    """
    manifest = read_manifest(directory)
    files = _read_files(directory, manifest)
    model = build(cls, manifest, directory, base, tokenizer, base_name=base_name, device=device)
    _put(model, manifest, files, directory)
    return model


def restore(model: "EditedModel", directory: Path) -> None:
    """Put what is saved in a directory into a model that was made alike, and has no edits."""
    manifest = read_manifest(directory)
    _put(model, manifest, _read_files(directory, manifest), directory)


def _put(
    model: "EditedModel", manifest: dict[str, Any], files: tuple[dict[str, Tensor], list[Edit]], directory: Path
) -> None:
    tensors, history = files
    fill(model, tensors, manifest["sites"], directory)
    model.history = history
    model.batches = [size for size, times in manifest["batches"] for _ in range(times)]
    model.sampling.prefixes = None if manifest["prefixes"] is None else tuple(manifest["prefixes"])


def build(
    cls: type[Model],
    settings: dict[str, Any],
    directory: Path,
    base: Any = None,
    tokenizer: Any = None,
    *,
    base_name: str | None = None,
    device: str | None = None,
) -> Model:
    """A model as `settings_of` describes it, without edits. Raises `BaseMismatch` for another base."""
    from errata import methods

    name = base_name or settings["base"]["name"]
    if base is None:
        base, tokenizer = _load_base(directory, name, settings["base"]["dtype"], device)
        name = str(base.config._name_or_path)
    elif tokenizer is None:
        raise BadOption("a base model was given without its tokenizer; give both, or none")
    check_base(base, name, settings, directory)
    return cls(
        base,
        tokenizer,
        methods.make(settings["method"], **methods.recorded(settings["method"], settings["options"])),
        irrelevant=[Probe(**probe) for probe in settings["irrelevant"]],
        prefixes=settings["prefixes"],
        expected=settings["expected"],
        chat=settings.get("chat", False),
        seed=settings["seed"],
        base_name=name,
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """What `errata.json` says. Raises `UsageError` where there is none, `NewerFormat` or `DamagedFile`."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UsageError(f"{directory} holds no edited model (it has no {MANIFEST}); make one with `errata edit`")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(number, int):
        raise DamagedFile(f"{path} is damaged: it does not say its format")
    if number > FORMAT:
        raise NewerFormat(
            f"{directory} was written by errata {manifest.get('errata')} in format {number}; this errata"
            f" {errata.__version__} reads up to format {FORMAT}: update errata"
        )
    if manifest.get("sha256", None if number >= 3 else sealed(manifest)) != sealed(manifest):
        raise DamagedFile(f"{path} is damaged: it does not say what was written; copy the directory again")
    needed = ("method", "options", "sites", "base", "seed", "expected", "prefixes", "irrelevant", "files")
    missing = [entry for entry in needed if entry not in manifest]
    if missing:
        raise DamagedFile(f"{path} is damaged: it lacks {', '.join(missing)}")
    return manifest if number >= 2 else _from_format_1(manifest)


def _from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """Format 1 did not say which edits were made at once; the command line made them one by one. Format 2 has no sum."""
    return manifest | {"format": 2, "batches": [[1, manifest.get("edits", 0)]]}


def check_base(base: nn.Module, name: str, manifest: dict[str, Any], directory: Path) -> None:
    """Raise `BaseMismatch` unless this unedited model is the one that the edits were made on."""
    if fingerprint(base) != manifest["base"]["fingerprint"]:
        given = name or str(getattr(getattr(base, "config", None), "_name_or_path", "")) or type(base).__name__
        raise BaseMismatch(
            f"the edits in {directory} were made on {manifest['base']['name'] or 'an unnamed model'}, whose weights are"
            f" not those of {given}; give the base model that they were made on"
        )


def _load_base(directory: Path, name: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    from errata import loading

    if not name:
        raise UsageError(f"{directory} does not say the name of its base model; give the base and its tokenizer")
    return loading.load(name, dtype=dtype, device=device)


def _read_files(directory: Path, manifest: dict[str, Any]) -> tuple[dict[str, Tensor], list[Edit]]:
    from errata.data import jsonl

    tensors: dict[str, Tensor] = {}
    history: list[Edit] = []
    for name, sha in manifest["files"].items():
        path = directory / name
        if name.endswith(".safetensors"):
            tensors = read_tensors(path, sha)
            continue
        try:
            history = [jsonl.from_record(json.loads(line)) for line in _read(path, sha).decode().split("\n") if line]
        except (ValueError, BadRecord) as error:
            raise DamagedFile(f"{path} is damaged: {error}") from error
    return tensors, history


def read_tensors(path: Path, sha: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file with this sha256. Raises `DamagedFile`, which names the file."""
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(_read(path, sha))
    except (safetensors.SafetensorError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error


def check_file(path: Path, sha: str) -> None:
    """Raise `DamagedFile`, which names the file, unless it has this sha256."""
    _read(path, sha)


def _read(path: Path, sha: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}") from error
    if _sha(content) != sha:
        raise DamagedFile(f"{path} is damaged: its sha256 is not the one that was recorded; copy the directory again")
    return content


def fill(model: "EditedModel", tensors: dict[str, Tensor], sites: dict[str, str], directory: Path) -> None:
    """Put the saved tensors into the memories that the method has installed. They must be the same, at the same sites."""
    there = {name: memory.site.path for name, memory in model.memories.items()}
    if there != sites:
        assert model.editor is not None
        raise StoreError(
            f"{directory} was saved with memories at {sites}, but {model.editor.name} now installs {there}"
        )
    for name, memory in model.memories.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        memory.put({leaf: tensor.to(model.device) for leaf, tensor in own.items()})
