"""Objectives that editors minimise. All are scoped to the target by construction: prompt tokens carry no loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def target_nll(logits: Tensor, labels: Tensor, row: Tensor) -> Tensor:
    """-log P(target | prompt) a token, averaged within each row and then over the rows.

    `logits` (wanted, vocabulary) at the positions before each target token, `labels` and `row` (wanted,).
    """
    nll = F.cross_entropy(logits.float(), labels, reduction="none")
    counts = torch.zeros_like(nll).index_add_(0, row, torch.ones_like(nll))  # of no more rows than there are labels
    return (nll / counts[row]).sum() / (counts > 0).sum()


def target_log_probability(logits: Tensor, labels: Tensor, row: Tensor) -> Tensor:
    """log P(target | prompt) of each row: (wanted, vocabulary), (wanted,), (wanted,) -> (rows,)."""
    nll = F.cross_entropy(logits.float(), labels, reduction="none")
    return -torch.zeros(int(row.max()) + 1, device=nll.device).index_add_(0, row, nll)


def kl_to(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || logits), averaged over positions; both (positions, vocabulary)."""
    return F.kl_div(
        F.log_softmax(logits.float(), -1), F.log_softmax(reference.float(), -1), log_target=True, reduction="batchmean"
    )


def hinge(excess: Tensor) -> Tensor:
    """mean_+ of WISE: the mean of the positive entries, 0 where there is none."""
    positive = F.relu(excess)
    return positive.sum() / (positive > 0).sum().clamp(min=1)
