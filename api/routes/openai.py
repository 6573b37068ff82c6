"""POST /v1/embeddings: what OpenAI's clients send, answered as they read it."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.openapi.document import errors
from api.openapi.external_formats import openai_body
from api.responses.external_formats import base64_rows, dense_vectors, json_answer, prompt_of
from api.schemas.common import Limits
from api.schemas.openai import OpenAIAnswer, OpenAIRequest
from api.service import Service

PATHS = {"/v1/embeddings": "openai_embeddings", "/embeddings": "openai_embeddings_unversioned"}


def openai_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that OpenAI's clients use."""
    router = APIRouter(tags=["OpenAI"])

    async def embeddings(request: Request) -> Response:
        """Return one unit vector for each text or row of token ids, in their order.

        Where a field is wrong the status is 400, as OpenAI's clients expect; the body is that of every error.
        """
        body = await read_body(request, OpenAIRequest, limits)
        model = service.model(body.model)
        encoder, name = model.encoder, service.models.id_of(model)
        task, prompt = prompt_of(encoder, body.input_type, body.prompt_name, body.instruction)
        work = service.embed(body.input, task, body.dimensions, model=body.model, prompt=prompt, truncate=body.truncate)
        found = await while_connected(request, work)
        vectors = dense_vectors(encoder, found)
        total = int(found.tokens.sum())
        return await json_answer(
            lambda: openai_answer(vectors, name, total, body.encoding_format == "base64"), vectors.size
        )

    for path, name in PATHS.items():
        router.add_api_route(
            path,
            embeddings,
            methods=["POST"],
            operation_id=name,
            summary="Turn texts into vectors, in OpenAI's shape",
            responses={200: {"model": OpenAIAnswer}, **errors(400, 404, 413, 415, 429, 500, 503)},
            openapi_extra={"requestBody": openai_body(limits)},
        )
    return router


def openai_answer(vectors: np.ndarray, model: str, tokens: int, as_base64: bool) -> dict[str, Any]:
    """Return the answer; vectors stay arrays."""
    rows = base64_rows(vectors) if as_base64 else vectors
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
