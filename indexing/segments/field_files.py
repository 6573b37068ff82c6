"""The files of one field of a segment: written batch by batch, opened as an engine, read back for merging.

A dense field is ``NAME.npy`` with the vectors as they came, and unless it is exact the folder ``NAME/`` with the faiss
index over them; all other fields are a folder of their engine.
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
    """Takes the values of a field batch by batch; then `flush`, `index` and `finish` in this order."""

    @abstractmethod
    def append(self, values: Any) -> None:
        """Take the values of the next documents."""

    def flush(self) -> None:  # noqa: B027 - most have nothing to do
        """Write what is still in memory and will be read again."""

    def index(self, progress: Progress) -> None:  # noqa: B027
        """Build what takes long, without writing."""

    @abstractmethod
    def finish(self) -> str:
        """Write the rest, and return the kind of index that was built."""

    def close(self) -> None:  # noqa: B027
        """Give files back; what was not finished is not wanted."""


def field_writer(folder: Path, name: str, field: Field, *, strict: bool = True) -> FieldWriter:
    """Return what writes the field ``name`` of the segment in ``folder``.

    ``strict`` says whether too few documents for a kind of index are an error; else they get another kind.
    """
    if field.output == "dense":
        return DenseWriter(folder, name, field, strict)
    kinds: dict[str, Callable[[Path, str, Field], FieldWriter]]
    kinds = {"multi": MultiWriter, "sparse": SparseWriter, "words": WordsWriter}
    return kinds[field.output](folder, name, field)


class DenseWriter(FieldWriter):
    """Dense vectors into a file, then a faiss index over that file."""

    def __init__(self, folder: Path, name: str, field: Field, strict: bool) -> None:
        self._path, self._index_folder, self._field, self._strict = folder / f"{name}.npy", folder / name, field, strict
        self._rows = VectorWriter(self._path, field.dim)
        self._index: FaissIndex | None = None

    def append(self, values: np.ndarray) -> None:
        """Take vectors (n, d)."""
        self._rows.append(values)

    def flush(self) -> None:
        """Write the number of vectors."""
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
        """Give the file back."""
        self._rows.close()


class MultiWriter(FieldWriter):
    """Token vectors into an engine whose values wait in files without names."""

    def __init__(self, folder: Path, name: str, field: Field) -> None:
        from indexing.late_interaction.exact_multi import ExactMultiIndex
        from indexing.late_interaction.muvera import MuveraIndex

        self._folder, self._field = folder / name, field
        exact = field.index == EXACT
        self._index: Any = (ExactMultiIndex if exact else MuveraIndex)(field.dim, folder=folder)
        self._count = 0

    def append(self, values: TokenEmbeddings) -> None:
        """Take the token vectors of n documents."""
        self._index.add(np.arange(self._count, self._count + len(values)), values)
        self._count += len(values)

    def finish(self) -> str:
        """Write the engine."""
        self._index.save(self._folder, self._field.fingerprint)
        return str(self._index.kind)


class SparseWriter(FieldWriter):
    """Sparse vectors, in memory until the end."""

    def __init__(self, folder: Path, name: str, field: Field) -> None:
        self._folder, self._field = folder / name, field
        self._parts: list[SparseEmbeddings] = []

    def append(self, values: SparseEmbeddings) -> None:
        """Take the sparse vectors of n documents."""
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
    """The words of texts, in sorted runs until the end."""

    def __init__(self, folder: Path, name: str, field: Field) -> None:
        self._folder = folder / name
        self._words = WordRuns(folder)

    def append(self, values: list[str]) -> None:
        """Take n texts."""
        self._words.append(values)

    def finish(self) -> str:
        """Write the words."""
        self._words.save(self._folder)
        return "words"

    def close(self) -> None:
        """Give the file back."""
        self._words.close()


def open_field(folder: Path, name: str, field: Field, kind: str) -> Any:
    """Return the engine of a field, read only.

    Args:
        folder: Of the segment; ``NAME.npy`` was checked, the engine's own files are checked here.
        name: Of the field.
        field: What it should be.
        kind: What `FieldWriter.finish` returned.

    Raises:
        CorruptFileError, IndexMismatchError, NotFoundError: As `indexing.storage.engine_files.open_engine`.
    """
    place, fingerprint = folder / name, field.fingerprint
    if field.output == "words":
        return SavedWords(place)
    if field.output == "sparse":
        from indexing.engines.sparse_index import SparseIndex

        return SparseIndex.load(place, fingerprint)
    if field.output == "multi":
        from indexing.late_interaction.exact_multi import ExactMultiIndex
        from indexing.late_interaction.muvera import MuveraIndex

        engine: type[ExactMultiIndex] | type[MuveraIndex] = MuveraIndex if kind == MuveraIndex.kind else ExactMultiIndex
        return engine.load(place, fingerprint)
    if kind == EXACT:
        return ExactIndex(read_vectors(folder / f"{name}.npy"), field.metric)
    from indexing.engines.faiss_index import FaissIndex

    return FaissIndex.load(place, fingerprint)


def read_vectors(path: Path) -> np.ndarray:
    """Return the vectors (N, d) float32 of a ``.npy`` file, or raise `CorruptFileError`."""
    vectors = read_array(path)
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise CorruptFileError(f"{path} holds no vectors but {vectors.dtype} of shape {vectors.shape}; rebuild it")
    return vectors


def take(field: Field, engine: Any, rows: np.ndarray) -> Vectors:
    """Return the vectors at ``rows`` (m,) of a field of token or sparse vectors, in that order, as they are kept."""
    if field.output == "multi":
        index: MultiIndex = engine
        return index.store.read(index.store.table.find_known(rows))
    vectors: SparseEmbeddings = engine.take(rows)
    return vectors
