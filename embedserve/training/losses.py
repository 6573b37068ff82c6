"""Losses over sentence vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """Return how far ``student`` is from ``teacher``, both unit vectors (B, d): a scalar.

    The mean of 1 - cosine of each vector with its target, plus the Kullback-Leibler divergence of each row of
    similarities to the other texts of the batch (softmax at ``temperature``): the second term teaches which
    neighbour is nearer, which the first alone leaves to chance.
    """
    cosine = 1 - (student * teacher).sum(dim=-1).mean()
    own = torch.eye(len(student), dtype=torch.bool, device=student.device)
    wanted = (teacher @ teacher.T / temperature).masked_fill(own, -1e4).log_softmax(dim=-1)
    found = (student @ student.T / temperature).masked_fill(own, -1e4).log_softmax(dim=-1)
    return cosine + functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def contrastive_loss(queries: Tensor, passages: Tensor, same: Tensor, temperature: float = 0.05) -> Tensor:
    """Return the in-batch contrastive loss (InfoNCE, van den Oord et al. 2018, eq. 4), both directions: a scalar.

    Args:
        queries: Unit vectors (B, d).
        passages: Unit vectors (B, d); row i answers query i.
        same: (B, B) bool, True off the diagonal where passage j is a right answer to query i too: left out.
    """
    logits = (queries @ passages.T / temperature).masked_fill(same, -1e4)
    target = torch.arange(len(queries), device=queries.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
