"""On a GPU: every method edits there as on the processor, and steps that are replayed are the steps.

Skipped where there is no GPU, as in `make test`; what a GPU needs of a step is tested without one in test_captured.py.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata import methods
from errata.captured import recording
from errata.errors import MissingExtra, OutOfMemory
from errata.fitting import OPTIMIZERS, Stop, fit
from errata.masks import overlaps
from errata.model import EditedModel
from tiny import EDITS, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

PROMPTS = [edit.prompt for edit in EDITS]


def made(method: str, device: str, dtype: torch.dtype = torch.float32, *, recorded: bool = False) -> EditedModel:
    """A tiny model on this device with all of `EDITS`."""
    steps = getattr(methods.make(method), "steps", None)
    editor = methods.make(method, **({} if steps is None else {"steps": min(steps, 20)}))
    try:
        model = EditedModel(
            tiny_llama(dtype=dtype).to(device), tiny_tokenizer(), editor, prefixes=("It is said that", "Yes,"),
            expected=len(EDITS), recorded=recorded,
        )  # fmt: skip
    except MissingExtra as missing:
        pytest.skip(str(missing))
    model.edit_many(EDITS)
    return model


def probabilities(model: EditedModel) -> Tensor:
    """P(target | prompt) of all edits."""
    return torch.tensor(model.target_probability(model.asked(EDITS)))


@pytest.mark.parametrize("method", methods.names())
def test_edits_on_a_gpu_are_those_of_the_processor(method: str, tmp_path: Path) -> None:
    there, here = made(method, "cuda"), made(method, "cpu")
    assert all(tensor.is_cuda for memory in there.memories.values() for tensor in memory.tensors().values())
    # Twenty steps at a high rate take rounding apart; what comes of them is alike all the same.
    torch.testing.assert_close(probabilities(there), probabilities(here), atol=0.1, rtol=0)
    if method != "in_context":
        there.save_pretrained(tmp_path)
        again = EditedModel.from_pretrained(tmp_path, tiny_llama().cuda(), tokenizer=tiny_tokenizer())
        assert torch.equal(probabilities(again), probabilities(there))
    assert there.answer(PROMPTS)


@pytest.mark.parametrize("method", ["memoir", "wise", "grace", "rome", "lemoe"])
def test_a_model_in_half_precision_is_edited_on_a_gpu(method: str) -> None:
    model = made(method, "cuda", torch.bfloat16)
    assert bool(probabilities(model).isfinite().all())


def bowl(x: Tensor) -> Tensor:
    """A loss that is least where all of x is 1."""
    return (x - 1).square().mean()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [None, Stop(0.05), Stop(0.05, change=1e-3), Stop(9.0)])
def test_replayed_steps_are_the_steps(optimizer: str, stop: Stop | None) -> None:
    def run(recorded: bool) -> tuple[tuple[float, ...], Tensor]:
        x = torch.linspace(-1.0, 0.5, 6, device="cuda").requires_grad_()
        with recording(recorded):
            trace = fit([x], lambda: bowl(x), steps=41, lr=0.2, optimizer=optimizer, clip=0.5, stop=stop)
        return trace.losses, x.detach()

    replayed, called = run(True), run(False)
    assert len(replayed[0]) == len(called[0])
    assert replayed[0] == pytest.approx(called[0], rel=1e-5)
    torch.testing.assert_close(replayed[1], called[1])


def test_most_steps_are_replayed() -> None:
    x, calls = torch.zeros(6, device="cuda").requires_grad_(), []

    def loss() -> Tensor:
        calls.append(1)
        return bowl(x)

    with recording(True):
        assert fit([x], loss, steps=40, lr=0.1).steps == 40
    assert len(calls) == 2, "once as it is, and once to record it"


@pytest.mark.parametrize("method", methods.names())
def test_edits_whose_steps_are_replayed_are_those_edits(method: str) -> None:
    replayed, called = made(method, "cuda", recorded=True), made(method, "cuda")
    torch.testing.assert_close(probabilities(replayed), probabilities(called), atol=0.1, rtol=0)


def test_an_edit_that_a_gpu_does_not_hold_leaves_the_model_as_it_was() -> None:
    model = made("wise", "cuda")
    before = probabilities(model)

    def full(*_: object) -> None:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

    model.editor.edit = full  # type: ignore[method-assign, union-attr, assignment]
    with pytest.raises(OutOfMemory, match="does not fit into memory; try"):
        model.edit(EDITS[0].__class__("A new prompt about Arvadia is", "new", subject="Arvadia"))
    assert torch.equal(probabilities(model), before)
    assert len(model.history) == len(EDITS)


def test_overlaps_on_a_gpu_are_those_of_the_processor() -> None:
    stored = torch.randint(0, 256, (5000, 1792), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(overlaps(stored[:3].cuda(), stored.cuda()).cpu(), overlaps(stored[:3], stored))
