"""Fixed dimensional encodings: a text's token vectors as one vector, whose dot product approximates MaxSim.

MUVERA (Dhulipala et al. 2024, arXiv 2405.19504). In each of R repetitions, k random hyperplanes divide space into
2^k partitions. The block of a partition is the sum of a query's tokens in it, or the mean of a document's, projected to
p dimensions, so the dot product of two blocks compares query tokens with document tokens of the same partition:

    <FDE(Q), FDE(P)> ~ R · sum over q in Q of max over p in P of q · p
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexing.kernels.buffers import scratch_buffer
from indexing.kernels.fde_kernel import accumulate_partitions, count_sketch, partition_order
from indexing.late_interaction.fde_config import FdeConfig, check_same, describe, draw_matrices
from indexing.late_interaction.ragged_checks import blocks, check_offsets, check_token_vectors, check_weights

BLOCK = 512  # tokens multiplied at a time: their products fit into the CPU cache
MIN_ROWS = 16  # BLAS rounds products of fewer rows differently, which can flip a sign near zero: pad them


class FdeEncoder:
    """Computes encodings: one matrix product per block of texts, then one pass over the products.

    Args:
        config: The encoding.
        centre: (d,) float32, the mean token of the corpus; required by a centred config.
        matrices: The random matrices. Default: `draw_matrices`.
    """

    def __init__(
        self, config: FdeConfig, centre: np.ndarray | None = None, matrices: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.config = config
        self.matrices = dict(matrices) if matrices is not None else draw_matrices(config, centre)
        self._order = partition_order(config.bits)
        simhash = self.matrices["simhash"]  # (R, d, k)
        parts = [_flat(simhash.transpose(2, 1, 0))]  # bit 0 of all repetitions, then bit 1
        if config.projection != "identity":
            parts.append(_flat(self.matrices["inner"]))
        self._matrix = torch.from_numpy(np.ascontiguousarray(np.concatenate(parts, axis=1)))  # (d, k · R + R · p)
        self._thresholds = np.zeros((config.bits, config.repetitions), dtype=np.float32)
        if config.centred:  # the sign of (x - centre) · g is that of x · g - centre · g
            self._thresholds += np.einsum("rdk,d->kr", simhash, self.matrices["centre"])

    @property
    def size(self) -> int:
        """Dimensions of an encoding, F."""
        return self.config.size

    def describe(self) -> dict[str, Any]:
        """Return the config and the digests of the matrices as plain values."""
        return describe(self.config, self.matrices)

    @classmethod
    def from_saved(cls, described: Mapping[str, Any], matrices: Mapping[str, np.ndarray]) -> FdeEncoder:
        """Return the encoder of a description by `describe`.

        Raises:
            IndexMismatchError: The matrices differ from their digests.
        """
        encoder = cls(FdeConfig.from_saved(described["config"]), matrices=matrices)
        check_same(described["sha256"], encoder.describe()["sha256"], "fixed dimensional encoding")
        return encoder

    def encode_documents(self, vectors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return the encodings (N, F) float32 of N documents: the means of partitions, empty ones filled if configured.

        Args:
            vectors: (T, d) float32.
            offsets: (N + 1,) int64; document i has the rows ``offsets[i]`` to ``offsets[i + 1]``, at least one.

        Raises:
            InputError: A document without rows, another width, NaN or infinity.
        """
        return self._encode(vectors, offsets, None, is_document=True)

    def encode_queries(self, vectors: np.ndarray, offsets: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the encodings (Q, F) float32 of Q queries: the sums of partitions.

        Args:
            vectors: (T, d) float32.
            offsets: (Q + 1,) int64.
            weights: (T,) float32, the weights of the rows; they do not affect partitions. Default: 1.

        Raises:
            InputError: As for documents.
        """
        return self._encode(vectors, offsets, weights, is_document=False)

    def _encode(
        self, vectors: np.ndarray, offsets: np.ndarray, weights: np.ndarray | None, *, is_document: bool
    ) -> np.ndarray:
        config, name = self.config, "documents" if is_document else "queries"
        vectors = check_token_vectors(vectors, config.dim, name)
        offsets = check_offsets(offsets, len(vectors), name)
        weights = check_weights(weights, len(vectors))
        shape = (config.repetitions, 1 << config.bits, config.inner_dim)
        out = np.empty((len(offsets) - 1, config.size), dtype=np.float32)
        step = config.inner_dim if config.projection != "identity" else 0
        first_column = config.repetitions * config.bits if step else 0
        rows = torch.from_numpy(vectors)
        for start, stop in blocks(offsets, BLOCK):
            low, high = offsets[start], offsets[stop]
            products = self._products(rows[low:high])
            payload = products if step else vectors[low:high]
            full = (
                out[start:stop] if config.final_dim is None else np.empty((stop - start, config.full_size), np.float32)
            )
            accumulate_partitions(
                products,
                self._thresholds,
                payload,
                first_column,
                step,
                weights[low:high],
                offsets[start : stop + 1] - low,
                self._order,
                is_document,
                config.fill,
                full.reshape(stop - start, *shape),
            )
            if config.final_dim is not None:
                count_sketch(full, self.matrices["columns"], self.matrices["signs"], out[start:stop])
        return out

    def _products(self, rows: Tensor) -> np.ndarray:
        """Return rows (t, d) times the matrices, (>= t, k · R + R · p); independent of the number of rows."""
        if len(rows) < MIN_ROWS:
            rows = torch.cat([rows, rows.new_zeros(MIN_ROWS - len(rows), rows.shape[1])])
        products = scratch_buffer("products", len(rows), self._matrix.shape[1])
        torch.mm(rows, self._matrix, out=torch.from_numpy(products))
        return products


def _flat(matrices: np.ndarray) -> np.ndarray:
    """Return (R, d, c) as (d, R · c)."""
    repetitions, dim, columns = matrices.shape
    return matrices.transpose(1, 0, 2).reshape(dim, repetitions * columns)
