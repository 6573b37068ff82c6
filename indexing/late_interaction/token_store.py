"""Token vectors of many documents, ragged and compressed, in memory or memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.ragged import offsets_of, take_rows
from embedserve.token_pooling import pool_tokens
from embedserve.types import TokenEmbeddings
from indexing.base import unit
from indexing.late_interaction.maxsim import maxsim_blocks
from indexing.late_interaction.ragged_checks import check_token_vectors, check_tokens
from indexing.late_interaction.token_codecs import open_codec
from indexing.storage.engine_files import ENGINE_REMEDY, SavedEngine, array_writer, open_engine, read_array, save_engine
from indexing.storage.growing_array import GrowingArray
from indexing.storage.row_table import RowTable, as_allowed, as_rows, check_new, positions_in

Writers = dict[str, Callable[[Path], object]]


class TokenStore:
    """The token vectors of documents, by row number.

    Not thread-safe: do not read the store while it is being modified. Concurrent reads are safe. The position of a
    document is its number in insertion order; a removed document keeps its position, hidden, until a rebuild.

    Args:
        dim: Dimensions of a token vector, d.
        codec: How vectors are stored, one of `token_codecs.CODECS`. The residual codecs are trained on the first
            documents added, which should be some thousands, and require vectors of unit length.
        pooling: Reduces the stored token vectors by this factor, by averaging similar ones
            (Clavié et al. 2024, arXiv 2409.14683). Default: 1, keep all.
        folder: Where to keep added vectors, in unnamed files. Default: in memory.

    Raises:
        InputError: An unknown codec, or one that does not fit ``dim``; pooling below 1.
    """

    def __init__(self, dim: int, codec: str = "float16", *, pooling: int = 1, folder: Path | None = None) -> None:
        if type(pooling) is not int or pooling < 1:
            raise InputError(f"pooling must be an integer of at least 1, got {pooling!r}", field="pooling")
        self.dim, self.codec, self.pooling = dim, codec, pooling
        self.table = RowTable(np.empty(0, dtype=np.int64))
        self._positions: np.ndarray | None = None  # cached until the next add or remove
        self._codec = open_codec(codec, dim)
        self._offsets = GrowingArray(np.zeros(1, dtype=np.int64))
        self._ids = GrowingArray(np.empty(0, dtype=np.int32), folder)
        self._arrays = {name: GrowingArray(start, folder) for name, start in self._codec.empty().items()}

    def __len__(self) -> int:
        return len(self.table)

    @property
    def positions(self) -> np.ndarray:
        """(N,) int64, the positions of all documents, ascending by row."""
        if self._positions is None:
            self._positions = self.table.find_known(self.table.ordered)
        return self._positions

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions (m,) int64 of those of ``rows`` that exist, ascending by row."""
        matches = positions_in(self.table.ordered, np.unique(as_allowed(rows)))
        return self.positions[matches[matches >= 0]]

    @property
    def num_tokens(self) -> int:
        """Stored token vectors, those of removed documents included."""
        return len(self._ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored vectors, those of removed documents included."""
        return sum(array.values.nbytes for array in self._arrays.values())

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,) int64; on an error nothing is added.

        Raises:
            InputError: Another width, NaN, a document without tokens, a row that exists or is given twice.
        """
        vectors, offsets = check_tokens(documents, self.dim)
        new = as_rows(rows, len(documents))
        check_new(self.table.ordered, new)
        ids = np.asarray(documents.token_ids, dtype=np.int32)
        if self.pooling > 1:
            vectors, offsets, ids = _pooled(vectors, offsets, ids, self.pooling)
        if not len(new):
            return
        if self.num_tokens == 0:
            self._codec.train(vectors)
        for name, values in self._codec.encode(vectors).items():
            self._arrays[name].append(values)
        self._ids.append(ids)
        self._offsets.append(offsets[1:] + self._offsets.values[-1])
        self.table.append(new)
        self._positions = None

    def remove(self, rows: np.ndarray) -> None:
        """Hide ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        self.table.mark_removed(self.table.find_known(rows))
        self._positions = None

    def score(self, query: np.ndarray, positions: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the exact MaxSim (m,) float32 of a query with the documents at ``positions``.

        Args:
            query: (q, d) float32.
            positions: (m,) int64.
            weights: (q,), the weights of the query rows. Default: 1.

        Raises:
            InputError: Another width, NaN, another number of weights.
        """
        query = check_token_vectors(query, self.dim, "queries")
        starts, stops = self._extents(positions)
        offsets = offsets_of(stops - starts)
        arrays = self._values()

        def decoded(first: int, last: int, out: np.ndarray) -> np.ndarray:
            self._codec.decode(arrays, starts[first:last], stops[first:last], out)
            return out

        return maxsim_blocks(query, offsets, decoded, weights)

    def read(self, positions: np.ndarray) -> TokenEmbeddings:
        """Return the documents at ``positions`` (m,), decoded."""
        starts, stops = self._extents(positions)
        ids, offsets = self.read_ids(positions)
        out = np.empty((offsets[-1], self.dim), dtype=np.float32)
        self._codec.decode(self._values(), starts, stops, out)
        return TokenEmbeddings(out, offsets, ids, stops - starts, np.zeros(len(starts), dtype=bool))

    def read_ids(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids (T,) int64 of the documents at ``positions`` (m,), and their offsets (m + 1,)."""
        entries, offsets = take_rows(self._offsets.values, positions)
        return self._ids.values[entries].astype(np.int64), offsets

    def _extents(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the exclusive last token (m,) of each position."""
        offsets = self._offsets.values
        return offsets[positions], offsets[np.asarray(positions) + 1]

    def _values(self) -> dict[str, np.ndarray]:
        return {name: array.values for name, array in self._arrays.items()}

    def fields(self) -> dict[str, Any]:
        """Return the plain values that `from_saved` needs besides the files."""
        return {"dim": self.dim, "codec": self.codec, "pooling": self.pooling, "learnt": sorted(self._codec.learnt())}

    def writers(self) -> Writers:
        """Return the store's files for `indexing.storage.engine_files.save_engine`."""
        arrays = {
            **self._values(),
            **self._codec.learnt(),
            "ids": self._ids.values,
            "offsets": self._offsets.values,
            "rows": self.table.rows,
            "alive": self.table.alive,
        }
        return {f"{name}.npy": array_writer(values) for name, values in arrays.items()}

    @classmethod
    def from_saved(cls, fields: Mapping[str, Any], saved: SavedEngine, folder: Path | None = None) -> TokenStore:
        """Return the store of `fields` and `writers`; its vectors are memory-mapped.

        Raises:
            CorruptFileError: The files contradict each other.
        """
        store = cls(fields["dim"], fields["codec"], pooling=fields["pooling"], folder=folder)
        store._codec = open_codec(store.codec, store.dim, saved.arrays(fields["learnt"]))
        offsets, rows, alive = saved.arrays(("offsets", "rows", "alive")).values()
        store._offsets, store.table = GrowingArray(offsets), RowTable(rows, alive)
        store._ids = GrowingArray(_mapped(saved, "ids"), folder)
        store._arrays = {name: GrowingArray(_mapped(saved, name), folder) for name in store._arrays}
        sizes = {int(offsets[-1]), len(store._ids), *map(len, store._arrays.values())}
        if len(sizes) != 1 or not len(offsets) - 1 == len(rows) == len(alive):
            path = saved.files["offsets.npy"].parent
            raise CorruptFileError(f"{path} holds files that contradict each other; {ENGINE_REMEDY}")
        return store

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the store to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        save_engine(directory, "tokens", self.fields(), self.writers(), fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None, *, folder: Path | None = None) -> TokenStore:
        """Return the store that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        saved = open_engine(directory, "tokens", fingerprint)
        return cls.from_saved(saved.fields, saved, folder)


def _pooled(
    vectors: np.ndarray, offsets: np.ndarray, ids: np.ndarray, factor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors (T', d), offsets (N + 1,) and ids (T',) with similar tokens of each document averaged.

    The first token of a document is unchanged; the others get the id -1, because a mean covers several tokens.
    """
    parts = [pool_tokens(vectors[start:stop], factor) for start, stop in pairwise(offsets)]
    new_offsets = offsets_of([len(part) for part in parts])
    new_ids = np.full(new_offsets[-1], -1, dtype=np.int32)
    new_ids[new_offsets[:-1]] = ids[offsets[:-1]]
    return unit(np.concatenate(parts) if parts else vectors), new_offsets, new_ids


def _mapped(saved: SavedEngine, name: str) -> np.ndarray:
    """Return a file's array as a view of its memory map."""
    return np.asarray(read_array(saved.files[f"{name}.npy"], memory_map=True))
