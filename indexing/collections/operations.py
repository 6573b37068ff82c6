"""Write operations and their encoding in the log: documents as JSON, vectors as raw bytes."""

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
    """Insert documents, or replace those with the same id.

    Attributes:
        documents: The documents.
        metadata: The metadata of each as JSON, encoded once for the log and the metadata table.
        vectors: By field.
        truncated: Number of documents that an encoder truncated.
    """

    documents: Sequence[Document]
    metadata: Sequence[bytes]
    vectors: Mapping[str, Vectors]
    truncated: int = 0

    @property
    def span(self) -> int:
        """Number of sequence numbers it takes."""
        return len(self.documents)


@dataclass(frozen=True)
class Delete:
    """Delete the documents with the sequence numbers (n,) int64."""

    sequences: np.ndarray

    @property
    def span(self) -> int:
        """Number of sequence numbers it takes."""
        return 1


Operation = Upsert | Delete


def encode_operation(operation: Operation) -> bytes:
    """Encode an operation: sizes of the JSON and of the arrays, then both."""
    if isinstance(operation, Delete):
        arrays, head = [operation.sequences], {}
    else:
        arrays, layout = [], {}
        for name, vectors in operation.vectors.items():
            parts = _arrays_of(vectors)
            layout[name] = [type(vectors).__name__, [[str(part.dtype), list(part.shape)] for part in parts]]
            arrays += parts
        documents = [
            [document.id, document.title, document.text, orjson.Fragment(metadata)]
            for document, metadata in zip(operation.documents, operation.metadata, strict=True)
        ]
        head = {"documents": documents, "vectors": layout, "truncated": operation.truncated}
    text = orjson.dumps(head)
    values = [np.ascontiguousarray(array).tobytes() for array in arrays]
    return b"".join([SIZES.pack(len(text), sum(map(len, values))), text, *values])


def decode_operations(payload: bytes) -> Iterator[Operation]:
    """Yield the operations of a frame."""
    position = 0
    try:
        while position < len(payload):
            text_size, values_size = SIZES.unpack_from(payload, position)
            position += SIZES.size
            head = orjson.loads(payload[position : position + text_size])
            position += text_size
            yield _decoded(head, payload[position : position + values_size])
            position += values_size
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise CorruptFileError(f"the log contains an invalid operation: {error}") from None


def _decoded(head: Mapping[str, Any], values: bytes) -> Operation:
    if not head:
        return Delete(np.frombuffer(values, dtype=np.int64))
    vectors, position = {}, 0
    for name, (kind, parts) in head["vectors"].items():
        arrays = []
        for dtype, shape in parts:
            array = np.frombuffer(values, dtype=dtype, count=int(np.prod(shape)), offset=position)
            arrays.append(array.reshape(shape))
            position += array.nbytes
        vectors[name] = _vectors_of(kind, arrays)
    documents = [Document(name, text, title, metadata) for name, title, text, metadata in head["documents"]]
    return Upsert(documents, [orjson.dumps(d.metadata) for d in documents], vectors, head["truncated"])


def _arrays_of(vectors: Vectors) -> list[np.ndarray]:
    if isinstance(vectors, TokenEmbeddings):  # in the precision of segments
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
        zeros = np.zeros(len(offsets) - 1, dtype=np.int64)
        return SparseEmbeddings(indices.astype(np.int64), values, offsets, zeros, zeros.astype(bool))
    return arrays[0]
