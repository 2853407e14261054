"""Edits that are learnt at once: a batch of one is an edit, and edits that share nothing are what they are one by one."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from errata.batch import Batch, added, answers, around, distinct
from errata.edit import Edit
from errata.errors import BadOption
from errata.memory import Delta
from errata.methods.grace import Codebook
from errata.model import EditedModel
from errata.objective import target_nll
from errata.residual_memory import ResidualMemory
from errata.sites import site_at
from test_every_method import fresh, memories_of
from test_method_checks import memory_of, with_options
from tiny import EDITS, tiny_llama, tiny_tokenizer


def taught(model: EditedModel, edits: Sequence[Edit]) -> list[float]:
    """P(target | prompt) of each edit."""
    return model.target_probability(model.tokens.rows([(edit.prompt, edit.target) for edit in edits]))


# -- runs that hold several edits --------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> Batch:
    model = EditedModel(tiny_llama(), tiny_tokenizer())
    memory = Delta(site_at(model.base, 1))
    model.install("shift", memory)
    return Batch(model, memory, [[(edit.prompt, edit.target)] * (i + 1) for i, edit in enumerate(EDITS)])


def test_every_edit_has_the_loss_of_its_own_rows(batch: Batch) -> None:
    losses = batch.whole.losses(batch.whole.suffix.logits().detach(), target_nll, range(4))
    for i in range(4):
        alone = batch._packed([i])
        torch.testing.assert_close(
            losses[i], target_nll(alone.suffix.logits(), alone.rows.labels, alone.rows.row_of_label)
        )
    assert len({round(float(loss), 3) for loss in losses}) == 4


def test_a_run_is_packed_anew_once_half_of_it_has_stopped(batch: Batch) -> None:
    assert batch.part([0, 1, 3]) is batch.whole
    two = batch.part([1, 3])
    assert (two.edits, two.counts, len(two.rows.ids)) == ((1, 3), (2, 4), 6)
    assert batch.part([1, 3]) is two
    assert batch.part([3]).edits == (3,)
    assert batch.part([0, 2, 3]) is batch.whole, "what has been left out comes back"


def test_what_has_the_same_key_comes_in_different_runs_and_in_order() -> None:
    assert distinct("abcabca") == [[0, 1, 2], [3, 4, 5], [6]]
    assert distinct("aa") == [[0], [1]]
    assert distinct([]) == [[]]


START, COLUMNS = torch.tensor([[1.0, 2.0, 3.0]]), (torch.tensor([0, 1]), torch.tensor([1, 2]))
SHIFTS = [torch.tensor([[0.1, 0.5]]), torch.tensor([[-1.0, -2.7]])]


def test_shifts_add_up_where_columns_are_shared() -> None:
    torch.testing.assert_close(added(START, COLUMNS, SHIFTS), torch.tensor([[1.1, 1.5, 0.3]]))
    torch.testing.assert_close(added(START, COLUMNS[:1], SHIFTS[:1]), torch.tensor([[1.1, 2.5, 3.0]]))
    assert torch.equal(START, torch.tensor([[1.0, 2.0, 3.0]])), "the weight itself is left as it is"


def test_beside_its_own_shift_an_edit_sees_those_of_the_others() -> None:
    seen = around(START, COLUMNS, SHIFTS)
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(seen[1], torch.tensor([[2.5, 3.0]]))


def test_a_target_is_answered_where_the_first_row_says_all_of_it() -> None:
    logits = torch.eye(4)
    row = torch.tensor([0, 0, 1, 1])
    assert answers(logits, torch.tensor([0, 1, 9, 9]), row)
    assert not answers(logits, torch.tensor([0, 2, 2, 3]), row)


# -- the methods that use them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["memoir", "grace"])
def test_a_batch_of_one_is_an_edit_bit_for_bit(method: str) -> None:
    one, batched = fresh(method), fresh(method)
    one.edit_many(EDITS)
    receipts = batched.edit_many(EDITS, batch_size=1)
    assert memories_of(batched) == memories_of(one)
    assert [receipt.edit_id for receipt in receipts] == [edit.id for edit in EDITS]


@pytest.mark.parametrize("method", ["memoir", "grace"])
def test_receipts_of_a_batch_say_how_each_edit_went(method: str) -> None:
    receipts = fresh(method).edit_many(EDITS[:3], batch_size=3)
    assert len({receipt.loss_before for receipt in receipts}) == len({receipt.loss_after for receipt in receipts}) == 3
    first = fresh(method).edit(EDITS[0])
    assert receipts[0].loss_before == pytest.approx(first.loss_before, rel=1e-3)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(BadOption, match="batch_size is 0"):
        fresh("grace").edit_many(EDITS, batch_size=0)


def test_after_a_batch_every_prompt_is_answered_with_its_target() -> None:
    model = fresh("memoir")
    before = taught(model, EDITS)
    receipts = model.edit_many(EDITS, batch_size=3)
    assert model.batches == [3, 1]
    assert [receipt.edit_id for receipt in receipts] == [edit.id for edit in EDITS]
    assert all(after > 10 * sooner for after, sooner in zip(taught(model, EDITS), before, strict=True))
    for edit, answer in zip(EDITS, model.answer([edit.prompt for edit in EDITS]), strict=True):
        assert answer.startswith(edit.target)


def test_grace_in_a_batch_is_grace_one_by_one_to_rounding() -> None:
    one, batched = fresh("grace"), fresh("grace")
    one.edit_many(EDITS)
    batched.edit_batch(EDITS)
    for name, tensor in memory_of(one, Codebook).tensors().items():
        torch.testing.assert_close(memory_of(batched, Codebook).tensors()[name], tensor, rtol=1e-3, atol=1e-3)


def test_memoir_edits_of_disjoint_masks_are_the_same_in_a_batch_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    quarters = torch.arange(64).view(4, 16)
    real = ResidualMemory.mask

    def disjoint(memory: ResidualMemory, features: Tensor) -> Tensor:
        """The masks of edits that are being made: the quarter of the features that each edit of `order` has."""
        found = real(memory, features)
        if not order or len(features) > len(order):
            return found
        bits = torch.zeros(len(features), 64, dtype=torch.bool)
        for row in bits:
            row[quarters[order.pop(0)]] = True
        packed = (bits.view(-1, 8, 8) * (2 ** torch.arange(8))).sum(-1).to(torch.uint8)
        return packed.expand(len(found), -1, -1).clone()

    monkeypatch.setattr(ResidualMemory, "mask", disjoint)
    order: list[int] = []
    one, batched = (with_options("memoir", active=0.25, steps=20, capacity=None) for _ in range(2))
    for i, edit in enumerate(EDITS[:3]):
        order[:] = [i]
        one._apply([edit])  # unlike edit(), without asking before and after, which would take masks too
    order[:] = [0, 1, 2]
    batched._apply(EDITS[:3])
    weights = [memory_of(model, ResidualMemory).weight for model in (one, batched)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert all(float(weights[0][:, quarter].abs().max()) > 0.01 for quarter in quarters[:3])
    assert float(weights[0][:, quarters[3]].abs().max()) == 0


@pytest.mark.parametrize("method", ["memoir", "grace"])
def test_a_later_answer_of_a_batch_replaces_an_earlier_one(method: str) -> None:
    other = Edit(EDITS[0].prompt, "Sondo", subject=EDITS[0].subject)
    batched, one = fresh(method), fresh(method)
    batched.edit_batch([EDITS[0], other])
    one.edit_many([EDITS[0], other])
    assert memories_of(batched) == memories_of(one)
    assert batched.answer([other.prompt])[0].startswith("Sondo")
