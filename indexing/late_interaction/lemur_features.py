"""The features that LEMUR learns from token vectors: a linear map of them approximates a token's part of MaxSim.

LEMUR (Jääsaari, Hyvönen and Roos 2026, arXiv 2601.21853). A query's MaxSim with document l is a sum over its tokens:

    s(Q, C_l) = sum over x in Q of g_l(x),    g_l(x) = max over c in C_l of x · c

A network of one hidden layer, φ(x) = GELU(LayerNorm(x A + b)) with a linear output, is fitted to g over a sample of
documents and of corpus tokens, in place of query tokens. Only φ is kept. A document's vector w_l is the least-squares
fit of φ(x) · w_l to g_l(x) over another sample of tokens, so that s(Q, C_l) ~ (sum of φ(x)) · w_l.

As in the published code (ejaasaari/lemur): the order of operations in the hidden layer, an output without bias on
centred targets, Adam with learning rate 0.003, gradients clipped to 0.5. Different: sizes for a CPU, a ridge instead of
a pseudo-inverse, and vectors of whitened features (`whitener`), whose dot products are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedserve.errors import InputError
from indexing.kernels.jit import compiled
from indexing.late_interaction.fde_config import check_range
from indexing.late_interaction.ragged_checks import blocks

BATCH = 256
RATE = 3e-3
CLIP = 0.5
MIN_RIDGE = 1e-9  # below it the Cholesky factorisation may fail
ROWS, COLUMNS = 1_024, 512  # document and query tokens per matrix product, which fits into the CPU cache


@dataclass(frozen=True)
class LemurConfig:
    """The parameters of the features.

    Attributes:
        dim: Dimensions of a token vector, d.
        features: Dimensions of a document's vector, h; 2,048 in the paper.
        targets: Documents whose maxima the network is trained on.
        tokens: Tokens that it is trained on.
        epochs: Training epochs; with 0 the features stay random and need more candidates.
        fitted: Tokens over which each document's vector is fitted; more raise recall and the time to add documents.
        ridge: Added to the diagonal of the normal equations, relative to its mean.
        seed: Of samples and initial weights.

    Raises:
        InputError: A value out of range; the field is named.
    """

    dim: int
    features: int = 2_048
    targets: int = 512
    tokens: int = 8_192
    epochs: int = 10
    fitted: int = 16_384
    ridge: float = 1e-4
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("features", 2), ("targets", 1), ("tokens", 2), ("epochs", 0), ("fitted", 2)):
            check_range(name, getattr(self, name), least, 2**20)
        check_range("seed", self.seed, 0, 2**31)
        if not isinstance(self.ridge, float) or not MIN_RIDGE <= self.ridge < math.inf:
            raise InputError(f"ridge must be a number of at least {MIN_RIDGE}, got {self.ridge!r}", field="ridge")


@compiled
def maxima(scores: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (N, n) from ``scores`` (T, n): the columns' maxima over each document's rows.

    Args:
        scores: (T, n) float32.
        offsets: (N + 1,) int64, ascending; the first one, not necessarily 0, belongs to row 0 of ``scores``.
        out: (N, n) float32.
    """
    width = scores.shape[1]
    best = np.empty(width, np.float32)
    for document in range(len(out)):
        first, last = offsets[document] - offsets[0], offsets[document + 1] - offsets[0]
        best[:] = scores[first]
        for row in range(first + 1, last):
            line = scores[row]
            for i in range(width):
                best[i] = line[i] if line[i] > best[i] else best[i]
        out[document] = best


def token_maxima(tokens: np.ndarray, vectors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return g, (N, n) float32: for document l and token i, max over c in C_l of x_i · c.

    Args:
        tokens: (n, d) float32.
        vectors: (T, d) float32, the documents' tokens.
        offsets: (N + 1,) int64, at least one token each.
    """
    out = np.empty((len(offsets) - 1, len(tokens)), dtype=np.float32)
    columns, rows = torch.from_numpy(tokens), torch.from_numpy(vectors)
    buffer = torch.empty(0)
    for start, stop in blocks(offsets, ROWS):
        block = rows[offsets[start] : offsets[stop]]
        for first in range(0, len(tokens), COLUMNS):
            part = columns[first : first + COLUMNS]
            if buffer.numel() < len(block) * len(part):
                buffer = torch.empty(len(block) * len(part))
            scores = buffer[: len(block) * len(part)].view(len(block), len(part))
            torch.mm(block, part.T, out=scores)
            maxima(scores.numpy(), offsets[start : stop + 1], out[start:stop, first : first + COLUMNS])
    return out


def hidden_layer(tokens: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """Return φ of ``tokens``, (n, h) float32.

    Args:
        tokens: (n, d) float32.
        parts: ``hidden`` (d, h), and ``bias``, ``gain`` and ``shift`` (h,), float32.
    """
    width = parts["bias"].shape
    normed = functional.layer_norm(tokens @ parts["hidden"] + parts["bias"], width, parts["gain"], parts["shift"])
    return functional.gelu(normed)


def learn_features(config: LemurConfig, tokens: np.ndarray, targets: np.ndarray) -> dict[str, Tensor]:
    """Return the trained parts of `hidden_layer`; deterministic on one machine with the same number of threads.

    Args:
        config: Sizes, epochs and seed.
        tokens: (n, d) float32.
        targets: (m, n) float32, from `token_maxima` over m documents.
    """
    generator = torch.Generator().manual_seed(config.seed)

    def uniform(inputs: int, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(inputs)

    parts = {
        "hidden": uniform(config.dim, config.dim, config.features),
        "bias": uniform(config.dim, config.features),
        "gain": torch.ones(config.features),
        "shift": torch.zeros(config.features),
    }
    if config.epochs == 0:
        return parts
    output = uniform(config.features, config.features, len(targets))
    parameters = [part.requires_grad_() for part in (*parts.values(), output)]
    outputs = torch.from_numpy(np.ascontiguousarray(targets.T))  # (n, m)
    outputs = (outputs - outputs.mean()) / outputs.std(correction=0).clamp_min(1e-6)
    inputs = torch.from_numpy(tokens)
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    for _ in range(config.epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = functional.mse_loss(hidden_layer(inputs[batch], parts) @ output, outputs[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
    return {name: part.detach() for name, part in parts.items()}


def whitener(features: Tensor, ridge: float) -> Tensor:
    """Return M, (h, h) float64, a factor of the least squares over tokens: w = M (F M)' y.

    w = argmin of ||F w - y||² + λ ||w||² = (F'F + λ I)^-1 F' y, and F'F + λ I = L L' by Cholesky, so M = L'^-1. Then
    φ · w = (φ M) · ((F M)' y), and the coordinates of φ M have the same variance over the tokens, so errors of
    quantising (F M)' y affect all parts of the scores equally. Therefore these two are stored instead of φ and w.

    Args:
        features: F, (n, h) float32, of the tokens of the fit.
        ridge: λ relative to the mean of the diagonal of F'F.
    """
    exact = features.double()
    gram = exact.T @ exact
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    factor = torch.linalg.cholesky(gram)
    return torch.linalg.solve_triangular(factor.T, torch.eye(len(gram), dtype=torch.float64), upper=True)
