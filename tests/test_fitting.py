"""fit: the inner loop."""

import pytest
import torch

from errata.errors import EditFailed
from errata.fitting import OPTIMIZERS, Adalayer, Stop, fit


def stepped(optimizer, w, grads, **options):
    optim = optimizer([w], **options)
    for grad in grads:
        w.grad = grad
        optim.step()
    return w


def test_adalayer_is_adam_where_there_is_one_entry():
    grads = [torch.tensor([g]) for g in (3.0, -1.0, 0.5, 2.0)]
    ours, adams = (
        stepped(optimizer, torch.ones(1), grads, lr=0.1, weight_decay=0.2) for optimizer in (Adalayer, torch.optim.Adam)
    )
    assert ours.item() == pytest.approx(adams.item(), rel=1e-6)


def test_a_first_step_of_adalayer_is_as_long_as_adams_and_goes_along_the_gradient():
    grad = torch.outer(torch.tensor([1.0, -2.0, 0.1]), torch.tensor([3.0, 0.0, 1.0, 5.0]))
    ours, adams = (stepped(o, torch.zeros(3, 4), [grad], lr=0.1) for o in (Adalayer, torch.optim.Adam))
    assert torch.linalg.matrix_rank(ours) == 1
    assert ours == pytest.approx(-grad * float(ours.norm() / grad.norm()), rel=1e-5)
    assert float(ours.norm()) == pytest.approx(0.1 * 12**0.5, rel=1e-5)
    assert float(adams.norm()) == pytest.approx(0.1 * 9**0.5, rel=1e-5)  # three entries have no gradient


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_stops_at_the_loss_that_was_asked_for(optimizer):
    w = torch.ones(3, requires_grad=True)
    trace = fit([w], lambda: w.square().sum(), steps=1000, lr=0.1, optimizer=optimizer, stop=Stop(0.01))
    assert 0 < trace.losses[-1] <= 0.01 < trace.losses[-2]


def test_a_loss_that_is_not_finite_is_refused():
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(EditFailed, match="smaller learning rate"):
        fit([w], lambda: w.log().sum() / 0, steps=3, lr=1.0)
