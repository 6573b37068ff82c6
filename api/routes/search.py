"""POST /search: queries to hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.body import read_body, while_connected
from api.openapi import errors, search_body
from api.schemas import Limits, SearchAnswer, SearchRequest
from api.service import Service

if TYPE_CHECKING:
    from indexing import Hit

LARGE_ANSWER = 50  # hits from which building the answer leaves the event loop


def search_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that search."""
    router = APIRouter(tags=["search"])

    @router.post(
        "/search",
        operation_id="search",
        summary="Find documents by meaning",
        responses={200: {"model": SearchAnswer}, **errors(400, 404, 409, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": search_body(limits)},
    )
    async def search(request: Request) -> Response:
        """Return for each query its best documents, in the order of the queries, best first.

        Send `query` for one or `queries` for several. Scores are cosine similarities; higher is better.
        """
        body = await read_body(request, SearchRequest, limits)
        name = body.collection if body.collection is not None else service.settings.collection
        field = "queries" if body.queries is not None else "query"
        found, timing = await while_connected(request, service.search(name, body.texts, body.top_k, field=field))
        fingerprint = service.encoder.fingerprint
        if sum(map(len, found)) > LARGE_ANSWER:
            answer = await service.in_search_thread(search_answer, found, name, fingerprint, timing)
        else:
            answer = search_answer(found, name, fingerprint, timing)
        return Response(answer, media_type="application/json")

    return router


def hit_values(hit: Hit) -> dict[str, Any]:
    """Return a hit as plain values; its title stands in the metadata."""
    title = {"title": hit.title} if hit.title else {}
    return {"id": hit.id, "score": float(hit.score), "text": hit.text, "metadata": {**title, **hit.metadata}}


def search_answer(
    found: Sequence[Sequence[Hit]], collection: str, fingerprint: str, timing: Mapping[str, float]
) -> bytes:
    """Return the JSON of an answer."""
    return orjson.dumps(
        {
            "results": [
                {"query_index": place, "hits": [hit_values(hit) for hit in hits]} for place, hits in enumerate(found)
            ],
            "collection": collection,
            "fingerprint": fingerprint,
            "timing_ms": {stage: round(spent, 3) for stage, spent in timing.items()},
        },
        option=orjson.OPT_NON_STR_KEYS,
    )
