"""The first two stages of MUVERA: compressed encodings in a faiss index, and whole ones as float16."""

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
from indexing.storage.engine_files import ENGINE_REMEDY, Opened, array_writer, read_array
from indexing.storage.growing_array import GrowingArray
from indexing.storage.row_table import RowTable

TRAIN_DOCUMENTS = 8_192
ENCODE_BLOCK = 4_096  # documents encoded at a time: 160 MiB of 10,240 float32
RESCORE_BLOCK = 64  # encodings widened at a time


class FdeIndex:
    """The encodings of a store's documents; made by `build` or `from_opened`.

    Args:
        store: The token vectors that were encoded.
        encoder: What encoded them.
        index: The faiss index of their encodings, by row.
        encodings: (N, F) float16 by place; None where they are not kept.
    """

    def __init__(
        self, store: TokenStore, encoder: FdeEncoder, index: FaissIndex, encodings: GrowingArray | None
    ) -> None:
        self._store, self.encoder, self._index, self._encodings = store, encoder, index, encodings

    @classmethod
    def build(
        cls, store: TokenStore, config: FdeConfig, codes: str, *, keeps_encodings: bool, folder: Path | None
    ) -> FdeIndex:
        """Return the encodings of all documents of ``store``; mean token and codes are learnt from some thousands."""
        places = np.flatnonzero(store.table.alive)
        if len(places) > TRAIN_DOCUMENTS:
            places = np.sort(np.random.default_rng(0).choice(places, TRAIN_DOCUMENTS, replace=False))
        sample = store.read(places)
        encoder = FdeEncoder(config, sample.vectors.mean(axis=0, dtype=np.float64) if config.centred else None)
        encodings = encoder.encode_documents(sample.vectors, sample.offsets)
        index = build_index(encodings, codes, "inner_product", rows=store.table.rows[places])
        kept = GrowingArray(np.empty((0, config.size), dtype=np.float16), folder) if keeps_encodings else None
        made = cls(store, encoder, index, kept)
        made.add(0, done=places)
        return made

    def add(self, first: int, done: np.ndarray | None = None) -> None:
        """Encode the store's places from ``first`` on; those ``done`` are in the faiss index already."""
        table, wanted = self._store.table, self._store.table.alive.copy()
        if done is not None:
            wanted[done] = False
        for start in range(first, len(table.rows), ENCODE_BLOCK):
            places = np.arange(start, min(start + ENCODE_BLOCK, len(table.rows)))
            if self._encodings is None:
                places = places[wanted[places]]
            documents = self._store.read(places)
            encodings = self.encoder.encode_documents(documents.vectors, documents.offsets)
            if self._encodings is not None:
                self._encodings.append(encodings)
            self._index.add(table.rows[places[wanted[places]]], encodings[wanted[places]])

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` out of the faiss index."""
        self._index.remove(rows)

    def find(
        self, query: np.ndarray, weights: np.ndarray | None, kept: int, scanned: int, allowed: np.ndarray | None
    ) -> np.ndarray:
        """Return the places (m,) of the ``kept`` best documents, in the order of their rows.

        Args:
            query: (q, d) float32.
            weights: (q,) of its rows, or None.
            kept: m at most.
            scanned: Documents that the compressed encodings hand to the whole ones, where those are kept.
            allowed: The only rows that may be found, or None.
        """
        encoding = self.encoder.encode_queries(query, np.array([0, len(query)]), weights)
        wanted = kept if self._encodings is None else scanned
        rows, _ = self._index.search(encoding, wanted, allowed).of(0)
        places = self._store.find(rows)
        if len(places) > kept:
            scores = self._rescore(encoding[0], places)
            places = places[np.sort(np.argpartition(-scores, kept)[:kept])]
        return places

    def _rescore(self, encoding: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the dot products (m,) float32 of a query's encoding (F,) with the kept ones at ``places``."""
        if self._encodings is None:
            raise RuntimeError("encodings are not kept")
        bits, out = self._encodings.values.view(np.uint16), np.empty(len(places), dtype=np.float32)
        block = np.empty((RESCORE_BLOCK, len(encoding)), dtype=np.float32)
        for start in range(0, len(places), RESCORE_BLOCK):
            part = places[start : start + RESCORE_BLOCK]
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
    def from_opened(
        cls, store: TokenStore, described: Mapping[str, Any], codes: str, opened: Opened, folder: Path | None
    ) -> FdeIndex:
        """Return what `writers` and `FdeEncoder.describe` kept.

        Raises:
            CorruptFileError: Files that do not fit each other.
            IndexMismatchError: Matrices that are not the ones described.
        """
        matrices = {name: read_array(opened.files[f"{name}.npy"]) for name in described["sha256"]}
        encoder = FdeEncoder.from_saved(described, matrices)
        table = RowTable(*(read_array(opened.files[f"{name}.npy"]) for name in ("coderows", "codealive")))
        index = load_index(opened.files["codes.faiss"], codes, "inner_product", table)
        encodings = None
        if "encodings.npy" in opened.files:
            mapped = np.asarray(read_array(opened.files["encodings.npy"], memory_map=True))
            encodings = GrowingArray(mapped, folder)
        fits = encodings is None or encodings.values.shape == (len(store.table.rows), encoder.size)
        if not fits or not np.array_equal(table.ordered, store.table.ordered) or index.dim != encoder.size:
            path = opened.files["codes.faiss"].parent
            raise CorruptFileError(f"{path} holds encodings of other documents than its tokens; {ENGINE_REMEDY}")
        return cls(store, encoder, index, encodings)
