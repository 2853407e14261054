"""Export: edits in the weights, for tools that know nothing of memories. Only for methods that are always on.

A memory without a gate, y <- y + a Delta^T for every prompt, is a shift of the weight beside which it stands; so it can
be merged into a copy of the model, or written as a LoRA adapter. One that decides by the prompt is no weight at all, and
is refused. What was exported is loaded again and asked, because rounding to the model's own precision may lose an edit.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errata import disk
from errata.errors import UsageError
from errata.gate import Gate, Watch
from errata.memory import Gated, Memory
from errata.model import EditedModel

RANK = 1e-6
"""A singular value below this share of the largest is rounding, and not counted as rank."""


class Measured(NamedTuple):
    """Edits in force that are answered with their target, before and after export, and how many there are."""

    before: int
    after: int
    edits: int


def merged(model: EditedModel, directory: Path) -> Measured:
    """Write a copy of the base model with the edits in its weights. The base itself is not written.

    `AutoModelForCausalLM.from_pretrained(directory)` loads it. Raises `UsageError` for gated methods and for weights
    that cannot be shifted (quantised ones, fused experts).
    """
    from transformers import AutoModelForCausalLM

    shifts = shifts_of(model)
    with model.lifted() as base:
        weights = base.state_dict()
        for path, shift in shifts.items():
            name, weight = f"{path}.weight", _weight(base, path)
            turned = shift.T if _transposed(base, path) else shift
            weights[name] = (weight.float() + turned.to(weight.device)).to(weight.dtype)
        base.save_pretrained(directory, state_dict=weights)  # type: ignore[operator]
    model.tokens.tokenizer.save_pretrained(directory)
    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", trust_remote_code=False)
    return measured(model, loaded.to(model.device).eval())


def adapter(model: EditedModel, directory: Path) -> dict[str, int]:
    """Write the edits as a LoRA adapter in the layout of PEFT; the rank beside each map.

    `peft.PeftModel.from_pretrained(base, directory)` loads it. The rank is that of the shift, so nothing is lost.
    Raises `UsageError` as `merged` does.
    """
    import safetensors.torch

    tensors, ranks = {}, {}
    for path, shift in shifts_of(model).items():
        U, S, V = torch.linalg.svd(shift.double(), full_matrices=False)
        r = max(1, int(S.gt(RANK * S[0]).sum()))
        ranks[path] = r
        tensors[f"base_model.model.{path}.lora_A.weight"] = V[:r].float().contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = (U[:, :r] * S[:r]).float().contiguous()
    first = next(iter(ranks.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.base_name,
        "r": first,
        "lora_alpha": first,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(_transposed(model.base, path) for path in ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    disk.replace_all(directory, {"adapter_model.safetensors": weights, "adapter_config.json": text.encode()})
    return ranks


def shifts_of(model: EditedModel) -> dict[str, Tensor]:
    """The shift (model, ff) of each edited map's weight. Raises `UsageError` for a method that decides by the prompt."""
    assert model.editor is not None
    shifts: dict[str, Tensor] = {}
    for memory in model.memories.values():
        shift = shift_of(memory, model.device)
        if shift is None:
            raise UsageError(
                f"{model.editor.name} decides by the prompt whether an edit answers, which no weight can do; keep it as it"
                " is, or export a method that is always on (ft_l, rome, memit, lora, ...)"
            )
        shifts[memory.site.path] = shifts[memory.site.path] + shift if memory.site.path in shifts else shift
    return shifts


@torch.no_grad()
def shift_of(memory: Memory, device: torch.device) -> Tensor | None:
    """What a memory adds, as a shift of the weight beside it (model, ff); None where it is none.

    Found by asking it for the unit vectors, and held against what it says to others.
    """
    ff, width = memory.site.in_features, memory.site.out_features
    if isinstance(memory, Gated):
        return None
    nothing = torch.zeros(1, ff, width, device=device)
    shift: Tensor = memory(torch.eye(ff, device=device)[None], nothing)[0].T
    a = torch.randn(1, 4, ff, generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(1)).to(device)
    found, wanted = memory(a, y), y + a @ shift.T
    return (
        shift.contiguous() if torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())) else None
    )


def measured(model: EditedModel, exported: nn.Module) -> Measured:
    """Ask the edited model and an exported one for every edit in force."""
    other = EditedModel(exported, model.tokens.tokenizer, irrelevant=model.sampling.irrelevant, chat=model.chat)
    try:
        held = [sum(Watch(each, Gate(watched=0)).holding(model.edits)) for each in (model, other)]
    finally:
        other.detach()
    return Measured(held[0], held[1], len(model.edits))


def _weight(base: nn.Module, path: str) -> Tensor:
    weight: Any = getattr(base.get_submodule(path), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        raise UsageError(f"the weight of {path} cannot be shifted: it is quantised, offloaded, or not one matrix")
    return weight.detach()


def _transposed(base: nn.Module, path: str) -> bool:
    """Whether a map keeps its weight as (in, out), as GPT-2's Conv1D does."""
    return type(base.get_submodule(path)).__name__ == "Conv1D"
