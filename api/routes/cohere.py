"""POST /v2/embed: what Cohere's clients send, answered as they read it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.inference.quantise import quantise
from api.openapi.document import errors
from api.openapi.external_formats import cohere_body
from api.responses.external_formats import base64_rows, dense_vectors, fields_called, json_answer
from api.schemas.cohere import CohereAnswer, CohereRequest, EmbeddingType
from api.schemas.common import Limits
from api.service import Service


def cohere_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that Cohere's clients use."""
    router = APIRouter(tags=["Cohere"])

    @router.post(
        "/v2/embed",
        operation_id="cohere_embed",
        summary="Turn texts into vectors of several types, in Cohere's shape",
        responses={200: {"model": CohereAnswer}, **errors(400, 404, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": cohere_body(limits)},
    )
    async def embed(request: Request) -> Response:
        """Return for each type that was asked for one vector for each text, in the order of the texts.

        `int8` is `round(127 x)`, `uint8` that plus 128, `ubinary` one bit for each `x > 0`, the first of eight in the
        highest bit, and `binary` that minus 128.
        """
        body = await read_body(request, CohereRequest, limits)
        encoder = service.model(body.model).encoder
        work = service.embed(
            body.texts,
            "query" if body.input_type == "search_query" else "document",
            body.output_dimension,
            field="texts",
            model=body.model,
            priority="bulk" if body.priority else None,
            truncate=body.truncate.lower(),
            max_tokens=body.max_tokens,
        )
        with fields_called(dimensions="output_dimension"):
            found = await while_connected(request, work)
        vectors, tokens = dense_vectors(encoder, found), int(found.tokens.sum())
        return await json_answer(
            lambda: {
                "id": str(uuid.uuid4()),
                "embeddings": typed_vectors(vectors, body.embedding_types),
                "texts": body.texts,
                "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
                "response_type": "embeddings_by_type",
            },
            vectors.size * len(body.embedding_types),
        )

    return router


def typed_vectors(vectors: np.ndarray, types: Sequence[EmbeddingType]) -> dict[str, Any]:
    """Return unit vectors (N, d) by type; arrays stay arrays."""
    return {kind: base64_rows(vectors) if kind == "base64" else quantise(vectors, kind) for kind in types}
