"""Provenance: what a measurement was made of and on, so that it can be made again."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from torch import nn

import errata
from errata.edit import Edit, Probe
from errata.fingerprint import fingerprint


def surroundings(base: nn.Module) -> dict[str, Any]:
    """Versions, machine, device, precision and time of day."""
    weight = next(base.parameters())
    return {
        "errata": errata.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(weight.device) if weight.is_cuda else str(weight.device),
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def of_base(base: nn.Module) -> dict[str, str]:
    """What the numbers of a pretrained model hang on: its fingerprint, and the dtype of its weights."""
    dtype = str(next(base.parameters()).dtype).removeprefix("torch.")
    return {"base_fingerprint": fingerprint(base), "dtype": dtype}


def hash_of_edits(edits: Iterable[Edit]) -> str:
    """Sixteen hexadecimal digits of edits in their order, with all that is scored."""
    return _hash([e.prompt, e.target, e.subject, e.rephrases, _bare(e.locality)] for e in edits)


def hash_of_probes(probes: Iterable[Probe]) -> str:
    """Sixteen hexadecimal digits of probes in their order."""
    return _hash(_bare(probes))


def _bare(probes: Iterable[Probe]) -> list[list[str | None]]:
    return [[probe.prompt, probe.answer, probe.kind] for probe in probes]


def _hash(items: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(items), ensure_ascii=False).encode()).hexdigest()[:16]


def reset_peak_memory() -> None:
    """Begin a new peak, where the device can; that of a process on the CPU is over its whole life."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> tuple[float | None, str]:
    """Peak memory in MB, and what it is the peak of: the CUDA allocator on a GPU, else the resident process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, "CUDA allocator, since the stream began"
    try:
        import resource
    except ImportError:
        return None, "not known on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, "resident process, since it began"
