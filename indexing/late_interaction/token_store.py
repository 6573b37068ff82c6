"""Token vectors of many documents, ragged and compressed, in memory or mapped from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.ragged import offsets_of, take_rows
from embedserve.types import TokenEmbeddings
from indexing.late_interaction.document_pooling import pooled
from indexing.late_interaction.maxsim import maxsim_blocks
from indexing.late_interaction.ragged_checks import check_token_vectors, check_tokens
from indexing.late_interaction.token_codecs import open_codec
from indexing.storage.engine_files import ENGINE_REMEDY, Opened, array_writer, open_engine, read_array, save_engine
from indexing.storage.growing_array import GrowingArray
from indexing.storage.row_table import RowTable, as_allowed, as_rows, check_new, places_in

Writers = dict[str, Callable[[Path], object]]


class TokenStore:
    """The token vectors of documents, each known by a row number.

    Safe to read from many threads, as long as nobody adds or removes. A document's place is its number in the order
    in which documents came; a removed one keeps its place, unseen, until the store is built anew.

    Args:
        dim: Numbers in a token vector, d.
        codec: How they are kept, one of `token_codecs.CODECS`; the residual ones learn from the first documents added,
            which should be some thousands, and take vectors of unit length.
        pooling: Keep the means of like tokens, one for so many (`embedserve.strategies.colbert.pool_tokens`); 1 keeps
            every token.
        folder: Where to keep what is added, in files without names; None keeps it in memory.

    Raises:
        InputError: An unknown codec, or one that does not fit ``dim``; pooling below 1.
    """

    def __init__(self, dim: int, codec: str = "float16", *, pooling: int = 1, folder: Path | None = None) -> None:
        if type(pooling) is not int or pooling < 1:
            raise InputError(f"pooling must be a whole number of at least 1, got {pooling!r}", field="pooling")
        self.dim, self.codec, self.pooling = dim, codec, pooling
        self.table = RowTable(np.empty(0, dtype=np.int64))
        self._places: np.ndarray | None = None  # until something is added or removed
        self._codec = open_codec(codec, dim)
        self._offsets = GrowingArray(np.zeros(1, dtype=np.int64))
        self._ids = GrowingArray(np.empty(0, dtype=np.int32), folder)
        self._arrays = {name: GrowingArray(start, folder) for name, start in self._codec.empty().items()}

    def __len__(self) -> int:
        return len(self.table)

    @property
    def places(self) -> np.ndarray:
        """(N,) int64, the places of the documents that are there, in the order of their rows."""
        if self._places is None:
            self._places = self.table.find_known(self.table.ordered)
        return self._places

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the places (m,) int64 of those of ``rows`` that are there, in the order of their rows."""
        wanted = as_allowed(rows)
        return self.table.find_known(wanted[places_in(self.table.ordered, wanted) >= 0])

    @property
    def num_tokens(self) -> int:
        """Token vectors kept, those of removed documents included."""
        return len(self._ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of the vectors as they are kept, those of removed documents included."""
        return sum(array.values.nbytes for array in self._arrays.values())

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,) int64; all of them or, with an error, none.

        Raises:
            InputError: Another width, NaN, a document without tokens, a row that is there already or given twice.
        """
        vectors, offsets = check_tokens(documents, self.dim)
        new = as_rows(rows, len(documents))
        check_new(self.table.ordered, new)
        ids = np.asarray(documents.token_ids, dtype=np.int32)
        if self.pooling > 1:
            vectors, offsets, ids = pooled(vectors, offsets, ids, self.pooling)
        if not len(new):
            return
        if self.num_tokens == 0:
            self._codec.train(vectors)
        for name, values in self._codec.encode(vectors).items():
            self._arrays[name].append(values)
        self._ids.append(ids)
        self._offsets.append(offsets[1:] + self._offsets.values[-1])
        self.table.append(new)
        self._places = None

    def remove(self, rows: np.ndarray) -> None:
        """Hide ``rows`` (n,); raise `NotFoundError` for a row that is not there, leaving everything as it was."""
        self.table.bury(self.table.find_known(rows))
        self._places = None

    def score(self, query: np.ndarray, places: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the exact MaxSim (m,) float32 of a query with the documents at ``places``.

        Args:
            query: (q, d) float32.
            places: (m,) int64.
            weights: (q,) of the query's rows; 1 by default.

        Raises:
            InputError: Another width, NaN, weights of another number.
        """
        query = check_token_vectors(query, self.dim, "queries")
        starts, stops = self._extents(places)
        offsets = offsets_of(stops - starts)
        arrays = self._values()

        def decoded(first: int, last: int, out: np.ndarray) -> np.ndarray:
            self._codec.decode(arrays, starts[first:last], stops[first:last], out)
            return out

        return maxsim_blocks(query, offsets, decoded, weights)

    def read(self, places: np.ndarray) -> TokenEmbeddings:
        """Return the documents at ``places`` (m,) as the codec keeps them."""
        starts, stops = self._extents(places)
        ids, offsets = self.read_ids(places)
        out = np.empty((offsets[-1], self.dim), dtype=np.float32)
        self._codec.decode(self._values(), starts, stops, out)
        return TokenEmbeddings(out, offsets, ids, stops - starts, np.zeros(len(starts), dtype=bool))

    def read_ids(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids (T,) int64 of the documents at ``places`` (m,), and their offsets (m + 1,)."""
        entries, offsets = take_rows(self._offsets.values, places)
        return self._ids.values[entries].astype(np.int64), offsets

    def _extents(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first token (m,) of each place and the one behind its last."""
        offsets = self._offsets.values
        return offsets[places], offsets[np.asarray(places) + 1]

    def _values(self) -> dict[str, np.ndarray]:
        return {name: array.values for name, array in self._arrays.items()}

    def fields(self) -> dict[str, Any]:
        """Return what opens the store again, besides its files, as plain values."""
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
    def from_opened(cls, fields: Mapping[str, Any], opened: Opened, folder: Path | None = None) -> TokenStore:
        """Return the store of `fields` and `writers`, its vectors mapped from their files.

        Raises:
            CorruptFileError: Files that do not fit each other.
        """
        store = cls(fields["dim"], fields["codec"], pooling=fields["pooling"], folder=folder)
        learnt = {name: read_array(opened.files[f"{name}.npy"]) for name in fields["learnt"]}
        store._codec = open_codec(store.codec, store.dim, learnt)
        offsets, rows, alive = (read_array(opened.files[f"{name}.npy"]) for name in ("offsets", "rows", "alive"))
        store._offsets, store.table = GrowingArray(offsets), RowTable(rows, alive)
        store._ids = GrowingArray(_mapped(opened, "ids"), folder)
        store._arrays = {name: GrowingArray(_mapped(opened, name), folder) for name in store._arrays}
        sizes = {int(offsets[-1]), len(store._ids), *map(len, store._arrays.values())}
        if len(sizes) != 1 or not len(offsets) - 1 == len(rows) == len(alive):
            path = opened.files["offsets.npy"].parent
            raise CorruptFileError(f"{path} holds files that do not fit each other; {ENGINE_REMEDY}")
        return store

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the store to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        save_engine(directory, "tokens", self.fields(), self.writers(), fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None, *, folder: Path | None = None) -> TokenStore:
        """Return the store that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        opened = open_engine(directory, "tokens", fingerprint)
        return cls.from_opened(opened.fields, opened, folder)


def _mapped(opened: Opened, name: str) -> np.ndarray:
    """Return a file's array as a plain view of its memory map."""
    return np.asarray(read_array(opened.files[f"{name}.npy"], memory_map=True))
