"""POST /search and /v1/collections/{name}/search: queries to hits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.actions.search import SearchResult, search_collection
from api.http.body import read_body, while_connected
from api.http.error_responses import ApiError
from api.openapi.document import errors
from api.openapi.search import search_body
from api.responses.search import search_answer
from api.schemas.common import Limits
from api.schemas.search import SearchAnswer, SearchRequest
from api.service import Service
from api.telemetry import metrics

if TYPE_CHECKING:
    from embedserve import Encoder

LARGE_ANSWER = 50  # hits from which building the answer leaves the event loop
STATUSES = (400, 404, 409, 413, 415, 422, 429, 500, 503)


def search_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that search."""
    router = APIRouter(tags=["search"])

    async def answer(request: Request, name: str, body: SearchRequest) -> Response:
        found = await while_connected(request, search_collection(service, name, body))
        metrics.search(found.manifest.name, found.timing)
        large = body.explain or "vectors" in body.include or sum(map(len, found.hits)) > LARGE_ANSWER
        if large:
            content = await service.in_search_thread(answer_of, service, found, name, body)
        else:
            content = answer_of(service, found, name, body)
        return Response(content, media_type="application/json")

    @router.post(
        "/search",
        operation_id="search",
        summary="Find documents by meaning",
        responses={200: {"model": SearchAnswer}, **errors(*STATUSES)},
        openapi_extra={"requestBody": search_body(limits, named=True)},
    )
    async def search(request: Request) -> Response:
        """Return for each query its best documents, in the order of the queries, best first.

        Send `query` for one or `queries` for several. Scores are cosine similarities unless `mode` or `fusion` say
        otherwise; higher is better.
        """
        body = await read_body(request, SearchRequest, limits)
        name = body.collection if body.collection is not None else service.settings.collection
        return await answer(request, name, body)

    @router.post(
        "/v1/collections/{name}/search",
        operation_id="search_collection",
        summary="Find documents of a collection",
        responses={200: {"model": SearchAnswer}, **errors(*STATUSES)},
        openapi_extra={"requestBody": search_body(limits, named=False)},
    )
    async def search_one(request: Request, name: str) -> Response:
        """Do as `POST /search` does, in the collection of the path."""
        body = await read_body(request, SearchRequest, limits)
        if body.collection is not None:
            message = "collection stands in the path; leave it out of the body"
            raise ApiError(422, "unknown_field", message, param="collection")
        return await answer(request, name, body)

    return router


def answer_of(service: Service, found: SearchResult, name: str, body: SearchRequest) -> bytes:
    """Return the JSON of what was found."""
    encoders: dict[str, Encoder] = {}
    if body.explain:
        loaded = {encoder.fingerprint: encoder for encoder in service.models.encoders()}
        fields = found.manifest.fields.items()
        encoders = {key: loaded[field.fingerprint] for key, field in fields if field.fingerprint in loaded}
    more: dict[str, Any] = {} if body.cursor is None else {"next_cursor": found.cursor}
    return search_answer(
        found.hits,
        name,
        found.manifest.fingerprint,
        found.timing,
        more=more,
        include=body.include,
        grouped=body.group_by is not None,
        encoders=encoders,
    )
