"""The files of one field of a segment: written batch by batch, opened as an engine, read back for merges.

A dense field is ``NAME.npy`` with the original vectors, plus the folder ``NAME/`` with the faiss index unless it is
exact; every other field is a folder of its engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.types import SparseEmbeddings, TokenEmbeddings
from indexing.engines.bm25_postings import SavedWords
from indexing.engines.bm25_runs import WordRuns
from indexing.engines.exact import ExactIndex
from indexing.segments.fields import Field, Vectors
from indexing.segments.vectors_file import VectorWriter
from indexing.storage.engine_files import read_array

if TYPE_CHECKING:
    from indexing.engines.faiss_index import FaissIndex
    from indexing.late_interaction.multi_index import MultiIndex

Progress = Callable[[int], None]
EXACT = "exact"


class FieldWriter(ABC):
    """Writes the values of a field: `append` for each batch, then `flush`, `index` and `finish`."""

    @abstractmethod
    def append(self, values: Any) -> None:
        """Append the values of the next documents."""

    def flush(self) -> None:  # noqa: B027 - most have nothing to do
        """Write buffered values that `index` reads."""

    def index(self, progress: Progress) -> None:  # noqa: B027
        """Build the index in memory."""

    @abstractmethod
    def finish(self) -> str:
        """Write the rest, and return the kind of the index."""

    def close(self) -> None:  # noqa: B027
        """Close files; unfinished ones are discarded."""


def field_writer(folder: Path, name: str, field: Field, *, strict: bool = True) -> FieldWriter:
    """Return the writer of the field ``name`` of the segment in ``folder``; see `SegmentWriter` for ``strict``."""
    if field.output == "dense":
        return DenseWriter(folder, name, field, strict)
    kinds: dict[str, Callable[[Path, str, Field], FieldWriter]]
    kinds = {"multi": MultiWriter, "sparse": SparseWriter, "words": WordsWriter}
    return kinds[field.output](folder, name, field)


class DenseWriter(FieldWriter):
    """Writes dense vectors to a file, then a faiss index over that file."""

    def __init__(self, folder: Path, name: str, field: Field, strict: bool) -> None:
        self._path, self._index_folder, self._field, self._strict = folder / f"{name}.npy", folder / name, field, strict
        self._rows = VectorWriter(self._path, field.dim)
        self._index: FaissIndex | None = None

    def append(self, values: np.ndarray) -> None:
        """Append vectors (n, d)."""
        self._rows.append(values)

    def flush(self) -> None:
        """Complete the file of vectors."""
        self._rows.finish()

    def index(self, progress: Progress) -> None:
        """Build the index, unless the field is exact."""
        if self._field.index == EXACT:
            return
        from indexing.engines.faiss_index import build_index

        vectors = np.load(self._path, mmap_mode="r", allow_pickle=False)
        build = partial(build_index, vectors, metric=self._field.metric, progress=lambda done, _: progress(done))
        try:
            self._index = build(self._field.index)
        except InputError as error:
            if self._strict or error.field != "index":
                raise
            self._index = build("auto")

    def finish(self) -> str:
        """Write the index."""
        if self._index is None:
            return EXACT
        self._index.save(self._index_folder, self._field.fingerprint)
        return self._index.kind

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


class MultiWriter(FieldWriter):
    """Writes token vectors to an engine that buffers them in unnamed temporary files."""

    def __init__(self, folder: Path, name: str, field: Field) -> None:
        from indexing.late_interaction.exact_multi import ExactMultiIndex
        from indexing.late_interaction.muvera import MuveraIndex

        self._folder, self._field = folder / name, field
        exact = field.index == EXACT
        self._index: Any = (ExactMultiIndex if exact else MuveraIndex)(field.dim, folder=folder)
        self._count = 0

    def append(self, values: TokenEmbeddings) -> None:
        """Append the token vectors of n documents."""
        self._index.add(np.arange(self._count, self._count + len(values)), values)
        self._count += len(values)

    def finish(self) -> str:
        """Write the engine."""
        self._index.save(self._folder, self._field.fingerprint)
        return str(self._index.kind)


class SparseWriter(FieldWriter):
    """Writes sparse vectors; buffers them in memory until `finish`."""

    def __init__(self, folder: Path, name: str, field: Field) -> None:
        self._folder, self._field = folder / name, field
        self._parts: list[SparseEmbeddings] = []

    def append(self, values: SparseEmbeddings) -> None:
        """Append the sparse vectors of n documents."""
        self._parts.append(values)

    def finish(self) -> str:
        """Write the engine."""
        from indexing.engines.sparse_index import SparseIndex

        index = SparseIndex(self._field.dim)
        if self._parts:
            values = SparseEmbeddings.concatenate(self._parts)
            index.add(np.arange(len(values)), values)
        index.save(self._folder, self._field.fingerprint)
        return index.kind


class WordsWriter(FieldWriter):
    """Writes the words of texts; buffers them in sorted runs until `finish`."""

    def __init__(self, folder: Path, name: str, field: Field) -> None:
        self._folder = folder / name
        self._words = WordRuns(folder)

    def append(self, values: list[str]) -> None:
        """Append n texts."""
        self._words.append(values)

    def finish(self) -> str:
        """Write the words."""
        self._words.save(self._folder)
        return "words"

    def close(self) -> None:
        """Close the file."""
        self._words.close()


def open_field(folder: Path, name: str, field: Field, kind: str) -> Any:
    """Return the engine of a field, read only.

    Args:
        folder: Folder of the segment; ``NAME.npy`` is verified already, the files of the engine are verified here.
        name: Name of the field.
        field: Its definition.
        kind: Return value of `FieldWriter.finish`.

    Raises:
        CorruptFileError, IndexMismatchError, NotFoundError: As `indexing.storage.engine_files.open_engine`.
    """
    path, fingerprint = folder / name, field.fingerprint
    if field.output == "words":
        return SavedWords(path)
    if field.output == "sparse":
        from indexing.engines.sparse_index import SparseIndex

        return SparseIndex.load(path, fingerprint)
    if field.output == "multi":
        from indexing.late_interaction.exact_multi import ExactMultiIndex
        from indexing.late_interaction.muvera import MuveraIndex

        engine: type[ExactMultiIndex] | type[MuveraIndex] = MuveraIndex if kind == MuveraIndex.kind else ExactMultiIndex
        return engine.load(path, fingerprint)
    if kind == EXACT:
        return ExactIndex(read_vectors(folder / f"{name}.npy"), field.metric)
    from indexing.engines.faiss_index import FaissIndex

    return FaissIndex.load(path, fingerprint)


def read_vectors(path: Path) -> np.ndarray:
    """Return the vectors (N, d) float32 of a ``.npy`` file, or raise `CorruptFileError`."""
    vectors = read_array(path)
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise CorruptFileError(f"{path} contains {vectors.dtype} of shape {vectors.shape}, not vectors; rebuild it")
    return vectors


def take(field: Field, engine: Any, rows: np.ndarray) -> Vectors:
    """Return the stored token or sparse vectors at ``rows`` (m,), in that order."""
    if field.output == "multi":
        index: MultiIndex = engine
        return index.store.read(index.store.table.find_known(rows))
    vectors: SparseEmbeddings = engine.take(rows)
    return vectors
