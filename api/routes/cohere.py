"""POST /v2/embed: embed texts in Cohere's format."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.http.routing import Operations
from api.inference.encode_options import EncodeOptions, Truncate
from api.inference.quantise import quantise
from api.responses.external_formats import base64_rows, dense_vectors, renamed_fields
from api.responses.json_response import json_response_of
from api.routes.app_state import EMBED_ERRORS, service_of
from api.schemas.cohere import CohereRequest, CohereResponse, EmbeddingType

operations = Operations("Cohere")


@operations.post(
    "/v2/embed",
    needs="read",
    operation_id="cohere_embed",
    summary="Embed texts as vectors of several types, in Cohere's format",
    bodies=[CohereRequest],
    response=CohereResponse,
    errors=EMBED_ERRORS,
)
async def embed(request: Request) -> Response:
    """Return one vector of each requested type for each text, in the order of the texts.

    `int8` is `round(127 x)`, `uint8` that plus 128, `ubinary` one bit for each `x > 0`, the first of eight in the
    highest bit, and `binary` that minus 128.
    """
    body = await read_body(request, CohereRequest)
    service = service_of(request)
    model = service.model(body.model)
    encoder = model.encoder
    options = EncodeOptions(
        "query" if body.input_type == "search_query" else "document",
        max_tokens=body.max_tokens,
        truncate=cast("Truncate", body.truncate.lower()),
        dimensions=body.output_dimension,
        priority="bulk" if body.priority else None,
        field="texts",
    )
    with renamed_fields(dimensions="output_dimension"):
        encoded, _ = await while_connected(request, model.embed(body.texts, options))
    vectors, tokens = dense_vectors(encoder, encoded), int(encoded.tokens.sum())

    def response() -> dict[str, Any]:
        return {
            "id": str(uuid.uuid4()),
            "embeddings": typed_vectors(vectors, body.embedding_types),
            "texts": body.texts,
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
            "response_type": "embeddings_by_type",
        }

    return await json_response_of(response, vectors.size * len(body.embedding_types))


def typed_vectors(vectors: np.ndarray, types: Sequence[EmbeddingType]) -> dict[str, Any]:
    """Return unit vectors (N, d) by type; arrays stay arrays."""
    return {kind: base64_rows(vectors) if kind == "base64" else quantise(vectors, kind) for kind in types}
