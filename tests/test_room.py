"""Out of memory: one clear line that says what would fit, and nothing changed. The allocations that fail are real ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import tiny
from errata import loading
from errata.edit import Edit
from errata.editor import Editor
from errata.errors import OutOfMemory
from errata.methods.wise import Wise
from errata.model import EditedModel
from errata.room import is_full, room_for, smaller_edit
from tiny import EDITS, tiny_tokenizer

TOO_MUCH = 2**50
"""Bytes that no machine has."""


def held(model: EditedModel) -> dict[str, Tensor]:
    """All that the edits have written."""
    return {f"{n}/{k}": t.clone() for n, m in model.memories.items() for k, t in m.tensors().items()}


def edited(method: str, **options: Any) -> EditedModel:
    """A tiny model with one edit."""
    model = EditedModel(tiny("llama"), tiny_tokenizer(), method, **options)
    model.edit(EDITS[0])
    return model


def unchanged(model: EditedModel, before: dict[str, Tensor]) -> bool:
    """Whether it holds its first edit and nothing else."""
    now = held(model)
    return model.history == [EDITS[0]] and now.keys() == before.keys() and all(now[k].equal(before[k]) for k in now)


def test_an_edit_that_does_not_fit_is_rolled_back_and_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = edited("ft_l")
    before = held(model)

    def greedy(self: Editor, model: EditedModel, edits: list[Edit]) -> None:
        (memory,) = model.memories.values()
        memory.put({name: tensor + 1 for name, tensor in memory.tensors().items()})
        torch.empty(TOO_MUCH, dtype=torch.uint8)

    monkeypatch.setattr(type(model.editor), "edit", greedy)
    with pytest.raises(
        OutOfMemory, match="this edit does not fit into memory; try batch_size below 2, or dtype"
    ) as told:
        model.edit_batch(EDITS[1:3])
    assert "device auto" in str(told.value)
    assert "\n" not in str(told.value)
    assert unchanged(model, before)


def test_the_counts_of_a_method_are_named() -> None:
    options = Wise().options()
    with pytest.raises(OutOfMemory) as told, room_for("x", lambda: smaller_edit(options, 1, half=True)):
        raise MemoryError
    assert str(told.value) == (
        "x does not fit into memory; try contexts below 6, or replay below 24, or negatives below 32, or device auto,"
        " which offloads weights"
    )


def test_a_model_that_does_not_fit_is_told_of_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_model", lambda *_: torch.empty(TOO_MUCH, dtype=torch.uint8))
    with pytest.raises(OutOfMemory, match="atlas does not fit into memory; try dtype bfloat16, or device auto"):
        loading.load("atlas")


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), room_for("x", list):
        raise error


def test_words_of_a_gpu_are_understood() -> None:
    assert is_full(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert not is_full(RuntimeError("CUDA error: device-side assert triggered"))


def test_an_edit_that_cannot_be_measured_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = edited("ft_l")
    before, asked = held(model), model.target_probability
    calls = []

    def interrupted(rows: Any) -> list[float]:
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return asked(rows)

    monkeypatch.setattr(model, "target_probability", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.edit(EDITS[1])
    assert unchanged(model, before)
