"""Reads the rows of complete shards in blocks: documents and their vectors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedserve.ragged import offsets_of, take_rows
from embedserve.types import Embeddings, Encoded, SparseEmbeddings, TokenEmbeddings
from indexing.jobs.shard_files import ROWS
from indexing.jobs.shard_split import document_of
from indexing.sources.corpus import Document

Ragged = tuple[np.ndarray, np.ndarray, np.ndarray]  # values, ids, offsets


@dataclass(frozen=True)
class ShardRows:
    """Rows of a shard: documents, their vectors, and their positions in the shard's input, (n,) int32."""

    documents: list[Document]
    encoded: Encoded
    positions: np.ndarray

    def without(self, excluded: Collection[int]) -> ShardRows:
        """Return the rows whose positions in the input are not in ``excluded``."""
        rows = [row for row, position in enumerate(self.positions.tolist()) if position not in excluded]
        if len(rows) == len(self.documents):
            return self
        chosen = np.array(rows, dtype=np.int64)
        return ShardRows([self.documents[row] for row in rows], self.encoded.take(chosen), self.positions[chosen])


def read_rows(folder: Path, size: int = 1024) -> Iterator[ShardRows]:
    """Yield the rows of a complete shard in blocks of ``size``."""

    def array(name: str) -> np.ndarray | None:
        path = folder / f"{name}.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

    positions, tokens, truncated, dense = array("places"), array("tokens"), array("truncated"), array("dense")
    multi, sparse = ragged(array, "multi", "multi_ids"), ragged(array, "sparse_values", "sparse_indices")
    if positions is None or tokens is None or truncated is None:
        return  # every document was refused
    with (folder / ROWS).open("rb") as lines:
        for start in range(0, len(positions), size):
            part = np.arange(start, min(start + size, len(positions)))
            about = np.array(tokens[part]), np.array(truncated[part])
            documents = [document_of(next(lines)) for _ in part]
            encoded = Encoded(
                None if dense is None else Embeddings(np.array(dense[part]), *about),
                None if multi is None else tokens_of(pick(multi, part), *about),
                None if sparse is None else weights_of(pick(sparse, part), *about),
            )
            yield ShardRows(documents, encoded, np.array(positions[part]))


def ragged(array: Callable[[str], np.ndarray | None], values: str, ids: str) -> Ragged | None:
    """Return the token or sparse vectors of a shard as memory maps; None if it has none of that kind."""
    vectors, entries, lengths = array(values), array(ids), array(f"{values.split('_')[0]}_lengths")
    if vectors is None or entries is None or lengths is None:
        return None
    return vectors, entries, offsets_of(lengths)


def pick(vectors: Ragged, rows: np.ndarray) -> Ragged:
    """Return the vectors of ``rows`` (n,), in memory."""
    values, ids, offsets = vectors
    elements, row_offsets = take_rows(offsets, rows)
    return np.array(values[elements]), np.array(ids[elements]), row_offsets


def tokens_of(of: Ragged, tokens: np.ndarray, truncated: np.ndarray) -> TokenEmbeddings:
    """Return token vectors of their parts."""
    return TokenEmbeddings(of[0], of[2], of[1], tokens, truncated)


def weights_of(of: Ragged, tokens: np.ndarray, truncated: np.ndarray) -> SparseEmbeddings:
    """Return sparse vectors of their parts."""
    return SparseEmbeddings(of[1], of[0], of[2], tokens, truncated)
