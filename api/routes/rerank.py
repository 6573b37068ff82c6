"""POST /rerank, /v1/rerank and /v2/rerank: order documents by their relevance to a query."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from api.actions.ranking import Ranked, rank
from api.http.body import read_body, while_connected
from api.http.routing import Operations
from api.inference.encode_options import EncodeOptions
from api.responses.external_formats import has_field, renamed_fields
from api.responses.json_response import json_response_of
from api.routes.app_state import EMBED_ERRORS, service_of
from api.routes.tei import tei_rerank_response
from api.schemas.common import ErrorResponse
from api.schemas.rerank import RerankRequest, RerankResponse
from api.schemas.tei import TEIError, TEIRank, TEIRerankRequest

operations = Operations("rerank")
RERANK: dict[str, Any] = {
    "needs": "read",
    "summary": "Order documents by relevance, in the format of Cohere and Jina",
    "bodies": [RerankRequest],
    "response": RerankResponse,
    "errors": EMBED_ERRORS,
}


@operations.post("/v1/rerank", operation_id="rerank_v1", **RERANK)
@operations.post("/v2/rerank", operation_id="rerank_v2", **RERANK)
async def rerank(request: Request) -> Response:
    """Return the documents by relevance to the query, best first.

    Scores are MaxSim sums if the model makes a vector for each token, else cosines.
    """
    body = await read_body(request, RerankRequest)
    service, texts = service_of(request), body.texts
    model = service.model(body.model)
    name, priority = service.models.id_of(model), "bulk" if body.priority else None
    query_options = EncodeOptions("query", priority=priority, field="query")
    options = EncodeOptions("document", max_tokens=body.max_tokens_per_doc, priority=priority, field="documents")
    work = rank(service, model, body.query, texts, query_options, options)
    with renamed_fields(max_tokens="max_tokens_per_doc"):
        ranked = await while_connected(request, work)
    return await json_response_of(lambda: rerank_response(ranked, body, texts, name), len(ranked.scores))


@operations.post(
    "/rerank",
    needs="read",
    operation_id="rerank",
    summary="Order documents by relevance, in the format of Cohere and Jina or of TEI",
    bodies=[RerankRequest, TEIRerankRequest],
    response=RerankResponse | list[TEIRank],
    errors=EMBED_ERRORS,
    error_response=ErrorResponse | TEIError,
)
async def rerank_any_format(request: Request) -> Response:
    """Return the documents by relevance to the query, best first.

    A body with `texts` in place of `documents` is in TEI's format and gets a response in TEI's format.
    """
    if await has_field(request, "texts", "documents"):
        return await tei_rerank_response(request)
    return await rerank(request)


def rerank_response(ranked: Ranked, body: RerankRequest, texts: list[str], model: str) -> dict[str, Any]:
    """Return the response in the format of both Cohere and Jina."""
    results: list[dict[str, Any]] = []
    for index in ranked.best(body.top_n):
        item: dict[str, Any] = {"index": index, "relevance_score": ranked.scores[index]}
        if body.return_documents:
            item["document"] = {"text": texts[index]}
        results.append(item)
    return {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": ranked.tokens, "total_tokens": ranked.tokens},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": ranked.tokens}},
    }
