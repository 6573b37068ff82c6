"""The first two stages of MUVERA: compressed encodings in a faiss index, and optional float16 encodings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError
from indexing.engines.faiss_index import FaissIndex, build_index, load_index
from indexing.kernels.float16 import widen_rows
from indexing.late_interaction.fde import FdeEncoder
from indexing.late_interaction.fde_config import FdeConfig
from indexing.late_interaction.token_store import TokenStore, Writers
from indexing.storage.engine_files import ENGINE_REMEDY, SavedEngine, array_writer, read_array
from indexing.storage.growing_array import GrowingArray
from indexing.storage.row_table import RowTable

TRAIN_DOCUMENTS = 8_192
ENCODE_BLOCK = 4_096  # documents encoded at a time: 160 MiB of 10,240 float32
RESCORE_BLOCK = 64  # encodings widened at a time


class FdeIndex:
    """The encodings of a store's documents; created by `build` or `from_saved`.

    Args:
        store: The token vectors that were encoded.
        encoder: The encoder of documents and queries.
        index: The faiss index of the encodings, by row.
        encodings: (N, F) float16 by position in the store. Default: not kept.
    """

    def __init__(
        self, store: TokenStore, encoder: FdeEncoder, index: FaissIndex, encodings: GrowingArray | None
    ) -> None:
        self._store, self.encoder, self._index, self._encodings = store, encoder, index, encodings

    @classmethod
    def build(
        cls, store: TokenStore, config: FdeConfig, codes: str, *, keeps_encodings: bool, folder: Path | None
    ) -> FdeIndex:
        """Return the encodings of all documents of ``store``; the centre and the codes are trained on a sample."""
        sampled = np.flatnonzero(store.table.alive)
        if len(sampled) > TRAIN_DOCUMENTS:
            sampled = np.sort(np.random.default_rng(0).choice(sampled, TRAIN_DOCUMENTS, replace=False))
        sample = store.read(sampled)
        encoder = FdeEncoder(config, sample.vectors.mean(axis=0, dtype=np.float64) if config.centred else None)
        encodings = encoder.encode_documents(sample.vectors, sample.offsets)
        index = build_index(encodings, codes, "inner_product", rows=store.table.rows[sampled])
        float16 = GrowingArray(np.empty((0, config.size), dtype=np.float16), folder) if keeps_encodings else None
        fde_index = cls(store, encoder, index, float16)
        fde_index.add(0, indexed=sampled)
        return fde_index

    def add(self, first: int, indexed: np.ndarray | None = None) -> None:
        """Encode the store's positions from ``first``; the positions ``indexed`` are in the faiss index already."""
        table, missing = self._store.table, self._store.table.alive.copy()
        if indexed is not None:
            missing[indexed] = False
        for start in range(first, len(table.rows), ENCODE_BLOCK):
            positions = np.arange(start, min(start + ENCODE_BLOCK, len(table.rows)))
            if self._encodings is None:
                positions = positions[missing[positions]]
            documents = self._store.read(positions)
            encodings = self.encoder.encode_documents(documents.vectors, documents.offsets)
            if self._encodings is not None:
                self._encodings.append(encodings)
            self._index.add(table.rows[positions[missing[positions]]], encodings[missing[positions]])

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` from the faiss index."""
        self._index.remove(rows)

    def retrieve(
        self, query: np.ndarray, weights: np.ndarray | None, count: int, scanned: int, allowed: np.ndarray | None
    ) -> np.ndarray:
        """Return the positions (m,) of the ``count`` best documents, ascending by row.

        Args:
            query: (q, d) float32.
            weights: (q,), the weights of its rows, or None.
            count: Maximum of m.
            scanned: Documents that the faiss index passes to the float16 encodings, if these are kept.
            allowed: The only rows that may match, or None.
        """
        encoding = self.encoder.encode_queries(query, np.array([0, len(query)]), weights)
        rows, _ = self._index.search(encoding, count if self._encodings is None else scanned, allowed).of(0)
        positions = self._store.find(rows)
        if len(positions) > count:
            scores = self._rescore(encoding[0], positions)
            positions = positions[np.sort(np.argpartition(-scores, count)[:count])]
        return positions

    def _rescore(self, encoding: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the dot products (m,) float32 of a query encoding (F,) with the float16 ones at ``positions``."""
        if self._encodings is None:
            raise RuntimeError("encodings are not kept")
        bits, out = self._encodings.values.view(np.uint16), np.empty(len(positions), dtype=np.float32)
        block = np.empty((RESCORE_BLOCK, len(encoding)), dtype=np.float32)
        for start in range(0, len(positions), RESCORE_BLOCK):
            part = positions[start : start + RESCORE_BLOCK]
            widen_rows(bits, part, part + 1, block)
            out[start : start + len(part)] = block[: len(part)] @ encoding
        return out

    def writers(self) -> Writers:
        """Return the files for `indexing.storage.engine_files.save_engine`."""
        rows, alive = self._index.row_arrays()
        arrays = {**self.encoder.matrices, "coderows": rows, "codealive": alive}
        if self._encodings is not None:
            arrays["encodings"] = self._encodings.values
        files: Writers = {f"{name}.npy": array_writer(values) for name, values in arrays.items()}
        return {**files, "codes.faiss": self._index.write}

    @classmethod
    def from_saved(
        cls, store: TokenStore, described: Mapping[str, Any], codes: str, saved: SavedEngine, folder: Path | None
    ) -> FdeIndex:
        """Return the index that `writers` and `FdeEncoder.describe` saved.

        Raises:
            CorruptFileError: The files contradict each other.
            IndexMismatchError: The matrices differ from their digests.
        """
        encoder = FdeEncoder.from_saved(described, saved.arrays(described["sha256"]))
        index = load_codes(saved, codes)
        encodings = None
        if "encodings.npy" in saved.files:
            mapped = np.asarray(read_array(saved.files["encodings.npy"], memory_map=True))
            encodings = GrowingArray(mapped, folder)
        fits = encodings is None or encodings.values.shape == (len(store.table.rows), encoder.size)
        check_codes(saved, index, store, encoder.size, fits=fits)
        return cls(store, encoder, index, encodings)


def load_codes(saved: SavedEngine, codes: str) -> FaissIndex:
    """Return the faiss index of document vectors that was saved with its rows."""
    arrays = saved.arrays(("coderows", "codealive"))
    table = RowTable(arrays["coderows"], arrays["codealive"])
    return load_index(saved.files["codes.faiss"], codes, "inner_product", table)


def check_codes(saved: SavedEngine, index: FaissIndex, store: TokenStore, size: int, *, fits: bool = True) -> None:
    """Raise `CorruptFileError` unless ``index`` has vectors of ``size`` dimensions for the documents of ``store``."""
    rows, alive = index.row_arrays()
    if not fits or not np.array_equal(np.sort(rows[alive]), store.table.ordered) or index.dim != size:
        path = saved.files["codes.faiss"].parent
        raise CorruptFileError(f"{path} holds vectors of other documents than its tokens; {ENGINE_REMEDY}")
