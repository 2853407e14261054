"""Checkpoint: an edited model as a directory, without its base model. Never pickle, never remote code.

    errata.json                       what it is: format, method and options, base and its fingerprint, sha256 of files
    memories-<sha12>.safetensors      all that was learned: "<memory>/<tensor>"
    edits-<sha12>.jsonl               the history: every edit in order, those that were replaced included
    README.md                         the model card, for people; never read back

Saving is safe against crashes and full disks: all is first written beside the old state, and `errata.json` is replaced
after the files that it names. Until that moment the old state loads, from then on the new one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

import errata
from errata.edit import Edit, Probe
from errata.errors import BadOption, BadRecord, BaseMismatch, DamagedFile, NewerFormat, StoreError, UsageError

if TYPE_CHECKING:
    from errata.model import EditedModel

FORMAT = 1
MANIFEST = "errata.json"
OURS = re.compile(r"memories-[0-9a-f]{12}\.safetensors|edits-[0-9a-f]{12}\.jsonl|\.errata-.*\.tmp")
"""The files that a save may remove once nothing names them."""
SAMPLE = 256
"""Values of each parameter that enter the fingerprint, at most."""
SHAPING = (
    "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    " vocab_size hidden_act activation_function rms_norm_eps layer_norm_eps layer_norm_epsilon rope_parameters"
    " sliding_window num_experts_per_tok attn_logit_softcapping final_logit_softcapping"
).split()
"""The entries of a configuration that enter the fingerprint: what computes, not where or how precisely."""

Model = TypeVar("Model", bound="EditedModel")


def fingerprint(base: nn.Module) -> str:
    """A hash that tells pretrained models apart; the same for a 16-bit checkpoint loaded as such or in float32.

    It covers the configuration, and of every parameter the name, the shape and a sample of the values. Parameters on
    `meta` count by name and shape. Give it the model without edits (`with model.lifted() as base`).
    """
    config = getattr(base, "config", None)
    known = config.to_dict() if config is not None else {}
    shaping = {name: known[name] for name in SHAPING if known.get(name) is not None}
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode())
    for name, parameter in base.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            digest.update(_sample(parameter.detach()).numpy().tobytes())
    return digest.hexdigest()


def _sample(values: Tensor) -> Tensor:
    flat = values.reshape(-1)
    return flat[:: max(1, -(-len(flat) // SAMPLE))].to("cpu", torch.float32).contiguous()


# -- saving ------------------------------------------------------------------------------------------------------------


def save(model: "EditedModel", directory: Path) -> None:
    """Write the edits of a model to a directory. On any failure what was there before still loads.

    Raises `StoreError` when the disk is full or the directory cannot be written.
    """
    if model.editor is None:
        raise BadOption("this model has no editing method, so there is nothing to save")
    tensors, edits = _tensors_of(model), _lines_of(model.history)
    named = {
        f"memories-{_sha(tensors)[:12]}.safetensors": tensors,
        f"edits-{_sha(edits)[:12]}.jsonl": edits,
    }
    manifest = _manifest(model) | {"files": {name: _sha(content) for name, content in named.items()}}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # The order matters: the manifest after the files that it names.
    contents = named | {MANIFEST: text.encode(), "README.md": _card(model, manifest).encode()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace_all(directory, contents)
        _remove_old(directory, keep=contents)
    except OSError as error:
        kept = "the edits saved there before are kept" if (directory / MANIFEST).exists() else "nothing was saved"
        raise StoreError(f"the edits cannot be saved to {directory}: {error.strerror or error}; {kept}") from error


def _replace_all(directory: Path, contents: dict[str, bytes]) -> None:
    """Write every file under a temporary name, and only when all are on the disk give them their own names."""
    waiting = {directory / f".errata-{os.getpid()}-{name}.tmp": directory / name for name in contents}
    try:
        for temporary, content in zip(waiting, contents.values(), strict=True):
            write(temporary, content)
        for temporary, final in waiting.items():
            temporary.replace(final)
        _sync_directory(directory)
    finally:
        for temporary in waiting:
            temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_old(directory: Path, keep: Iterable[str]) -> None:
    for path in directory.iterdir():
        if OURS.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)


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


def _manifest(model: "EditedModel") -> dict[str, Any]:
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
        "edits": len(model.history),
        "seed": model.sampling.seed,
        "expected": model.expected,
        "prefixes": None if model.sampling.prefixes is None else list(model.sampling.prefixes),
        "irrelevant": [asdict(probe) for probe in model.sampling.irrelevant],
    }


def _card(model: "EditedModel", manifest: dict[str, Any]) -> str:
    name, method = manifest["base"]["name"] or "an unnamed model", manifest["method"]
    return f"""---
library_name: errata
tags: [knowledge-editing, {method}]
---
# {len(model.edits)} corrections to {name}

Made by the method `{method}` of errata {manifest["errata"]}, beside {", ".join(manifest["sites"].values())}.
{len(model.edits)} corrections are in force, of {len(model.history)} that were made; what they add takes \
{model.nbytes():,} bytes. The base model is not in this directory.

    import errata
    model = errata.EditedModel.from_pretrained("path/to/this/directory")
    model.answer(["..."])

or, in a shell, `errata ask path/to/this/directory "..."`.

Lifting the corrections, or revoking one, gives back what the base model says. It is not unlearning: what the base model
knew, it still knows.
"""


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
    name = base_name or manifest["base"]["name"]
    tensors, history = _read_files(directory, manifest)
    if base is None:
        base, tokenizer = _load_base(directory, name, manifest["base"]["dtype"], device)
        name = str(base.config._name_or_path)
    elif tokenizer is None:
        raise BadOption("a base model was given without its tokenizer; give both, or none")
    check_base(base, name, manifest, directory)
    from errata import methods

    model = cls(
        base,
        tokenizer,
        methods.make(manifest["method"], **manifest["options"]),
        irrelevant=[Probe(**probe) for probe in manifest["irrelevant"]],
        prefixes=manifest["prefixes"],
        expected=manifest["expected"],
        seed=manifest["seed"],
        base_name=name,
    )
    _fill(model, tensors, manifest, directory)
    model.history = history
    return model


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
    needed = ("method", "options", "sites", "base", "seed", "expected", "prefixes", "irrelevant", "files")
    missing = [entry for entry in needed if entry not in manifest]
    if missing:
        raise DamagedFile(f"{path} is damaged: it lacks {', '.join(missing)}")
    return dict(manifest)


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
    import safetensors
    import safetensors.torch

    from errata.data import jsonl

    tensors: dict[str, Tensor] = {}
    history: list[Edit] = []
    for name, sha in manifest["files"].items():
        path = directory / name
        content = _read(path, sha)
        try:
            if name.endswith(".safetensors"):
                tensors = safetensors.torch.load(content)
            else:
                history = [jsonl.from_record(json.loads(line)) for line in content.decode().split("\n") if line]
        except (safetensors.SafetensorError, ValueError, BadRecord) as error:
            raise DamagedFile(f"{path} is damaged: {error}") from error
    return tensors, history


def _read(path: Path, sha: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}") from error
    if _sha(content) != sha:
        raise DamagedFile(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; copy the directory again")
    return content


def _fill(model: "EditedModel", tensors: dict[str, Tensor], manifest: dict[str, Any], directory: Path) -> None:
    """Put the saved tensors into the memories that the method has installed. They must be the same, at the same sites."""
    there = {name: memory.site.path for name, memory in model.memories.items()}
    if there != manifest["sites"]:
        raise StoreError(
            f"{directory} was saved with memories at {manifest['sites']}, but {manifest['method']} now installs {there}"
        )
    for name, memory in model.memories.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        memory.put({leaf: tensor.to(model.device) for leaf, tensor in own.items()})
