"""Vectors for the fields of a collection: embedded by the loaded models, or parsed from the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from api.http.error_responses import ApiError
from api.inference.encode_options import EncodeOptions
from api.service import Service
from embedserve.errors import IndexMismatchError, InputError
from embedserve.types import SparseEmbeddings, Task, TokenEmbeddings

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Field
    from indexing.collections.manifest import Manifest


@dataclass
class EncodedFields:
    """Vectors that the models computed.

    Attributes:
        vectors: By field.
        tokens: Total number of tokens.
        truncated: Number of truncated texts.
    """

    vectors: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0


def encoder_for(service: Service, manifest: Manifest, fingerprint: str) -> Encoder:
    """Return the loaded encoder with a fingerprint; `IndexMismatchError` if it is not loaded."""
    from indexing.collections.encoder_match import check_encoder

    encoders = service.models.encoders()
    for encoder in encoders:
        if encoder.fingerprint == fingerprint:
            return encoder
    service.collections.check_encoders(manifest.name, manifest)
    if encoders:
        check_encoder(manifest.name, manifest, encoders[0])
    names = ", ".join(key for key, field in manifest.fields.items() if field.fingerprint == fingerprint)
    message = f"collection {manifest.name!r}: the model of {names} is not loaded; load it, or send vectors"
    raise IndexMismatchError(message, field="collection")


async def embed_fields(
    service: Service,
    manifest: Manifest,
    names: Sequence[str],
    texts: Sequence[str],
    task: Task,
    *,
    field: str,
    priority: str | None = None,
) -> EncodedFields:
    """Embed texts for fields that are not words, in one pass per model.

    Args:
        service: Owns the models.
        manifest: Of the collection.
        names: Names of the fields.
        texts: Without blank texts.
        task: ``query`` or ``document``.
        field: Name of ``texts`` in errors.
        priority: In the queue.

    Raises:
        ApiError: 422, a field has no model; the request must contain its vectors.
        IndexMismatchError: The model of a field is not loaded.
    """
    from indexing.segments.fields import fields_by_encoder

    encoded = EncodedFields()
    truncated = np.zeros(len(texts), dtype=bool)
    for fingerprint, group in fields_by_encoder({name: manifest.fields[name] for name in names}).items():
        if not fingerprint:
            message = f"field {', '.join(group)} has no model; send its vectors as 'vectors'"
            raise ApiError(422, "vectors_missing", message, param="vectors")
        encoder = encoder_for(service, manifest, fingerprint)
        options = EncodeOptions(task, priority=priority, field=field)
        rows, _ = await service.model(encoder.fingerprint).embed(texts, options)
        encoded.tokens += int(rows.tokens.sum())
        truncated |= rows.truncated
        outputs: dict[str, Any] = {
            "dense": rows.dense and rows.dense.vectors, "multi": rows.multi, "sparse": rows.sparse,
        }  # fmt: skip
        for name, spec in group.items():
            if outputs[spec.output] is None:
                message = f"{encoder.name} has no {spec.output} vectors, which field {name!r} needs"
                raise ApiError(422, f"no_{spec.output}_vectors", message)
            encoded.vectors[name] = outputs[spec.output]
    encoded.truncated = int(truncated.sum())
    return encoded


def parse_vectors(fields: Mapping[str, Field], items: Sequence[Mapping[str, Any]], path: str) -> dict[str, Any]:
    """Return the vectors of a request by field.

    Args:
        fields: Of the collection.
        items: JSON vectors by field, of each text or document; all with the same fields.
        path: Path of an item in errors, with ``{}`` for its number.

    Raises:
        InputError: An unknown field, or vectors of a wrong kind, dimension or number.
    """
    vectors = {}
    for name in dict.fromkeys(name for item in items for name in item):
        if name not in fields or fields[name].output == "words":
            known = ", ".join(key for key, field in fields.items() if field.output != "words")
            raise InputError(f"vectors.{name} is not a field with vectors; those are {known}", field=f"vectors.{name}")
        values = []
        for number, item in enumerate(items):
            where = f"{path.format(number)}.{name}"
            if name not in item:
                raise InputError(f"{where} is missing; send it for all items or for none", field=where)
            values.append(_READERS[fields[name].output](item[name], fields[name].dim, where))
        vectors[name] = _CONCATENATE[fields[name].output](values)
    return vectors


def _dense(value: Any, dim: int, where: str) -> np.ndarray:
    return _numbers(value, (dim,), where, f"a list of {dim} numbers")


def _multi(value: Any, dim: int, where: str) -> TokenEmbeddings:
    rows = _numbers(value, (None, dim), where, f"a list of token vectors of {dim} numbers")
    count, lengths = len(rows), np.array([len(rows)], dtype=np.int64)
    ids = np.full(count, -1, dtype=np.int64)
    return TokenEmbeddings(rows, np.array([0, count], dtype=np.int64), ids, lengths, np.zeros(1, dtype=bool))


def _sparse(value: Any, dim: int, where: str) -> SparseEmbeddings:
    if not isinstance(value, Mapping) or value.keys() != {"indices", "values"}:
        raise InputError(f"{where} must be an object of 'indices' and 'values'", field=where)
    entries = value["indices"]
    usable = isinstance(entries, list) and all(type(n) is int and 0 <= n < dim for n in entries)
    if not usable or len(set(entries)) != len(entries):
        message = f"{where}.indices must be distinct whole numbers from 0 to {dim - 1}"
        raise InputError(message, field=f"{where}.indices")
    weights = _numbers(
        value["values"], (len(entries),), f"{where}.values", f"{len(entries)} numbers, as many as indices"
    )
    if (weights < 0).any():
        raise InputError(f"{where}.values must not be negative", field=f"{where}.values")
    order = np.argsort(np.array(entries, dtype=np.int64))
    zero = np.zeros(1, dtype=np.int64)
    offsets = np.array([0, len(entries)], dtype=np.int64)
    indices = np.array(entries, dtype=np.int64)[order]
    return SparseEmbeddings(indices, weights[order], offsets, zero, zero.astype(bool))


def _numbers(value: Any, shape: tuple[int | None, ...], where: str, expected: str) -> np.ndarray:
    try:
        array = np.asarray(value if isinstance(value, list) else None, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not fits or (not array.shape[0] and shape[0] is None) or not np.isfinite(numbers).all():
        raise InputError(f"{where} must be {expected}, all of them finite", field=where)
    return numbers


_READERS: dict[str, Any] = {"dense": _dense, "multi": _multi, "sparse": _sparse}
_CONCATENATE: dict[str, Any] = {
    "dense": np.stack, "multi": TokenEmbeddings.concatenate, "sparse": SparseEmbeddings.concatenate,
}  # fmt: skip
