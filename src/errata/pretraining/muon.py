"""Muon: gradient descent on matrices whose every direction moves equally far.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. A step follows the momentum G of the
gradient with all its singular values set to about one, so that directions with little gradient, the rare facts among
them, move as far as those that all texts share.

`torch.optim.Muon` computes in bfloat16, which is slow on processors that only emulate it; and it multiplies the wide
matrix at every iteration. Here the iteration runs on the small Gram matrix G G^T, in float32.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic s -> a s + b s^3 + c s^5, which brings every singular value in (0, 1] near one."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update at learning rate 1: about that of AdamW, so that learning rates can be compared."""


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix (m, n) of the same singular vectors, its singular values about 1 (those near 0 stay small)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    gram, product = x @ x.T, torch.eye(len(x), device=x.device)
    for _ in range(ITERATIONS):  # x <- q x with q = a + b gram + c gram^2, hence gram <- q gram q
        q = b * gram + c * (gram @ gram)
        q.diagonal().add_(a)
        product, gram = q @ product, q @ gram @ q
    found = product @ x
    return found if wide is matrix else found.T


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices (parameters of two dimensions)."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float = 3e-3, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _move(self, matrix: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[matrix]
        mean = state.setdefault("mean", torch.zeros_like(matrix)).lerp_(gradient, 1 - momentum)
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(orthogonalised(gradient.lerp(mean, momentum)), alpha=-lr * RMS * math.sqrt(max(matrix.shape)))
