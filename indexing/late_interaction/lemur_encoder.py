"""Documents and queries as single vectors by LEMUR's features (`indexing.late_interaction.lemur_features`)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedserve.errors import IndexMismatchError
from embedserve.ragged import take_rows
from indexing.late_interaction.lemur_features import LemurConfig, hidden_layer, learn_features, token_maxima, whitener
from indexing.late_interaction.ragged_checks import check_offsets, check_token_vectors, check_weights

ENCODE_BLOCK = 1_024  # documents fitted at a time: 64 MiB of maxima over 16,384 tokens
LAYER = ("hidden", "bias", "gain", "shift")


class LemurEncoder:
    """What `train` learnt: a query's vector times a document's is near their MaxSim, less the same for all documents.

    Args:
        config: What was learnt.
        matrices: ``hidden`` (d, h), ``bias``, ``gain`` and ``shift`` (h,) of the features; ``fitted`` (n, d), the
            tokens that documents are fitted over; ``whitener`` (h, h), the factorised least squares over them; ``mean``
            (1,), what targets are less; all float32.
    """

    def __init__(self, config: LemurConfig, matrices: Mapping[str, np.ndarray]) -> None:
        self.config, self.matrices = config, dict(matrices)
        self._layer = {name: torch.from_numpy(self.matrices[name]) for name in LAYER}
        self._whitener = torch.from_numpy(self.matrices["whitener"])

    @classmethod
    def train(cls, config: LemurConfig, vectors: np.ndarray, offsets: np.ndarray) -> LemurEncoder:
        """Return the encoder learnt from documents, the same each time on one machine with as many threads.

        Args:
            config: Sizes, epochs and seed; samples are no larger than what there is.
            vectors: (T, d) float32, at least one token.
            offsets: (N + 1,) int64.

        Raises:
            InputError: Another width, NaN, an empty document.
        """
        vectors = check_token_vectors(vectors, config.dim)
        offsets = check_offsets(offsets, len(vectors))
        rng = np.random.default_rng(config.seed)
        count = len(offsets) - 1
        chosen = np.sort(rng.choice(count, min(config.targets, count), replace=False))
        target_rows, target_offsets = take_rows(offsets, chosen)

        def tokens(wanted: int) -> np.ndarray:
            sample: np.ndarray = vectors[rng.choice(len(vectors), min(wanted, len(vectors)), replace=False)]
            return sample

        seen = tokens(config.tokens)
        targets = token_maxima(seen, vectors[target_rows], target_offsets)
        layer = learn_features(config, seen, targets)
        fitted = tokens(config.fitted)
        layer["whitener"] = whitener(hidden_layer(torch.from_numpy(fitted), layer), config.ridge).float().contiguous()
        learnt = {name: part.numpy() for name, part in layer.items()}
        mean = np.full(1, targets.mean(dtype=np.float64), dtype=np.float32)
        return cls(config, {**learnt, "fitted": fitted, "mean": mean})

    @cached_property
    def _solver(self) -> Tensor:
        """(n, h) float32, the fitted tokens' whitened features F M; made when first a document is encoded."""
        features = hidden_layer(torch.from_numpy(self.matrices["fitted"]), self._layer)
        return (features.double() @ self._whitener.double()).float()

    @property
    def size(self) -> int:
        """Numbers in a vector, h."""
        return self.config.features

    def encode_documents(self, vectors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return (F M)' (g - mean), (N, h) float32, of documents that training need not have seen (see `whitener`).

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
            weights: (q,) of its rows; 1 by default.

        Raises:
            InputError: Another width, NaN, weights of another number.
        """
        query = check_token_vectors(query, self.config.dim, "queries")
        summed = torch.from_numpy(check_weights(weights, len(query))) @ hidden_layer(
            torch.from_numpy(query), self._layer
        )
        vector: np.ndarray = (summed @ self._whitener).numpy()
        return vector

    def describe(self) -> dict[str, Any]:
        """Return the config and the matrices' SHA-256 digests as plain values."""
        digests = {name: hashlib.sha256(matrix.tobytes()).hexdigest() for name, matrix in self.matrices.items()}
        return {"config": dataclasses.asdict(self.config), "sha256": digests}

    @classmethod
    def from_saved(cls, described: Mapping[str, Any], matrices: Mapping[str, np.ndarray]) -> LemurEncoder:
        """Return the encoder that `describe` told of.

        Raises:
            IndexMismatchError: The matrices are not the ones described.
        """
        encoder = cls(LemurConfig(**described["config"]), matrices)
        check_described(described["sha256"], encoder.describe()["sha256"])
        return encoder


def check_described(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `IndexMismatchError` naming what differs between two configs, or digests, as plain values."""
    differs = [
        f"{name} (index {stored.get(name)!r}, wanted {wanted.get(name)!r})"
        for name in sorted({*stored, *wanted})
        if stored.get(name) != wanted.get(name)
    ]
    if differs:
        message = "the index was made by other LEMUR features: " + ", ".join(differs)
        raise IndexMismatchError(f"{message}; open it without a config, or build it again", field="config")
