"""Muon: gradient descent on matrices whose every direction moves equally far.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. A step follows the momentum G of the
gradient with all its singular values set to about one, so that directions with little gradient, the rare facts among
them, move as far as those that all texts share.

`torch.optim.Muon` computes in bfloat16, which is slow on processors that only emulate it; and it multiplies the wide
matrix at every iteration. In float32 the iteration here runs on the small Gram matrix G G^T; in bfloat16, which has too few
digits for that, on the wide matrix.
"""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic s -> a s + b s^3 + c s^5, which brings every singular value in (0, 1] near one."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update at learning rate 1: about that of AdamW, so that learning rates can be compared."""


def orthogonalised(matrix: Tensor, precision: str = "float32") -> Tensor:
    """A matrix (m, n) of the same singular vectors, its singular values about 1 (those near 0 stay small).

    `precision` is that of the products, "float32" or "bfloat16"; the result is float32.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    found = _on_the_gram(x) if precision == "float32" else _on_the_matrix(x.bfloat16()).float()
    return found if wide is matrix else found.T


def _on_the_gram(x: Tensor) -> Tensor:
    """x <- q x with q = a + b gram + c gram^2, hence gram <- q gram q; x is multiplied by all q at the end."""
    a, b, c = COEFFICIENTS
    gram, steps = x @ x.T, []
    for left in reversed(range(ITERATIONS)):
        q = b * gram + c * (gram @ gram)
        q.diagonal().add_(a)
        steps.append(q)
        if left:
            gram = q @ gram @ q
    return functools.reduce(lambda product, q: q @ product, steps) @ x


def _on_the_matrix(x: Tensor) -> Tensor:
    """x <- a x + (b gram + c gram^2) x"""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices (parameters of two dimensions)."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float = 3e-3, momentum: float = 0.95, weight_decay: float = 0.01,
        precision: str = "float32",
    ) -> None:  # fmt: skip
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision

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
        direction = orthogonalised(gradient.lerp(mean, momentum), self.precision)
        matrix.add_(direction, alpha=-lr * RMS * math.sqrt(max(matrix.shape)))
