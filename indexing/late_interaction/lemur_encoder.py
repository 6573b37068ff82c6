"""Documents and queries as single vectors, by LEMUR's features (`indexing.late_interaction.lemur_features`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedserve.ragged import take_rows
from indexing.late_interaction.fde_config import check_same, describe
from indexing.late_interaction.lemur_features import LemurConfig, hidden_layer, learn_features, token_maxima, whitener
from indexing.late_interaction.ragged_checks import check_offsets, check_token_vectors, check_weights

ENCODE_BLOCK = 1_024  # documents fitted at a time: 64 MiB of maxima over 16,384 tokens
LAYER = ("hidden", "bias", "gain", "shift")


class LemurEncoder:
    """The learned encoder: dot products of query and document vectors approximate MaxSim up to a constant.

    Args:
        config: The sizes and the seed.
        matrices: ``hidden`` (d, h), ``bias``, ``gain`` and ``shift`` (h,) of the features; ``fitted`` (n, d), the
            tokens over which documents are fitted; ``whitener`` (h, h), the factor of the least squares over them;
            ``mean`` (1,), subtracted from the targets; all float32.
    """

    def __init__(self, config: LemurConfig, matrices: Mapping[str, np.ndarray]) -> None:
        self.config, self.matrices = config, dict(matrices)
        self._layer = {name: torch.from_numpy(self.matrices[name]) for name in LAYER}
        self._whitener = torch.from_numpy(self.matrices["whitener"])

    @classmethod
    def train(cls, config: LemurConfig, vectors: np.ndarray, offsets: np.ndarray) -> LemurEncoder:
        """Return the encoder learned from documents; deterministic on one machine with the same number of threads.

        Args:
            config: Sizes, epochs and seed; samples are clipped to the number of documents or tokens.
            vectors: (T, d) float32, at least one token.
            offsets: (N + 1,) int64.

        Raises:
            InputError: Another width, NaN, an empty document.
        """
        vectors = check_token_vectors(vectors, config.dim)
        offsets = check_offsets(offsets, len(vectors))
        rng = np.random.default_rng(config.seed)
        count = len(offsets) - 1
        sampled = np.sort(rng.choice(count, min(config.targets, count), replace=False))
        target_rows, target_offsets = take_rows(offsets, sampled)

        def sample_tokens(size: int) -> np.ndarray:
            sample: np.ndarray = vectors[rng.choice(len(vectors), min(size, len(vectors)), replace=False)]
            return sample

        inputs = sample_tokens(config.tokens)
        targets = token_maxima(inputs, vectors[target_rows], target_offsets)
        layer = learn_features(config, inputs, targets)
        fitted = sample_tokens(config.fitted)
        layer["whitener"] = whitener(hidden_layer(torch.from_numpy(fitted), layer), config.ridge).float().contiguous()
        learned = {name: part.numpy() for name, part in layer.items()}
        mean = np.full(1, targets.mean(dtype=np.float64), dtype=np.float32)
        return cls(config, {**learned, "fitted": fitted, "mean": mean})

    @cached_property
    def _solver(self) -> Tensor:
        """(n, h) float32, the whitened features F M of the fitted tokens; computed on first use."""
        features = hidden_layer(torch.from_numpy(self.matrices["fitted"]), self._layer)
        return (features.double() @ self._whitener.double()).float()

    @property
    def size(self) -> int:
        """Dimensions of a vector, h."""
        return self.config.features

    def encode_documents(self, vectors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return (F M)' (g - mean), (N, h) float32, also of documents that were not part of training (see `whitener`).

        Args:
            vectors: (T, d) float32.
            offsets: (N + 1,) int64.

        Raises:
            InputError: Another width, NaN, an empty document.
        """
        vectors = check_token_vectors(vectors, self.config.dim)
        offsets = check_offsets(offsets, len(vectors))
        out = np.empty((len(offsets) - 1, self.size), dtype=np.float32)
        for start in range(0, len(out), ENCODE_BLOCK):
            ends = offsets[start : start + ENCODE_BLOCK + 1]
            targets = token_maxima(self.matrices["fitted"], vectors[ends[0] : ends[-1]], ends - ends[0])
            targets -= self.matrices["mean"]
            torch.mm(torch.from_numpy(targets), self._solver, out=torch.from_numpy(out[start : start + ENCODE_BLOCK]))
        return out

    def encode_query(self, query: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the weighted sum of the rows' whitened features φ M, (h,) float32.

        Args:
            query: (q, d) float32.
            weights: (q,), the weights of its rows. Default: 1.

        Raises:
            InputError: Another width, NaN, another number of weights.
        """
        query = check_token_vectors(query, self.config.dim, "queries")
        summed = torch.from_numpy(check_weights(weights, len(query))) @ hidden_layer(
            torch.from_numpy(query), self._layer
        )
        vector: np.ndarray = (summed @ self._whitener).numpy()
        return vector

    def describe(self) -> dict[str, Any]:
        """Return the config and the matrices' SHA-256 digests as plain values."""
        return describe(self.config, self.matrices)

    @classmethod
    def from_saved(cls, described: Mapping[str, Any], matrices: Mapping[str, np.ndarray]) -> LemurEncoder:
        """Return the encoder of a description by `describe`.

        Raises:
            IndexMismatchError: The matrices differ from their digests.
        """
        encoder = cls(LemurConfig(**described["config"]), matrices)
        check_same(described["sha256"], encoder.describe()["sha256"], "LEMUR encoder")
        return encoder
