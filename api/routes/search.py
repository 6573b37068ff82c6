"""POST /search and /v1/collections/{name}/search: search documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from api.actions.search import SearchResult
from api.actions.search import search_collection as run_search
from api.http.body import read_body, while_connected
from api.http.routing import Operations
from api.responses.search import search_response
from api.routes.app_state import service_of
from api.schemas.search import NamedSearchRequest, SearchRequest
from api.schemas.search_response import SearchResponse
from api.service import Service
from api.telemetry import metrics

if TYPE_CHECKING:
    from embedserve import Encoder

LARGE_RESULT = 50  # hits from which building the response leaves the event loop
SEARCH: dict[str, Any] = {
    "needs": "read",
    "response": SearchResponse,
    "errors": (404, 409, 422, 429, 500, 503),
}

operations = Operations("search")


@operations.post(
    "/search", operation_id="search", summary="Search documents by meaning", bodies=[NamedSearchRequest], **SEARCH
)
async def search(request: Request) -> Response:
    """Return the best documents of each query, best first, in the order of the queries.

    Send `query` for one or `queries` for several. Scores are cosine similarities by default; `mode` and `fusion` change
    that. Higher is better.
    """
    body = await read_body(request, NamedSearchRequest)
    name = body.collection if body.collection is not None else service_of(request).settings.collection
    return await _response(request, name, body)


@operations.post(
    "/v1/collections/{name}/search",
    operation_id="search_collection",
    summary="Search a collection",
    bodies=[SearchRequest],
    **SEARCH,
)
async def search_collection(request: Request) -> Response:
    """Search the collection of the path, as `POST /search` does."""
    return await _response(request, request.path_params["name"], await read_body(request, SearchRequest))


async def _response(request: Request, name: str, body: SearchRequest) -> Response:
    service = service_of(request)
    result = await while_connected(request, run_search(service, name, body))
    metrics.search(result.manifest.name, result.timing)
    if body.explain or "vectors" in body.include or sum(map(len, result.hits)) > LARGE_RESULT:
        content = await service.in_search_thread(_content, service, result, name, body)
    else:
        content = _content(service, result, name, body)
    return Response(content, media_type="application/json")


def _content(service: Service, result: SearchResult, name: str, body: SearchRequest) -> bytes:
    """Return the JSON of a result."""
    encoders: dict[str, Encoder] = {}
    if body.explain:
        loaded = {encoder.fingerprint: encoder for encoder in service.models.encoders()}
        fields = result.manifest.fields.items()
        encoders = {key: loaded[field.fingerprint] for key, field in fields if field.fingerprint in loaded}
    return search_response(
        result.hits,
        name,
        result.manifest.fingerprint,
        result.timing,
        include=body.include,
        grouped=body.group_by is not None,
        encoders=encoders,
        result_fields=None if body.cursor is None else {"next_cursor": result.cursor},
    )
