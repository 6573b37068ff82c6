"""POST /v1/embeddings: embed texts in OpenAI's format."""

from __future__ import annotations

from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.http.routing import Operations
from api.inference.encode_options import EncodeOptions
from api.responses.external_formats import base64_rows, dense_vectors, prompt_of
from api.responses.json_response import json_response_of
from api.routes.app_state import service_of
from api.schemas.openai import OpenAIRequest, OpenAIResponse

operations = Operations("OpenAI")
EMBEDDINGS: dict[str, Any] = {
    "needs": "read",
    "summary": "Embed texts, in OpenAI's format",
    "bodies": [OpenAIRequest],
    "response": OpenAIResponse,
    "errors": (404, 429, 500, 503),
}


@operations.post("/v1/embeddings", operation_id="openai_embeddings", **EMBEDDINGS)
@operations.post("/embeddings", operation_id="openai_embeddings_unversioned", **EMBEDDINGS)
async def embeddings(request: Request) -> Response:
    """Return one unit vector for each text or row of token ids, in their order.

    A wrong field is an error 400, as OpenAI's clients expect; the body is that of every error.
    """
    body = await read_body(request, OpenAIRequest)
    service = service_of(request)
    model = service.model(body.model)
    encoder, name = model.encoder, service.models.id_of(model)
    task, prompt = prompt_of(encoder, body.input_type, body.prompt_name, body.instruction)
    options = EncodeOptions(task, prompt, truncate=body.truncate, dimensions=body.dimensions)
    encoded, _ = await while_connected(request, model.embed(body.texts, options))
    vectors, tokens = dense_vectors(encoder, encoded), int(encoded.tokens.sum())
    as_base64 = body.encoding_format == "base64"
    return await json_response_of(lambda: openai_response(vectors, name, tokens, as_base64=as_base64), vectors.size)


def openai_response(vectors: np.ndarray, model: str, tokens: int, *, as_base64: bool) -> dict[str, Any]:
    """Return the response; vectors stay arrays."""
    rows = base64_rows(vectors) if as_base64 else vectors
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
