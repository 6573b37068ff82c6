"""Whitening (Su et al. 2021, arXiv 2103.15316; Huang et al. 2021, arXiv 2104.01767): decorrelate another strategy's x.

    y = (x - mean) W[:, :k]        cov = U diag(l) U^T        W = U diag(l)^(-1/2), largest l first

over the vectors x of the inner strategy. Fitted to texts alone, without pairs: ``embedserve train`` reads them once.
Another fit has another basis: vectors of two fits are not comparable, and their fingerprints differ. Whether the
covariance is divided by n or n - 1 only scales y, which normalisation cancels. Costs one matrix product per text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from embedserve.compat import Dense, vector_width
from embedserve.errors import InputError
from embedserve.spec import EncoderSpec
from embedserve.strategies.inner import build_inner, canonical_inner
from embedserve.strategies.strategy import Strategy, option, option_error

BLOCK = 4096


@dataclass(frozen=True)
class VectorSums:
    """Sums over vectors that determine their mean and covariance; the sums of two sets can be added.

    Attributes:
        count: n.
        total: (d,) float64, the sum of x.
        products: (d, d) float64, the sum of x x^T.
    """

    count: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> VectorSums:
        """Return the sums over vectors (n, d)."""
        vectors = vectors.astype(np.float64)
        return cls(len(vectors), vectors.sum(axis=0), vectors.T @ vectors)

    def __add__(self, other: VectorSums) -> VectorSums:
        return VectorSums(self.count + other.count, self.total + other.total, self.products + other.products)


@dataclass(frozen=True)
class Whitening:
    """The result of `fit_whitening`.

    Attributes:
        mean: (d,) float64.
        kernel: W (d, d) float64, the direction of the largest variance first.
        variances: l (d,) float64, largest first.
    """

    mean: np.ndarray
    kernel: np.ndarray
    variances: np.ndarray

    def num_components(self, share: float) -> int:
        """Return the smallest k whose directions have ``share`` of the variance."""
        cumulative = np.cumsum(self.variances) / self.variances.sum()
        return min(int(np.searchsorted(cumulative, share - 1e-12)) + 1, len(cumulative))


def fit_whitening(sums: VectorSums, shrinkage: float = 0.0, dim: int | None = None) -> Whitening:
    """Fit the whitening map of the vectors in ``sums``, in float64.

    Args:
        sums: Over at least twice as many vectors as directions to keep.
        shrinkage: Share of the mean variance that is added to every direction: without it, directions in which the
            texts hardly differ would be amplified without bound.
        dim: Directions to keep. Default: all.

    Raises:
        InputError: There are too few vectors, or they differ in fewer directions than ``dim``.
    """
    size = len(sums.total)
    dim = size if dim is None else dim
    if sums.count < 2 * dim:
        message = f"whitening to {dim} dimensions needs at least {2 * dim} texts, got {sums.count}"
        raise InputError(f"{message}; add texts, or lower options.dim", field="data")
    mean = sums.total / sums.count
    covariance = sums.products / sums.count - np.outer(mean, mean)
    covariance += shrinkage * np.trace(covariance) / size * np.eye(size)
    variances, directions = (values[..., ::-1] for values in np.linalg.eigh(covariance))
    if variances[dim - 1] <= 1e-12 * variances[0]:
        rank = int((variances > 1e-12 * variances[0]).sum())
        message = f"the texts' vectors differ in only {rank} directions, and {dim} are to be kept"
        raise InputError(f"{message}; set options.dim to at most {rank}, or options.shrinkage above 0", field="data")
    peak = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(
        directions[peak, np.arange(size)]
    )  # the sign is free; fixed so that machines agree
    return Whitening(mean, directions * np.maximum(variances, 1e-300) ** -0.5, variances)


def as_linear(whitening: Whitening, dim: int) -> tuple[Tensor, Tensor]:
    """Return the first ``dim`` directions as weight (k, d) and bias (k,), float32."""
    kernel = whitening.kernel[:, :dim]
    return torch.from_numpy(kernel.T.astype(np.float32)), torch.from_numpy(
        (-whitening.mean @ kernel).astype(np.float32)
    )


def whitening_module(width: int, dim: int) -> nn.Module:
    """Return sentence-transformers' own linear layer, initialised to keep the first ``dim`` numbers unchanged."""
    weight, bias = torch.eye(width)[:dim].clone(), torch.zeros(dim)
    return Dense(width, dim, activation_function=nn.Identity(), init_weight=weight, init_bias=bias)


@dataclass(frozen=True)
class WhiteningStrategy(Strategy):
    """The vectors of another strategy, whitened; fitted to texts."""

    fitted: ClassVar[bool] = True

    of: str = option("layer_mean:layers=first_last", "strategy to whiten: one vector per text, no trained weights")
    dim: int | None = option(None, "directions to keep, those of the largest variance; null: all", minimum=1)
    shrinkage: float = option(1e-6, "share of the mean variance that is added to every direction", minimum=0)

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def canonical(self) -> dict[str, Any]:
        """Return the options with the inner strategy as plain values."""
        return {**super().canonical(), "of": canonical_inner(self.of)}

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the modules of the inner strategy, and the map."""
        modules = build_inner(spec, self.of, folder)
        width = vector_width(modules)
        if self.dim is not None and self.dim > width:
            raise option_error("dim", f"must be a whole number from 1 to {width}, or null for all; got {self.dim}")
        return [*modules, whitening_module(width, self.dim or width)]

    def fit(self, encoder: Any, texts: Iterable[str]) -> None:
        """Fit the last module of ``encoder`` to the vectors that the modules before it give for ``texts``.

        Raises:
            InputError: There are too few texts, or their vectors differ in too few directions.
        """
        *inner, last = encoder.strategy_modules
        texts = list(dict.fromkeys(texts))
        if not texts:
            raise InputError("whitening is fitted to texts, and there are none", field="data")
        sums = None
        for start in range(0, len(texts), BLOCK):
            block = VectorSums.of(pooled_vectors(encoder, inner, texts[start : start + BLOCK]))
            sums = block if sums is None else sums + block
        assert sums is not None
        weight, bias = as_linear(fit_whitening(sums, self.shrinkage, last.out_features), last.out_features)
        with torch.no_grad():
            last.linear.weight.copy_(weight)
            last.linear.bias.copy_(bias)


def pooled_vectors(encoder: Any, modules: list[Any], texts: list[str]) -> np.ndarray:
    """Return the document vectors (n, d), float32, not normalised, that the encoder's first ``modules`` give."""
    from embedserve.batching import token_batches

    rows = encoder.tokenize(texts)
    vectors = np.empty((len(texts), vector_width(modules)), dtype=np.float32)
    with torch.inference_mode():
        for batch in token_batches(rows.lengths, encoder.batch_tokens):
            features = encoder.first_features(rows.take(batch))
            for module in modules[1:]:
                features = module(features)
            vectors[batch] = features["sentence_embedding"].float().cpu().numpy()
    return vectors
