"""Whitening (Su et al. 2021, arXiv 2103.15316; Huang et al. 2021): directions that all texts share lose their weight.

    y = (x - mean) W[:, :k]        cov = U diag(l) U^T        W = U diag(l)^(-1/2), largest l first

over the vectors x of another strategy. Fitted on texts alone, without pairs: ``embedserve train`` reads them once.
Fitting again changes the basis: vectors of two fits cannot be compared, and the fingerprint says so. Dividing the
covariance by n, n - 1 or nothing only scales y, which unit length takes away. Costs one matrix product a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedserve.compat import Dense, vector_width
from embedserve.errors import InputError, SpecError
from embedserve.spec import EncoderSpec
from embedserve.strategies.inner import build_inner, canonical_inner

OPTIONS: dict[str, Any] = {"of": "layer_mean:layers=first_last", "dim": None, "shrinkage": 1e-6}
TRAINED = True
BLOCK = 4096


@dataclass(frozen=True)
class VectorSums:
    """Sums over vectors from which their mean and covariance follow; those of two sets add up.

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
    """What `fit_whitening` found.

    Attributes:
        mean: (d,) float64.
        kernel: W (d, d) float64, the direction of the largest variance first.
        variances: l (d,) float64, largest first.
    """

    mean: np.ndarray
    kernel: np.ndarray
    variances: np.ndarray

    def num_components(self, share: float) -> int:
        """Return the smallest k whose directions hold ``share`` of the variance."""
        held = np.cumsum(self.variances) / self.variances.sum()
        return min(int(np.searchsorted(held, share - 1e-12)) + 1, len(held))


def fit_whitening(sums: VectorSums, shrinkage: float = 0.0, dim: int | None = None) -> Whitening:
    """Fit to the vectors behind ``sums``, in float64.

    Args:
        sums: Of at least twice as many vectors as directions are kept.
        shrinkage: This share of the mean variance is added to every direction: without it, directions in which the
            fitted texts do not differ would be blown up.
        dim: Directions that will be kept; None for all.

    Raises:
        InputError: There are too few vectors, or they differ in fewer directions than asked for.
    """
    size = len(sums.total)
    kept = size if dim is None else dim
    if sums.count < 2 * kept:
        message = f"whitening to {kept} dimensions needs at least {2 * kept} texts, got {sums.count}"
        raise InputError(f"{message}; give more, or lower options.dim", field="data")
    mean = sums.total / sums.count
    covariance = sums.products / sums.count - np.outer(mean, mean)
    covariance += shrinkage * np.trace(covariance) / size * np.eye(size)
    variances, directions = (values[..., ::-1] for values in np.linalg.eigh(covariance))
    if variances[kept - 1] <= 1e-12 * variances[0]:
        found = int((variances > 1e-12 * variances[0]).sum())
        message = f"the texts' vectors differ in {found} directions only, and {kept} are to be kept"
        raise InputError(f"{message}; set options.dim to at most {found}, or options.shrinkage above 0", field="data")
    peak = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[peak, np.arange(size)])  # signs are free; two machines agree
    return Whitening(mean, directions * np.maximum(variances, 1e-300) ** -0.5, variances)


def fit(encoder: Any, texts: Iterable[str]) -> None:
    """Fit the last module of an encoder of this strategy to ``texts`` as the modules before it see them."""
    *_, last = modules = encoder.strategy_modules
    texts = list(dict.fromkeys(texts))
    sums = None
    for start in range(0, len(texts), BLOCK):
        found = VectorSums.of(pooled_vectors(encoder, modules[:-1], texts[start : start + BLOCK]))
        sums = found if sums is None else sums + found
    if sums is None:
        raise InputError("there is no text to fit to", field="data")
    options = encoder.spec.options
    weight, bias = as_linear(fit_whitening(sums, options["shrinkage"], last.out_features), last.out_features)
    with torch.no_grad():
        last.linear.weight.copy_(weight)
        last.linear.bias.copy_(bias)


def pooled_vectors(encoder: Any, modules: list[Any], texts: list[str]) -> np.ndarray:
    """Return the vectors (n, d) float32, of any length, that the encoder's first ``modules`` make of documents."""
    from embedserve.batching import token_batches

    rows = encoder.tokenize(texts)
    out: np.ndarray | None = None
    with torch.inference_mode():
        for places in token_batches(rows.lengths, encoder.batch_tokens):
            features = encoder.first_features(rows.take(places))
            for module in modules[1:]:
                features = module(features)
            vectors = features["sentence_embedding"].float().cpu().numpy()
            out = np.empty((len(texts), vectors.shape[1]), dtype=np.float32) if out is None else out
            out[places] = vectors
    if out is None:
        raise InputError("there is no text to fit to", field="data")
    return out


def as_linear(found: Whitening, dim: int) -> tuple[Tensor, Tensor]:
    """Return the map as weight (k, d) and bias (k,), float32."""
    kernel = found.kernel[:, :dim]
    return torch.from_numpy(kernel.T.astype(np.float32)), torch.from_numpy((-found.mean @ kernel).astype(np.float32))


def whitening_module(width: int, dim: int) -> nn.Module:
    """Return the library's own linear layer, which at first keeps the first ``dim`` numbers as they are."""
    weight, bias = torch.eye(width)[:dim].clone(), torch.zeros(dim)
    return Dense(width, dim, activation_function=nn.Identity(), init_weight=weight, init_bias=bias)


def canonical_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with those of the inner strategy spelled out."""
    return {**options, "of": canonical_inner(options["of"])}


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the modules of the inner strategy, and the map."""
    shrinkage = options["shrinkage"]
    if isinstance(shrinkage, bool) or not isinstance(shrinkage, (int, float)) or not 0 <= shrinkage < math.inf:
        message = f"options.shrinkage must be a number of at least 0, got {shrinkage!r}"
        raise SpecError(message, field="options.shrinkage")
    modules = build_inner(spec, options["of"], folder)
    width, dim = vector_width(modules), options["dim"]
    if dim is not None and (type(dim) is not int or not 1 <= dim <= width):
        message = f"options.dim must be a whole number from 1 to {width}, or null for all; got {dim!r}"
        raise SpecError(message, field="options.dim")
    return [*modules, whitening_module(width, dim or width)]
