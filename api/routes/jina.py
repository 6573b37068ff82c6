"""POST /v1/multi-vector: a vector for each token, as Jina's clients ask for it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.inference.quantise import quantise
from api.openapi.document import errors
from api.openapi.external_formats import multi_vector_body
from api.responses.external_formats import base64_rows, json_answer, token_vectors
from api.schemas.common import Limits
from api.schemas.rerank import MultiType, MultiVectorAnswer, MultiVectorRequest
from api.service import Service
from embedserve.types import TokenEmbeddings


def jina_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that Jina's clients use."""
    router = APIRouter(tags=["Jina"])

    @router.post(
        "/v1/multi-vector",
        operation_id="jina_multi_vector",
        summary="Turn texts into a vector for each token, in Jina's shape",
        responses={200: {"model": MultiVectorAnswer}, **errors(400, 404, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": multi_vector_body(limits)},
    )
    async def multi_vector(request: Request) -> Response:
        """Return for each text the unit vectors of its tokens, for late interaction by MaxSim."""
        body = await read_body(request, MultiVectorRequest, limits)
        model = service.model(body.model)
        encoder, name = model.encoder, service.models.id_of(model)
        work = service.embed(body.input, body.input_type, body.dimensions, model=body.model)
        vectors = token_vectors(encoder, await while_connected(request, work))
        return await json_answer(lambda: multi_vector_answer(vectors, name, body.embedding_type), vectors.vectors.size)

    return router


def multi_vector_answer(vectors: TokenEmbeddings, model: str, kind: MultiType) -> dict[str, Any]:
    """Return the answer; arrays stay arrays."""
    rows = base64_rows(vectors.vectors) if kind == "base64" else quantise(vectors.vectors, kind)
    tokens, offsets = int(vectors.tokens.sum()), vectors.offsets
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embeddings", "index": place, "embeddings": rows[offsets[place] : offsets[place + 1]]}
            for place in range(len(vectors))
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
