"""Write requests: operations that are prepared in the caller's thread and committed in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from embedserve.errors import InputError
from indexing.base import TextEncoder
from indexing.collections.group_commit import GroupedRequest
from indexing.collections.operations import Delete, Operation, Upsert, encode_operation
from indexing.collections.state import State
from indexing.collections.view import Location, find
from indexing.query.filters import Filter
from indexing.segments.fields import Field, Vectors, check_all_vectors, encode_documents
from indexing.segments.metadata_json import encode_metadata
from indexing.sources.corpus import Document

EncodedOperation = tuple[Operation, bytes]


class PendingWrite(GroupedRequest):
    """A write that waits to be committed with others.

    Args:
        prepare: Returns the operation and its encoding, given the state before the group; None if there is nothing to
            write.
        deletes: Whether it is applied before the other requests of its group.
    """

    def __init__(self, prepare: Callable[[State], EncodedOperation | None], *, deletes: bool) -> None:
        super().__init__()
        self.prepare, self.deletes = prepare, deletes
        self.result = 0
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Mark the request as done with an error."""
        self.error, self.done = error, True


def upsert_request(
    fields: Mapping[str, Field],
    documents: Sequence[Document],
    vectors: Mapping[str, Vectors] | None,
    encoders: Mapping[str, TextEncoder],
) -> PendingWrite:
    """Return the request that upserts documents, checked, embedded and encoded; see `Collection.upsert`."""
    check_unique(documents)
    metadata, truncated = [encode_metadata(document) for document in documents], 0
    if vectors is None:
        vectors, truncated = encode_documents(fields, encoders, documents)
    operation = Upsert(documents, metadata, check_all_vectors(fields, vectors, len(documents)), truncated)
    data = encode_operation(operation)
    return PendingWrite(lambda _: (operation, data), deletes=False)


def delete_ids_request(ids: Sequence[str]) -> PendingWrite:
    """Return the request that deletes documents by id."""
    distinct = list(dict.fromkeys(ids))
    return PendingWrite(lambda state: _delete(state, list(find(state.view, distinct).values())), deletes=True)


def delete_matching_request(condition: Filter) -> PendingWrite:
    """Return the request that deletes documents by filter."""

    def prepare(state: State) -> EncodedOperation | None:
        masks = [part.mask(condition) for part in state.view]
        locations = [
            (number, int(row))
            for number, mask in enumerate(masks)
            for row in (np.flatnonzero(mask) if mask is not None else ())
        ]
        return _delete(state, locations)

    return PendingWrite(prepare, deletes=True)


def _delete(state: State, locations: Sequence[Location]) -> EncodedOperation | None:
    if not locations:
        return None
    sequences = np.array([state.view[part].sequences[row] for part, row in locations], dtype=np.int64)
    operation = Delete(np.sort(sequences))
    return operation, encode_operation(operation)


def check_unique(documents: Sequence[Document]) -> None:
    """Raise `InputError` if two documents have the same id."""
    positions: dict[str, int] = {}
    for position, document in enumerate(documents):
        first = positions.setdefault(document.id, position)
        if first != position:
            message = f"documents {first + 1} and {position + 1} have the same id {document.id!r}"
            raise InputError(f"{message}; make ids unique in a request", field="id")
