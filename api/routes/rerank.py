"""POST /rerank, /v1/rerank and /v2/rerank: documents in the order in which they answer a query."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.actions.ranking import Ranked, rank
from api.http.body import read_body, while_connected
from api.openapi.document import errors
from api.openapi.external_formats import rerank_body
from api.openapi.tei import either_body, either_errors, rerank_texts_body
from api.responses.external_formats import fields_called, holds_field, json_answer
from api.routes.tei import answer_rerank
from api.schemas.common import Limits
from api.schemas.rerank import RerankAnswer, RerankRequest
from api.schemas.tei import TEIRank
from api.service import Service

STATUSES = (400, 404, 413, 415, 422, 429, 500, 503)
PATHS = {"/v1/rerank": "rerank_v1", "/v2/rerank": "rerank_v2"}


def rerank_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that put documents in order."""
    router = APIRouter(tags=["rerank"])

    async def rerank(request: Request) -> Response:
        """Return the documents, those nearest to the query first.

        Scores are MaxSim sums where the model makes a vector for each token, else cosines.
        """
        body = await read_body(request, RerankRequest, limits)
        model = service.model(body.model)
        work = rank(
            service,
            body.query,
            body.documents,
            field="documents",
            model=body.model,
            max_tokens=body.max_tokens_per_doc,
            priority="bulk" if body.priority else None,
        )
        with fields_called(max_tokens="max_tokens_per_doc"):
            found = await while_connected(request, work)
        return await json_answer(lambda: rerank_answer(found, body, service.models.id_of(model)), len(found.scores))

    async def rerank_of_two(request: Request) -> Response:
        """Return the documents, those nearest to the query first.

        A body with `texts` in place of `documents` is TEI's, and gets TEI's answer.
        """
        if await holds_field(request, "texts", "documents"):
            return await answer_rerank(service, limits, request)
        return await rerank(request)

    for path, name in PATHS.items():
        router.add_api_route(
            path,
            rerank,
            methods=["POST"],
            operation_id=name,
            summary="Put documents in order, in the shape of Cohere and Jina",
            responses={200: {"model": RerankAnswer}, **errors(*STATUSES)},
            openapi_extra={"requestBody": rerank_body(limits)},
        )
    router.add_api_route(
        "/rerank",
        rerank_of_two,
        methods=["POST"],
        operation_id="rerank",
        summary="Put documents in order, in the shape of Cohere and Jina or in TEI's",
        responses={200: {"model": RerankAnswer | list[TEIRank]}, **either_errors(*STATUSES)},
        openapi_extra={"requestBody": either_body(rerank_body(limits), rerank_texts_body(limits))},
    )
    return router


def rerank_answer(found: Ranked, body: RerankRequest, model: str) -> dict[str, Any]:
    """Return the answer that the clients of both Cohere and Jina read."""
    results: list[dict[str, Any]] = []
    for place in found.best(body.top_n):
        item: dict[str, Any] = {"index": place, "relevance_score": found.scores[place]}
        if body.return_documents:
            item["document"] = {"text": body.documents[place]}
        results.append(item)
    return {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": found.tokens}},
    }
