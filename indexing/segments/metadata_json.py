"""The metadata of a document as JSON, checked so that every response can contain it."""

from __future__ import annotations

import json
from typing import Any

import orjson

from embedserve.errors import InputError
from indexing.sources.corpus import Document

NESTED = 8  # nesting levels of a response around metadata, with a margin


def encode_metadata(document: Document) -> bytes:
    """Return the metadata as JSON.

    Raises:
        InputError: The metadata cannot be part of a response; names the document and the field. Responses are written
            by orjson, which supports less than the standard library, so this is checked before the write.
    """
    try:
        encoded = orjson.dumps(_nested(document.metadata))[NESTED:-NESTED]
        if orjson.loads(encoded) == document.metadata:  # not NaN, a date or another type that orjson converts
            return encoded
    except TypeError:  # the slow path names the field
        pass
    for name, value in document.metadata.items():
        if problem := metadata_problem({name: value}):
            raise InputError(
                f"{document.prefix}metadata of document {document.id!r} is not JSON: field {name!r}: {problem}",
                field="metadata",
            )
    return json.dumps(dict(document.metadata), ensure_ascii=False).encode()


def metadata_problem(metadata: Any) -> str:
    """Return why ``metadata`` cannot be part of a response; empty if it can."""
    try:
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
        orjson.dumps(_nested(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def _nested(values: Any) -> Any:
    """Return ``values`` inside of `NESTED` lists, to test the nesting limit of orjson."""
    for _ in range(NESTED):
        values = [values]
    return values
