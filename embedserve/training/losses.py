"""Losses over sentence vectors and over next tokens."""

from __future__ import annotations

import math

import numpy as np
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


def contrastive_loss(queries: Tensor, passages: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Return the in-batch contrastive loss (InfoNCE, van den Oord et al. 2018, eq. 4), both directions: a scalar.

    Args:
        queries: Unit vectors (B, d).
        passages: Unit vectors (B, d); row i answers query i.
        same: (B, B) bool, True off the diagonal where passage j is a right answer to query i too: left out.
        temperature: Divides the cosines; the smaller, the more the hardest negatives count.
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

    The sum over the vocabulary counts the first ``frequent`` entries and all tokens of the batch as they are, and a
    random ``share`` of the others with the weight 1 / share: the estimate of the sum is unbiased.

    Args:
        states: Last hidden states (N, D).
        unembedding: (V, D), entries in the order of their frequency.
        following: The tokens to predict (N,), int64.
        rng: Draws the entries of the sum.
        frequent: Entries that are always counted; V gives the exact loss.
        share: Of the other entries, how many are drawn.
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
    place = torch.empty_like(always, dtype=torch.int64)
    place[entries] = torch.arange(len(entries), device=states.device)
    logits = torch.addmm(weight, states, unembedding[entries].T)
    return functional.cross_entropy(logits, place[following])
