"""Steps that leave alone what earlier edits read."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from architectures import tiny
from errata.errors import BadOption, EditFailed
from errata.methods import make
from errata.model import EditedModel
from errata.protection import root, second_moment
from errata.residual_memory import ResidualMemory
from test_every_method import memories_of
from test_method_checks import memory_of, with_options
from tiny import EDITS, tiny_tokenizer


def keys(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_the_root_is_that_of_the_ridge() -> None:
    earlier, own, p = keys(5, 8), keys(3, 8, seed=1), 0.7
    r = root(second_moment(earlier, 1), own, p)
    energy = own.square().sum(1).mean()
    torch.testing.assert_close(r @ r.T, torch.linalg.inv(torch.eye(8) + p / energy * earlier.T @ earlier))
    assert torch.equal(r, r.triu())


def test_it_is_the_shift_that_serves_alike_and_moves_earlier_outputs_least() -> None:
    """-G R R^T is the minimum of <G, D> + |D|^2 / 2 + p sum_j |D k_j|^2 / 2e, found here by its gradient being zero."""
    earlier, own, g, p = keys(5, 8), keys(3, 8, seed=1), keys(4, 8, seed=2), 2.0
    r = root(second_moment(earlier, 1), own, p)
    shift = (-g @ r @ r.T).requires_grad_()
    energy = own.square().sum(1).mean()
    moved = (shift @ earlier.T).square().sum()
    ((g * shift).sum() + shift.square().sum() / 2 + p / energy * moved / 2).backward()
    torch.testing.assert_close(shift.grad, torch.zeros_like(g), atol=1e-5, rtol=0)


def test_with_nothing_to_protect_a_step_is_a_plain_one() -> None:
    assert torch.equal(root(torch.zeros(6, 6), keys(2, 6), 3.0), torch.eye(6))


def test_firm_protection_is_the_projection_on_the_null_space() -> None:
    earlier = keys(3, 8).double()
    r = root(second_moment(earlier, 1), keys(2, 8, seed=1).double(), 1e8)
    free = torch.eye(8) - torch.linalg.pinv(earlier) @ earlier
    torch.testing.assert_close(r @ r.T, free, atol=1e-5, rtol=0)


def test_a_moment_that_rounding_has_spoiled_still_has_a_root() -> None:
    earlier = keys(50, 64)
    spoiled = second_moment(earlier, 1) * 1e6 - 0.01 * torch.eye(64)
    assert root(spoiled, keys(2, 64, seed=1), 3.0).isfinite().all()


def test_the_moment_of_several_wordings_is_that_of_one() -> None:
    once = keys(4, 6)
    torch.testing.assert_close(second_moment(once.repeat(3, 1), 3), second_moment(once, 1))


@pytest.mark.parametrize("moment", [-10 * torch.eye(4), torch.full((4, 4), torch.nan)])
def test_what_is_no_moment_fails_the_edit_in_a_line(moment: torch.Tensor) -> None:
    with pytest.raises(EditFailed, match="not positive; try protect=0"):
        root(moment, keys(2, 4), 3.0)


# -- in MEMOIR ---------------------------------------------------------------------------------------------------------


def test_a_later_edit_moves_what_an_earlier_one_reads_less() -> None:
    """Both write through nearly all columns, where the second edit would move the first one's output most."""
    moved = {}
    for protect in (0.0, 30.0):
        model = with_options("memoir", protect=protect, active=0.9, feature="last", steps=3, tries=1, loss=0.0)
        model.edit(EDITS[0])
        memory = memory_of(model, ResidualMemory)
        ((a, _, _),) = model.read(memory, [EDITS[0].prompt])
        before = a @ memory.weight.T
        model.edit(EDITS[1])
        shift = a @ memory.weight.T - before
        moved[protect] = float(shift.norm() / (memory.weight.norm() * a.norm()))
    assert moved[30.0] < moved[0.0] / 2


def test_the_first_edit_is_the_papers() -> None:
    """There is nothing to protect yet, so it is the edit without protection, up to rounding."""
    plain, protected = (with_options("memoir", protect=p) for p in (0.0, 3.0))
    receipts = [model.edit(EDITS[0]) for model in (plain, protected)]
    torch.testing.assert_close(receipts[0].loss_after, receipts[1].loss_after, atol=1e-4, rtol=1e-3)
    assert receipts[0].steps == receipts[1].steps
    weights = [memory_of(model, ResidualMemory).weight for model in (plain, protected)]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_without_protection_nothing_is_kept_for_it() -> None:
    model = with_options("memoir", protect=0.0)
    model.edit(EDITS[0])
    memory = memory_of(model, ResidualMemory)
    assert memory.moment is None
    assert "moment" not in memory.tensors()


def test_the_moment_is_of_the_columns_written_through_and_lasts(tmp_path: Path) -> None:
    whole, half = with_options("memoir"), with_options("memoir")
    whole.edit_many(EDITS)
    half.edit_many(EDITS[:1])
    moment, untouched = (getattr(memory_of(half, ResidualMemory), name) for name in ("moment", "weight"))
    assert torch.equal(moment.diagonal() == 0, (untouched == 0).all(0))
    half.save_pretrained(tmp_path)
    again = EditedModel.from_pretrained(tmp_path, base=tiny("llama"), tokenizer=tiny_tokenizer())
    again.edit_many(EDITS[1:])
    assert memories_of(again) == memories_of(whole)


def test_what_a_prompt_was_taught_before_is_not_protected_from_its_new_target() -> None:
    model = with_options("memoir", protect=100.0)
    first = model.edit(EDITS[0])
    again = model.edit(replace(EDITS[0], target="Sondo"))
    assert model.answer([EDITS[0].prompt])[0].startswith("Sondo")
    assert again.steps <= 2 * first.steps


def test_prompts_that_share_a_mask_are_not_taken_for_one_another() -> None:
    """With all features in every mask, only the prompt itself says whether it was met before."""
    model = with_options("memoir", active=1.0, tau=0.0, protect=100.0)
    diagonals = []
    for edit in EDITS:
        model.edit(edit)
        diagonals.append(memory_of(model, ResidualMemory).moment.diagonal())
    assert all((later >= sooner).all() for sooner, later in pairwise(diagonals))


def test_an_edit_is_kept_from_all_others_those_of_its_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []

    def spied(moment: torch.Tensor, own: torch.Tensor, p: float) -> torch.Tensor:
        asked.append(moment)
        return root(moment, own, p)

    monkeypatch.setattr("errata.protection.root", spied)
    one_by_one, batched = (with_options("memoir", steps=1, tries=1) for _ in range(2))
    one_by_one.edit_many(EDITS[:2])
    batched.edit_many(EDITS[:2], batch_size=2)
    alone, second, *beside = asked
    assert not alone.any(), "nothing was there before the first edit"
    assert beside[0].any(), "which in a batch has another one beside it"
    torch.testing.assert_close(beside[1], second)
    ended = [memory_of(model, ResidualMemory).moment for model in (one_by_one, batched)]
    torch.testing.assert_close(ended[0], ended[1])


def test_protection_below_none_is_refused() -> None:
    with pytest.raises(BadOption, match="protect=-1"):
        make("memoir", protect=-1.0)
