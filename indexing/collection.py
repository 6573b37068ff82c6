"""A collection: documents, their vectors and an index over them, ready to be searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, EmbedserveError, IndexMismatchError, InputError, NotFoundError
from embedserve.spec import spec_difference
from indexing.base import TextEncoder, VectorIndex, plain_spec
from indexing.catalog import check_name, unknown_collection
from indexing.corpus import Document
from indexing.documents import DocumentStore
from indexing.exact import ExactIndex
from indexing.faiss_index import load_index
from indexing.manifest import REMEDY, Manifest, check_files, read_manifest

MAX_K = 1000
DOCUMENTS = "documents.sqlite"
VECTORS = "vectors.npy"
INDEX = "index.faiss"


@dataclass(frozen=True)
class Hit:
    """A document that was found; a higher score is better."""

    id: str
    score: float
    text: str
    title: str
    metadata: Mapping[str, Any]


class Collection:
    """An opened collection. It stays what it was when it was opened, whatever is built afterwards.

    Safe to search from many threads, as far as the encoder is.
    """

    def __init__(
        self, name: str, manifest: Manifest, index: VectorIndex, documents: DocumentStore, encoder: TextEncoder | None
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.index = index
        self.documents = documents
        self.encoder = encoder

    @classmethod
    def open(cls, directory: Path | str, encoder: TextEncoder | None = None) -> Collection:
        """Check every file against the manifest, then load.

        Args:
            directory: `catalog.collection_path(data_dir, name)`.
            encoder: The encoder for `search`; `search_vectors` works without.

        Raises:
            NotFoundError: There is no such collection.
            CorruptFileError: A file is missing, damaged, or of another format.
            IndexMismatchError: The collection was built by another encoder.
        """
        directory = Path(directory)
        check_name(directory.name)
        manifest = published(directory)
        while True:
            if encoder is not None:
                check_encoder(directory.name, manifest, encoder)
            try:
                index, documents = load(directory, manifest)
            except CorruptFileError:
                newer = published(directory)
                if newer.version == manifest.version:
                    raise
                manifest = newer  # a build replaced the files while they were being read
            else:
                return cls(directory.name, manifest, index, documents, encoder)

    def __len__(self) -> int:
        return self.manifest.count

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return the best documents for each query, best first.

        Args:
            queries: Texts, none of them blank.
            k: Hits for each query, 1 to 1000; fewer where the collection is smaller.

        Raises:
            InputError: ``field`` is ``query`` or ``top_k``.
        """
        check_k(k)
        if isinstance(queries, str):
            raise InputError("queries must be a list of texts, got one string", field="query")
        if not queries:
            raise InputError("there is no query", field="query")
        for number, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                what = "empty" if isinstance(query, str) else f"of type {type(query).__name__}, not a string"
                raise InputError(f"query {number} is {what}", field="query")
        if self.encoder is None:
            raise EmbedserveError(f"collection {self.name!r} was opened without an encoder; use search_vectors")
        return self.search_vectors(self.encoder.embed(list(queries), task="query").vectors, k)

    def search_vectors(self, vectors: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """Return the best documents for each query vector (Q, d) float32, best first; else as `search`."""
        hits = self.index.search(vectors, check_k(k))
        found = [hits.of(query) for query in range(len(hits))]
        distinct = sorted({int(row) for rows, _ in found for row in rows})
        documents = dict(zip(distinct, self.documents.get(distinct), strict=True))
        return [
            [to_hit(documents[int(row)], float(score)) for row, score in zip(rows, scores, strict=True)]
            for rows, scores in found
        ]

    def close(self) -> None:
        """Give the files back."""
        self.documents.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def to_hit(document: Document, score: float) -> Hit:
    """Return ``document`` as a hit."""
    return Hit(document.id, score, document.text, document.title, document.metadata)


def check_k(k: int) -> int:
    """Return ``k`` if that many hits may be asked for, else raise `InputError`."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise InputError(f"top_k must be a whole number from 1 to {MAX_K}, got {k!r}", field="top_k")
    return k


def published(directory: Path) -> Manifest:
    """Return the manifest of a collection, or raise `NotFoundError` naming those there are."""
    try:
        return read_manifest(directory)
    except NotFoundError:
        raise unknown_collection(directory) from None


def check_encoder(name: str, manifest: Manifest, encoder: TextEncoder) -> None:
    """Raise `IndexMismatchError` unless the encoder's vectors may be compared with the collection's."""
    if manifest.fingerprint == encoder.fingerprint:
        return
    differing = spec_difference(manifest.spec, plain_spec(encoder))
    what = ", ".join(differing) or "the weights of the backbone"
    raise IndexMismatchError(
        f"collection {name!r} was built by encoder {manifest.encoder!r}, "
        f"which differs from {encoder.name!r} in {what}; "
        "rebuild it with `embedserve index build`, or load the encoder it was built by",
        field="collection",
    )


def load(directory: Path, manifest: Manifest) -> tuple[VectorIndex, DocumentStore]:
    """Return the index and the documents of a collection, every file checked first; else `CorruptFileError`."""
    folder = directory / manifest.version
    for check in check_files(directory, manifest):
        if not check.ok:
            raise CorruptFileError(f"{directory / check.name} {check.problem}; {REMEDY}", field="collection")
    index: VectorIndex
    if manifest.index == "exact":
        index = ExactIndex(read_vectors(folder / VECTORS), manifest.metric)
    else:
        index = load_index(folder / INDEX, manifest.index, manifest.metric)
    documents = DocumentStore(folder / DOCUMENTS)
    if not (len(index) == len(documents) == manifest.count and index.dim == manifest.dim):
        documents.close()
        raise CorruptFileError(
            f"{folder}: the index has {len(index)} rows of {index.dim} numbers, "
            f"the database {len(documents)} documents, the manifest {manifest.count} of {manifest.dim}; {REMEDY}"
        )
    return index, documents


def read_vectors(path: Path) -> np.ndarray:
    """Return the vectors (N, d) float32 of a ``.npy`` file, or raise `CorruptFileError`."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFileError(f"{path} is not readable: {error}; {REMEDY}") from None
