"""Losses on sentence vectors and on next tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """Return the distillation loss of ``student`` to ``teacher``, both unit vectors (B, d): a scalar.

    The mean of 1 - cosine of each vector with its target, plus the Kullback-Leibler divergence of each row of
    similarities to the other texts of the batch (softmax at ``temperature``). The second term teaches the order of
    neighbours, which the first does not determine.
    """
    cosine = 1 - (student * teacher).sum(dim=-1).mean()
    diagonal = torch.eye(len(student), dtype=torch.bool, device=student.device)
    target = (teacher @ teacher.T / temperature).masked_fill(diagonal, -1e4).log_softmax(dim=-1)
    predicted = (student @ student.T / temperature).masked_fill(diagonal, -1e4).log_softmax(dim=-1)
    return cosine + functional.kl_div(predicted, target, reduction="batchmean", log_target=True)


def contrastive_loss(queries: Tensor, passages: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Return the in-batch contrastive loss (InfoNCE, van den Oord et al. 2018, eq. 4), both directions: a scalar.

    Args:
        queries: Unit vectors (B, d).
        passages: Unit vectors (B, d); row i answers query i.
        same: False negatives (B, B), bool: whether passage j also answers query i. They are masked.
        temperature: Divisor of the cosines; smaller values give hard negatives more weight.
    """
    logits = (queries @ passages.T / temperature).masked_fill(same, -1e4)
    target = torch.arange(len(queries), device=queries.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def next_token_loss(
    states: Tensor,
    unembedding: Tensor,
    following: Tensor,
    rng: np.random.Generator,
    frequent: int = 2048,
    share: float = 0.125,
) -> Tensor:
    """Return an estimate of the mean next-token cross-entropy in nats from part of the vocabulary: a scalar.

    The sum over the vocabulary contains the first ``frequent`` entries, all tokens of the batch, and a random ``share``
    of the others with weight 1 / share. The estimate of this sum is unbiased.

    Args:
        states: Last hidden states (N, D).
        unembedding: (V, D), entries by descending frequency.
        following: Tokens to predict (N,), int64.
        rng: Source of randomness of the sample.
        frequent: Number of entries always in the sum; V gives the exact loss.
        share: Sampled share of the other entries.
    """
    always = torch.zeros(len(unembedding), dtype=torch.bool, device=states.device)
    always[:frequent] = True
    always[following] = True
    others = (~always).nonzero()[:, 0]
    drawn = torch.from_numpy(rng.choice(len(others), math.ceil(share * len(others)), replace=False))
    entries = torch.cat([always.nonzero()[:, 0], others[drawn.to(others.device)]])
    weight = states.new_zeros(len(entries))
    if len(drawn):
        weight[-len(drawn) :] = math.log(len(others) / len(drawn))
    position = torch.empty_like(always, dtype=torch.int64)
    position[entries] = torch.arange(len(entries), device=states.device)
    logits = torch.addmm(weight, states, unembedding[entries].T)
    return functional.cross_entropy(logits, position[following])
