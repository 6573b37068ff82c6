"""/v1/collections and /v1/aliases: which collections there are, and what they are called."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from api.actions.collections import create, details, drop
from api.http.body import read_body
from api.openapi.bodies import json_body
from api.openapi.document import errors
from api.responses.json_response import json_answer
from api.routes.health import collection_values
from api.schemas.collections import (
    AliasesAnswer,
    AliasRequest,
    CollectionDetail,
    CollectionsAnswer,
    CompactRequest,
    CreateRequest,
    DeletedCollection,
)
from api.service import Service
from indexing.collections.catalog import NAME

EXAMPLE = {
    "name": "notes",
    "fields": {"dense": {"output": "dense", "index": "hnsw"}, "bm25": {"output": "words"}},
}


def collections_router(service: Service) -> APIRouter:
    """Return the routes of collections and aliases."""
    router = APIRouter(tags=["collections"])

    @router.get(
        "/v1/collections",
        operation_id="list_collections",
        summary="Which collections are there?",
        responses={200: {"model": CollectionsAnswer}, **errors(500, 503)},
    )
    async def list_all() -> Response:
        """Return every collection, and whether it is open."""
        return json_answer({"collections": [collection_values(state) for state in await service.survey()]})

    @router.post(
        "/v1/collections",
        operation_id="create_collection",
        summary="Make a collection",
        status_code=201,
        responses={201: {"model": CollectionDetail}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(CreateRequest, EXAMPLE),
    )
    async def make(request: Request) -> Response:
        """Make an empty collection: dense vectors of the default model and the words for BM25, unless `fields` says.

        A field with `dim` and without `model` takes the vectors that documents bring.
        """
        body = await read_body(request, CreateRequest)
        manifest = await asyncio.to_thread(create, service, body)
        return json_answer(await asyncio.to_thread(details, service, manifest.name), 201)

    @router.get(
        "/v1/collections/{name}",
        operation_id="get_collection",
        summary="What is in a collection?",
        responses={200: {"model": CollectionDetail}, **errors(404, 409, 422, 500, 503)},
    )
    async def get(name: str) -> Response:
        """Return counts, fields, sizes and segments."""
        await service.open(name)
        return json_answer(await asyncio.to_thread(details, service, name))

    @router.delete(
        "/v1/collections/{name}",
        operation_id="delete_collection",
        summary="Delete a collection",
        responses={200: {"model": DeletedCollection}, **errors(404, 409, 422, 500, 503)},
    )
    async def delete(name: str) -> Response:
        """Delete a collection with all its documents. Its snapshots stay."""
        await asyncio.to_thread(drop, service, name)
        return json_answer({"deleted": name})

    @router.post(
        "/v1/collections/{name}/compact",
        operation_id="compact_collection",
        summary="Merge segments",
        responses={200: {"model": CollectionDetail}, **errors(400, 404, 409, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(CompactRequest, {"full": True}),
    )
    async def compact(request: Request, name: str) -> Response:
        """Write segments anew that hold many deleted documents or are many and small."""
        body = await read_body(request, CompactRequest)
        await service.write(name, lambda collection: collection.compact(full=body.full))
        return json_answer(await asyncio.to_thread(details, service, name))

    @router.get(
        "/v1/aliases",
        operation_id="list_aliases",
        summary="Which aliases are there?",
        responses={200: {"model": AliasesAnswer}, **errors(500, 503)},
    )
    async def aliases() -> Response:
        """Return the collection behind each alias."""
        from indexing.collections.aliases import list_aliases

        return json_answer({"aliases": await asyncio.to_thread(list_aliases, service.settings.data_dir)})

    @router.put(
        "/v1/aliases/{alias}",
        operation_id="set_alias",
        summary="Let an alias mean a collection",
        responses={200: {"model": AliasesAnswer}, **errors(400, 404, 413, 415, 422, 500, 503)},
        openapi_extra=json_body(AliasRequest, {"collection": "python-docs"}),
    )
    async def put_alias(
        request: Request, alias: Annotated[str, Path(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]
    ) -> Response:
        """Let an alias mean a collection from now on, in one step, whatever it meant before."""
        from indexing.collections.aliases import list_aliases, set_alias

        body = await read_body(request, AliasRequest)
        await asyncio.to_thread(set_alias, service.settings.data_dir, alias, body.collection)
        return json_answer({"aliases": await asyncio.to_thread(list_aliases, service.settings.data_dir)})

    @router.delete(
        "/v1/aliases/{alias}",
        operation_id="delete_alias",
        summary="Take an alias away",
        responses={200: {"model": AliasesAnswer}, **errors(404, 422, 500, 503)},
    )
    async def delete_alias(alias: str) -> Response:
        """Take an alias away; the collection stays."""
        from indexing.collections.aliases import list_aliases, remove_alias

        await asyncio.to_thread(remove_alias, service.settings.data_dir, alias)
        return json_answer({"aliases": await asyncio.to_thread(list_aliases, service.settings.data_dir)})

    return router
