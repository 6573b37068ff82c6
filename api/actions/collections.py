"""Create, describe and drop collections; called in a thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from api.http.error_responses import ApiError
from api.schemas.collections import CreateRequest, FieldRequest
from api.service import Service
from embedserve.errors import InputError

if TYPE_CHECKING:
    from indexing import Collection, Field
    from indexing.collections.manifest import Manifest


def create(service: Service, request: CreateRequest) -> Manifest:
    """Create an empty collection.

    Raises:
        ApiError: 409, the name is that of a collection or an alias.
        InputError: The fields are invalid.
    """
    from indexing import create_collection
    from indexing.collections.aliases import list_aliases
    from indexing.collections.catalog import collection_path
    from indexing.collections.collection_build import check_options
    from indexing.collections.manifest import MANIFEST
    from indexing.segments.fields import default_fields

    data_dir, name = service.settings.data_dir, request.name
    directory = collection_path(data_dir, name)
    if (directory / MANIFEST).exists() or name in list_aliases(data_dir):
        message = f"{name!r} is the name of a collection or an alias; choose another name, or delete it"
        raise ApiError(409, "already_exists", message, param="name")
    if request.fields is None:
        fields = default_fields(service.model(request.model).encoder, index=request.index, metric=request.metric)
        check_options(fields, 1, None)
    else:
        fields = {}
        for key, requested in request.fields.items():
            try:
                fields[key] = field_for(service, key, requested, request.model)
                check_options({key: fields[key]}, 1, None)
            except InputError as error:
                inside = (error.field or "").removeprefix(f"fields.{key}").removeprefix(".")
                raise InputError(error.message, field=".".join(filter(None, ["fields", key, inside]))) from None
    return create_collection(directory, fields)


def field_for(service: Service, key: str, requested: FieldRequest, model: str | None) -> Field:
    """Return the field of a request."""
    from indexing import Field
    from indexing.segments.fields import WORDS, field_of

    if requested.output == "words":
        return replace(WORDS, index=requested.index)
    if requested.model is None and requested.dim is not None:
        return Field(requested.output, requested.dim, requested.index, requested.metric)
    encoder = service.model(requested.model or model).encoder
    if requested.output not in encoder.outputs:
        supported = " and ".join(encoder.outputs)
        message = (
            f"fields.{key}.output is {requested.output!r}, but {encoder.name} supports {supported}; set another model"
        )
        raise InputError(message, field=f"fields.{key}.output")
    if requested.dim is not None and requested.output != "sparse":
        message = f"fields.{key}.dim is set by the model to {encoder.dim}; omit dim or model"
        raise InputError(message, field=f"fields.{key}.dim")
    return field_of(encoder, requested.output, index=requested.index, metric=requested.metric, dim=requested.dim or 0)


def details(service: Service, name: str) -> dict[str, Any]:
    """Return the description of a collection."""
    with service.collections.use(name) as collection:
        return described(service, collection)


def described(service: Service, collection: Collection) -> dict[str, Any]:
    """Return the description of an open collection."""
    from indexing.collections.aliases import list_aliases
    from indexing.storage.files import file_bytes, folder_bytes

    manifest, directory, key = collection.manifest, collection.directory, collection.name
    segments = []
    for entry in manifest.segments:
        folder = directory / "segments" / entry.name
        deleted = entry.dead.count if entry.dead is not None else 0
        segments.append(
            {
                "name": entry.name,
                "documents": entry.live,
                "deleted": deleted,
                "indexes": dict(entry.kinds),
                "bytes": folder_bytes(folder),
            }
        )
    shown = ("output", "dim", "index", "metric", "encoder", "fingerprint")
    return {
        "name": key,
        "documents": len(collection),
        "truncated": manifest.truncated,
        "created": manifest.created,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "fields": {name: {what: getattr(field, what) for what in shown} for name, field in manifest.fields.items()},
        "segments": segments,
        "bytes": sum(segment["bytes"] for segment in segments),
        "log_bytes": file_bytes(directory / manifest.wal),
        "aliases": sorted(alias for alias, of in list_aliases(service.settings.data_dir).items() if of == key),
        "writing": service.collections.is_written(key),
    }


def drop(service: Service, name: str) -> None:
    """Delete a collection; its snapshots are kept."""
    from indexing.collections.removal import drop_collection

    with service.writers.reserved(name, "it is being deleted"):
        drop_collection(service.settings.data_dir, name)
        service.collections.forget(name)
