"""What a write does, and how it stands in the log: documents as JSON, vectors as the bytes they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from embedserve.errors import CorruptFileError
from embedserve.types import SparseEmbeddings, TokenEmbeddings
from indexing.segments.fields import Vectors
from indexing.sources.corpus import Document

SIZES = struct.Struct("<QQ")


@dataclass(frozen=True)
class Upsert:
    """Documents that take the place of those with their ids."""

    documents: Sequence[Document]
    vectors: Mapping[str, Vectors]
    truncated: int = 0

    @property
    def span(self) -> int:
        """How many numbers in the order of writing it takes."""
        return len(self.documents)


@dataclass(frozen=True)
class Delete:
    """The numbers (n,) int64 in the order of writing of documents to be deleted."""

    sequences: np.ndarray

    @property
    def span(self) -> int:
        """How many numbers in the order of writing it takes."""
        return 1


Operation = Upsert | Delete


def encode_operation(operation: Operation, metadata: Sequence[str] = ()) -> bytes:
    """Return an operation as bytes: sizes of the JSON and of the arrays, then both.

    ``metadata`` is that of the documents of an upsert, as JSON.
    """
    if isinstance(operation, Delete):
        arrays, head = [operation.sequences], {}
    else:
        arrays, layout = [], {}
        for name, vectors in operation.vectors.items():
            parts = _arrays_of(vectors)
            layout[name] = [type(vectors).__name__, [[str(part.dtype), list(part.shape)] for part in parts]]
            arrays += parts
        documents = [
            [document.id, document.title, document.text, orjson.Fragment(line)]
            for document, line in zip(operation.documents, metadata, strict=True)
        ]
        head = {"documents": documents, "vectors": layout, "truncated": operation.truncated}
    text = orjson.dumps(head)
    values = [np.ascontiguousarray(array).tobytes() for array in arrays]
    return b"".join([SIZES.pack(len(text), sum(map(len, values))), text, *values])


def decode_operations(payload: bytes) -> Iterator[Operation]:
    """Yield the operations of one frame."""
    place = 0
    try:
        while place < len(payload):
            text_size, values_size = SIZES.unpack_from(payload, place)
            place += SIZES.size
            head = orjson.loads(payload[place : place + text_size])
            place += text_size
            yield _decoded(head, payload[place : place + values_size])
            place += values_size
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise CorruptFileError(f"the log holds an operation that cannot be read: {error}") from None


def _decoded(head: Mapping[str, Any], values: bytes) -> Operation:
    if not head:
        return Delete(np.frombuffer(values, dtype=np.int64))
    vectors, place = {}, 0
    for name, (kind, parts) in head["vectors"].items():
        arrays = []
        for dtype, shape in parts:
            count = int(np.prod(shape))
            array = np.frombuffer(values, dtype=dtype, count=count, offset=place)
            arrays.append(array.reshape(shape))
            place += array.nbytes
        vectors[name] = _vectors_of(kind, arrays)
    documents = [Document(name, text, title, metadata) for name, title, text, metadata in head["documents"]]
    return Upsert(documents, vectors, head["truncated"])


def _arrays_of(vectors: Vectors) -> list[np.ndarray]:
    if isinstance(vectors, TokenEmbeddings):  # as they are kept
        return [vectors.vectors.astype(np.float16), vectors.offsets, vectors.token_ids.astype(np.int32)]
    if isinstance(vectors, SparseEmbeddings):
        return [vectors.indices.astype(np.int32), vectors.values, vectors.offsets]
    return [vectors]


def _vectors_of(kind: str, arrays: list[np.ndarray]) -> Vectors:
    if kind == TokenEmbeddings.__name__:
        values, offsets, ids = arrays
        lengths = np.diff(offsets)
        return TokenEmbeddings(values.astype(np.float32), offsets, ids, lengths, np.zeros(len(lengths), dtype=bool))
    if kind == SparseEmbeddings.__name__:
        indices, values, offsets = arrays
        nothing = np.zeros(len(offsets) - 1, dtype=np.int64)
        return SparseEmbeddings(indices.astype(np.int64), values, offsets, nothing, nothing.astype(bool))
    return arrays[0]
