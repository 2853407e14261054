"""Fitting: gradient descent on two cores that share their work once a step, not once an operation.

Each of two threads computes the gradient of half of the rows on its own copy of the model's graph; the copies share
their weights. So a core that is busy with something else delays a step, not every matrix product, and the result does
not depend on how the threads are scheduled.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from errata.atlas.batches import IGNORED, Batch, Row, padded

WORKERS = 2


@dataclass
class Losses:
    """A running mean of the loss, and the tokens read so far."""

    smooth: float = 0.0
    tokens: int = 0

    def add(self, loss: float, tokens: int) -> None:
        """Count one step."""
        self.smooth = loss if not self.tokens else 0.98 * self.smooth + 0.02 * loss
        self.tokens += tokens


def fit(
    model: Any, groups: Iterator[list[Row]], tokenizer: Tokenizer, rates: Sequence[float], weight_decay: float
) -> Iterator[Losses]:
    """One step for each rate; yields the losses so far after each. Only the model's weights change."""
    replicas = [model, *(_replica(model) for _ in range(WORKERS - 1))]
    optimizer = _optimizer(model, weight_decay)
    losses = Losses()
    with ThreadPoolExecutor(WORKERS) as pool:
        for rate in rates:
            rows = next(groups)
            parts = [padded(part, tokenizer) for part in (rows[i::WORKERS] for i in range(WORKERS)) if part]
            counted = sum(int((part.labels[:, 1:] != IGNORED).sum()) for part in parts)
            sums = list(pool.map(_backward, replicas, parts, [counted] * len(parts)))
            _gather(replicas)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.add(sum(sums), sum(len(row.ids) for row in rows))
            yield losses


def _replica(model: Any) -> Any:
    """A copy that shares the weights but not the gradients."""
    twin = copy.deepcopy(model)
    for mine, other in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = other.data
    return twin


def _backward(replica: Any, part: Batch, counted: int) -> float:
    """Leave the gradient of this part's share of the mean loss in the replica; returns that share."""
    torch.set_num_threads(1)
    logits = replica(input_ids=part.ids).logits[:, :-1]
    labels = part.labels[:, 1:]
    kept = labels != IGNORED
    loss: Any = cross_entropy(logits[kept], labels[kept], reduction="sum") / counted
    loss.backward()
    return float(loss.detach())


def _gather(replicas: list[Any]) -> None:
    """Add the gradients of all replicas into those of the first, and forget the others."""
    first, *others = replicas
    for other in others:
        for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
            if theirs.grad is not None:
                mine.grad.add_(theirs.grad)
        other.zero_grad()


def _optimizer(model: Any, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves the scales of norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
