"""What one forward pass leaves of each batch, as the vectors of the texts in their order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from embedserve.loading.build import DENSE, MULTI
from embedserve.types import Embeddings, Encoded, SparseEmbeddings, TokenEmbeddings, TokenRows

SPARSE = "sparse_weights"  # (B, M) float: weights of the entries in features["lexical_ids"] (B, M), -1 where none


def gather(
    rows: TokenRows, outputs: Collection[str], dim: int, batches: Iterable[tuple[np.ndarray, dict[str, Tensor]]]
) -> Encoded:
    """Return the vectors of N token rows.

    Args:
        rows: What was encoded.
        outputs: What to return of ``dense``, ``multi`` and ``sparse``.
        dim: Numbers of a vector.
        batches: Places in ``rows`` and the features there, each place once.

    Returns:
        ``dense`` float32 (N, dim), ``multi`` a vector for each token, ``sparse`` weights above 0; None for the others.
    """
    dense = np.empty((len(rows), dim), dtype=np.float32)
    token_parts: list[Any] = [None] * len(rows)
    sparse_parts: list[Any] = [None] * len(rows)
    for places, features in batches:
        if "dense" in outputs:
            dense[places] = features[DENSE].cpu().numpy()
        if "multi" in outputs:
            _put(token_parts, places, _token_rows(features))
        if "sparse" in outputs:
            _put(sparse_parts, places, _sparse_rows(features))
    multi = sparse = None
    if "multi" in outputs:
        values, ids, offsets = _join(token_parts, dim)
        multi = TokenEmbeddings(values, offsets, ids, rows.tokens, rows.truncated)
    if "sparse" in outputs:
        values, ids, offsets = _join(sparse_parts)
        sparse = SparseEmbeddings(ids, values, offsets, rows.tokens, rows.truncated)
    return Encoded(Embeddings(dense, rows.tokens, rows.truncated) if "dense" in outputs else None, multi, sparse)


def _put(parts: list[Any], places: np.ndarray, found: list[Any]) -> None:
    for place, part in zip(places, found, strict=True):
        parts[place] = part


def _token_rows(features: dict[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each text's token vectors (t, d) and the vocabulary entries (t,) they were read at."""
    vectors, mask = features[MULTI].cpu().numpy(), features["attention_mask"].bool().cpu().numpy()
    ids = features["input_ids"].cpu().numpy() if "input_ids" in features else np.full(mask.shape, -1)
    if ids.shape != mask.shape:  # pooled tokens stand for several entries
        ids = np.full(mask.shape, -1)
    return [(vectors[row][mask[row]], ids[row][mask[row]]) for row in range(len(mask))]


def _sparse_rows(features: dict[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each text's weights and vocabulary entries, those of weight 0 left out."""
    weights, entries = features[SPARSE].float().cpu().numpy(), features["lexical_ids"].cpu().numpy()
    found = []
    for row_weights, row_entries in zip(weights, entries, strict=True):
        kept = np.flatnonzero((row_entries >= 0) & (row_weights > 0))
        kept = kept[np.argsort(row_entries[kept], kind="stable")]
        found.append((row_weights[kept], row_entries[kept]))
    return found


def _join(parts: list[tuple[np.ndarray, np.ndarray]], *width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values, the ids and the offsets (N + 1,) of texts whose values and ids stand in ``parts``."""
    offsets = np.concatenate([[0], np.cumsum([len(values) for values, _ in parts])]).astype(np.int64)
    values = np.concatenate([np.zeros((0, *width), np.float32), *(part[0] for part in parts)])
    ids = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    return values, ids, offsets
