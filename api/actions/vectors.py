"""Vectors for the fields of a collection: made by the models that the fields are of, or brought by the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from api.http.error_responses import ApiError
from api.service import Service
from embedserve.errors import IndexMismatchError, InputError
from embedserve.types import SparseEmbeddings, Task, TokenEmbeddings

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Field
    from indexing.collections.manifest import Manifest


@dataclass
class Made:
    """What the models made of texts.

    Attributes:
        vectors: By field.
        tokens: Read in all.
        truncated: Texts that were cut.
    """

    vectors: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0


def encoder_for(service: Service, manifest: Manifest, fingerprint: str) -> Encoder:
    """Return the loaded encoder that made vectors, or raise `IndexMismatchError`: none of those here did."""
    from indexing.collections.collection import check_encoder

    encoders = service.models.encoders()
    for encoder in encoders:
        if encoder.fingerprint == fingerprint:
            return encoder
    service.collections.check_encoders(manifest.name, manifest)
    if encoders:
        check_encoder(manifest.name, manifest, encoders[0])
    names = ", ".join(key for key, kept in manifest.fields.items() if kept.fingerprint == fingerprint)
    message = f"collection {manifest.name!r}: the model that made {names} is not loaded here; load it, or send vectors"
    raise IndexMismatchError(message, field="collection")


async def embedded(
    service: Service,
    manifest: Manifest,
    names: Sequence[str],
    texts: Sequence[str],
    task: Task,
    *,
    field: str,
    priority: str | None = None,
) -> Made:
    """Return the vectors of texts for fields that are not words, one pass of each model.

    Args:
        service: Whose models make them.
        manifest: Of the collection.
        names: Of the fields.
        texts: None of them blank.
        task: What they are.
        field: What an error calls them.
        priority: In the queue.

    Raises:
        ApiError: 422, a field takes vectors that the request must bring.
        IndexMismatchError: The model of a field is not loaded.
    """
    made = Made()
    cut = np.zeros(len(texts), dtype=bool)
    fields = {name: manifest.fields[name] for name in names}
    for fingerprint in dict.fromkeys(wanted.fingerprint for wanted in fields.values()):
        of_model = {name: wanted for name, wanted in fields.items() if wanted.fingerprint == fingerprint}
        if not fingerprint:
            message = f"no model makes the vectors of {', '.join(of_model)}; send them as 'vectors'"
            raise ApiError(422, "vectors_missing", message, param="vectors")
        encoder = encoder_for(service, manifest, fingerprint)
        found = await service.embed(texts, task, field=field, model=encoder.fingerprint, priority=priority)
        made.tokens += int(found.tokens.sum())
        cut |= found.truncated
        outputs: dict[str, Any] = {
            "dense": found.dense and found.dense.vectors, "multi": found.multi, "sparse": found.sparse,
        }  # fmt: skip
        for name, wanted in of_model.items():
            if outputs[wanted.output] is None:
                message = f"{encoder.name} makes no {wanted.output} vectors, which field {name!r} holds"
                raise ApiError(422, f"no_{wanted.output}_vectors", message)
            made.vectors[name] = outputs[wanted.output]
    made.truncated = int(cut.sum())
    return made


def brought(fields: Mapping[str, Field], given: Sequence[Mapping[str, Any]], place: str) -> dict[str, Any]:
    """Return vectors that a request brings, by field.

    Args:
        fields: Of the collection.
        given: Of each text or document, by field; all of the same fields.
        place: What an error calls them, with ``{}`` for the number of the one at fault.

    Raises:
        InputError: An unknown field, or values of another kind, width or number.
    """
    made = {}
    for name in dict.fromkeys(name for values in given for name in values):
        if name not in fields or fields[name].output == "words":
            known = ", ".join(key for key, kept in fields.items() if kept.output != "words")
            raise InputError(f"vectors.{name}: there is no such field; there are {known}", field=f"vectors.{name}")
        values = []
        for number, one in enumerate(given):
            where = f"{place.format(number)}.{name}"
            if name not in one:
                raise InputError(f"{where} is missing; others of the request bring it", field=where)
            values.append(_READERS[fields[name].output](one[name], fields[name].dim, where))
        made[name] = _JOINED[fields[name].output](values)
    return made


def _dense(value: Any, dim: int, where: str) -> np.ndarray:
    return _numbers(value, (dim,), where, f"a list of {dim} numbers")


def _multi(value: Any, dim: int, where: str) -> TokenEmbeddings:
    rows = _numbers(value, (None, dim), where, f"a list of token vectors of {dim} numbers")
    count, one = len(rows), np.array([len(rows)], dtype=np.int64)
    ids = np.full(count, -1, dtype=np.int64)
    return TokenEmbeddings(rows, np.array([0, count], dtype=np.int64), ids, one, np.zeros(1, dtype=bool))


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
    nothing = np.zeros(1, dtype=np.int64)
    offsets = np.array([0, len(entries)], dtype=np.int64)
    indices = np.array(entries, dtype=np.int64)[order]
    return SparseEmbeddings(indices, weights[order], offsets, nothing, nothing.astype(bool))


def _numbers(value: Any, shape: tuple[int | None, ...], where: str, wanted: str) -> np.ndarray:
    try:
        array = np.asarray(value if isinstance(value, list) else None, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not fits or (not array.shape[0] and shape[0] is None) or not np.isfinite(numbers).all():
        raise InputError(f"{where} must be {wanted}, all of them finite", field=where)
    return numbers


_READERS: dict[str, Any] = {"dense": _dense, "multi": _multi, "sparse": _sparse}
_JOINED: dict[str, Any] = {
    "dense": np.stack, "multi": TokenEmbeddings.concatenate, "sparse": SparseEmbeddings.concatenate,
}  # fmt: skip
