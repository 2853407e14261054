"""Fitting: gradient descent on cores that share their work once a step, not once an operation.

Each thread computes the gradient of its share of the rows on its own copy of the model's graph; the copies share their
weights. So a core that is busy with something else delays a step, not every matrix product, and the result does not
depend on how the threads are scheduled.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from errata.pretraining.batches import IGNORED, Batch, Row, padded
from errata.pretraining.muon import Muon

WORKERS = 2


class Rates(NamedTuple):
    """The highest learning rates: of matrices (Muon), and of embeddings and norms (AdamW); and the weight decay."""

    matrices: float
    others: float
    decay: float


@dataclass
class Losses:
    """A running mean of the loss, and the tokens read so far."""

    smooth: float = 0.0
    tokens: int = 0

    def add(self, loss: float, tokens: int) -> None:
        """Count one step."""
        self.smooth = loss if not self.tokens else 0.98 * self.smooth + 0.02 * loss
        self.tokens += tokens


class Fitting:
    """The optimizers of one model, step after step. Only the model's weights change.

    With `sparse`, logits are computed only where there is a loss: a tenth quicker, and other last bits. `precision` is that
    of the products, "float32" or "bfloat16"; weights, gradients and moments are float32 all the same.
    """

    def __init__(
        self, model: Any, rates: Rates, workers: int = WORKERS, *, sparse: bool = False, precision: str = "float32"
    ) -> None:
        self.model, self.workers, self.sparse, self.precision = model, workers, sparse, precision
        self._replicas = [model, *(_replica(model) for _ in range(workers - 1))]
        self._optimizers = _optimizers(model, rates, workers, precision)
        self._highest = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]
        self._pool = ThreadPoolExecutor(workers)

    def step(self, parts: Sequence[Batch], factor: float) -> float:
        """One step down the mean loss over all parts, at `factor` times the highest learning rates; returns that loss."""
        counted = sum(int((part.labels[:, 1:] != IGNORED).sum()) for part in parts)
        shares = [parts[i :: self.workers] for i in range(self.workers)]
        sums = list(self._pool.map(self._backward, self._replicas, shares, [counted] * self.workers))
        _gather(self._replicas)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, lrs in zip(self._optimizers, self._highest, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        list(self._pool.map(_step, self._optimizers))
        self.model.zero_grad()
        return sum(sums)

    def _backward(self, replica: Any, parts: Sequence[Batch], counted: int) -> float:
        """Leave the gradient of these parts' share of the mean loss in the replica; returns that share."""
        torch.set_num_threads(1)
        total = 0.0
        for part in parts:
            ids, labels = part.ids.to(replica.device), part.labels[:, 1:].to(replica.device)
            kept = labels != IGNORED
            with torch.autocast(replica.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self._logits(replica, ids, kept)
            loss: Any = cross_entropy(logits.float(), labels[kept], reduction="sum") / counted
            loss.backward()
            total += float(loss.detach())
        return total

    def _logits(self, replica: Any, ids: Tensor, kept: Tensor) -> Tensor:
        """(kept, vocabulary): what is said where `kept` (row, position - 1) holds."""
        if not self.sparse:
            return replica(input_ids=ids).logits[:, :-1][kept]
        return replica.lm_head(replica.model(input_ids=ids).last_hidden_state[:, :-1][kept])

    def moments(self) -> dict[str, Tensor]:
        """What the optimizers remember, by names that `remember` knows."""
        return {
            f"{k}/{i}/{name}": torch.as_tensor(value)
            for k, optimizer in enumerate(self._optimizers)
            for i, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }

    def remember(self, moments: Mapping[str, Tensor]) -> None:
        """Go on from these moments."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._optimizers]
        for key, tensor in moments.items():
            k, i, name = key.split("/")
            states[int(k)].setdefault(int(i), {})[name] = tensor
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def fit(model: Any, groups: Iterator[list[Row]], pad: int, shape: Sequence[float], rates: Rates) -> Iterator[Losses]:
    """One step for each entry of `shape`, by which the learning rates are multiplied; yields the losses so far after each.

    Only the model's weights change. The optimizers are fresh.
    """
    fitting, losses = Fitting(model, rates), Losses()
    try:
        for factor in shape:
            rows = next(groups)
            parts = [padded(part, pad) for part in (rows[i::WORKERS] for i in range(WORKERS)) if part]
            losses.add(fitting.step(parts, factor), sum(len(row.ids) for row in rows))
            yield losses
    finally:
        fitting.close()


def _replica(model: Any) -> Any:
    """A copy that shares the weights but not the gradients."""
    twin = copy.deepcopy(model)
    for mine, other in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = other.data
    return twin


def quickest(device: torch.device) -> str:
    """The precision in which this device multiplies quickest: "bfloat16" where it does so by itself, else "float32".

    GPUs do, and processors with AMX or AVX512-BF16; others only emulate it, which is slower than float32.
    """
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bfloat16" if device.type == "cuda" or told.get("avx512_bf16") or told.get("amx_bf16") else "float32"


def _gather(replicas: list[Any]) -> None:
    """Add the gradients of all replicas into those of the first, and forget the others."""
    first, *others = replicas
    for other in others:
        for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
            if theirs.grad is not None:
                mine.grad.add_(theirs.grad)
        other.zero_grad()


def _step(optimizer: torch.optim.Optimizer) -> None:
    torch.set_num_threads(1)
    optimizer.step()


def _optimizers(model: Any, rates: Rates, workers: int, precision: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, dealt out to the workers; AdamW for embeddings and the scales of norms."""
    table = model.get_input_embeddings().weight
    matrices = sorted((p for p in model.parameters() if p.dim() == 2 and p is not table), key=torch.Tensor.numel)
    scales = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": [table], "weight_decay": rates.decay}, {"params": scales, "weight_decay": 0.0}]
    muons = [
        Muon(matrices[i::workers], lr=rates.matrices, weight_decay=rates.decay, precision=precision)
        for i in range(workers)
    ]
    return [*muons, torch.optim.AdamW(groups, lr=rates.others, betas=(0.9, 0.98), fused=True)]
