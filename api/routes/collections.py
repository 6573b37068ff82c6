"""/v1/collections and /v1/aliases: manage collections and their aliases."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from api.actions.collections import create, details, drop
from api.http.body import read_body
from api.http.routing import Operations
from api.responses.json_response import json_response
from api.routes.app_state import service_of
from api.routes.health import collection_values
from api.schemas.collections import (
    AliasesResponse,
    AliasRequest,
    CollectionDetail,
    CollectionsResponse,
    CompactRequest,
    CreateRequest,
    DeletedCollection,
)
from api.service import Service
from indexing.collections.catalog import NAME

operations = Operations("collections")


@operations.get(
    "/v1/collections",
    needs="read",
    operation_id="list_collections",
    summary="List collections",
    response=CollectionsResponse,
    errors=(500, 503),
)
async def list_collections(request: Request) -> Response:
    """Return every collection with its status."""
    states = await service_of(request).survey()
    return json_response({"collections": [collection_values(state) for state in states]})


@operations.post(
    "/v1/collections",
    needs="write",
    operation_id="create_collection",
    summary="Create a collection",
    status=201,
    bodies=[CreateRequest],
    response=CollectionDetail,
    errors=(404, 409, 422, 500, 503),
)
async def create_collection(request: Request) -> Response:
    """Create an empty collection. Default fields: dense vectors of the default model, and the words for BM25.

    A field with `dim` and without `model` stores the vectors that documents have.
    """
    body = await read_body(request, CreateRequest)
    service = service_of(request)
    manifest = await asyncio.to_thread(create, service, body)
    return json_response(await asyncio.to_thread(details, service, manifest.name), 201)


@operations.get(
    "/v1/collections/{name}",
    needs="read",
    operation_id="get_collection",
    summary="Describe a collection",
    response=CollectionDetail,
    errors=(404, 409, 422, 500, 503),
)
async def get_collection(request: Request) -> Response:
    """Return counts, fields, sizes and segments."""
    service, name = service_of(request), request.path_params["name"]
    await service.open(name)
    return json_response(await asyncio.to_thread(details, service, name))


@operations.delete(
    "/v1/collections/{name}",
    needs="admin",
    operation_id="delete_collection",
    summary="Delete a collection",
    response=DeletedCollection,
    errors=(404, 409, 422, 500, 503),
)
async def delete_collection(request: Request) -> Response:
    """Delete a collection with all its documents. Its snapshots are kept."""
    name = request.path_params["name"]
    await asyncio.to_thread(drop, service_of(request), name)
    return json_response({"deleted": name})


@operations.post(
    "/v1/collections/{name}/compact",
    needs="write",
    operation_id="compact_collection",
    summary="Compact a collection",
    bodies=[CompactRequest],
    response=CollectionDetail,
    errors=(404, 409, 422, 500, 503),
)
async def compact_collection(request: Request) -> Response:
    """Merge small segments, and rewrite segments with many deleted documents."""
    body = await read_body(request, CompactRequest)
    service, name = service_of(request), request.path_params["name"]
    await service.write(name, lambda collection: collection.compact(full=body.full))
    return json_response(await asyncio.to_thread(details, service, name))


@operations.get(
    "/v1/aliases",
    needs="read",
    operation_id="list_aliases",
    summary="List aliases",
    response=AliasesResponse,
    errors=(500, 503),
)
async def list_aliases(request: Request) -> Response:
    """Return the collection of each alias."""
    return await _aliases(service_of(request))


@operations.put(
    "/v1/aliases/{alias}",
    needs="write",
    operation_id="set_alias",
    summary="Set an alias",
    parameters={"alias": {"type": "string", "pattern": f"^{NAME.pattern}$"}},
    bodies=[AliasRequest],
    response=AliasesResponse,
    errors=(404, 422, 500, 503),
)
async def put_alias(request: Request) -> Response:
    """Point an alias at a collection, atomically, whatever it pointed at before."""
    from indexing.collections.aliases import set_alias

    body = await read_body(request, AliasRequest)
    service, alias = service_of(request), request.path_params["alias"]
    await asyncio.to_thread(set_alias, service.settings.data_dir, alias, body.collection)
    return await _aliases(service)


@operations.delete(
    "/v1/aliases/{alias}",
    needs="admin",
    operation_id="delete_alias",
    summary="Delete an alias",
    response=AliasesResponse,
    errors=(404, 422, 500, 503),
)
async def delete_alias(request: Request) -> Response:
    """Delete an alias; its collection is kept."""
    from indexing.collections.aliases import remove_alias

    service = service_of(request)
    await asyncio.to_thread(remove_alias, service.settings.data_dir, request.path_params["alias"])
    return await _aliases(service)


async def _aliases(service: Service) -> Response:
    from indexing.collections.aliases import list_aliases

    return json_response({"aliases": await asyncio.to_thread(list_aliases, service.settings.data_dir)})
