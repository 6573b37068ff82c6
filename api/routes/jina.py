"""POST /v1/multi-vector: embed texts as token vectors, in Jina's format."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.http.routing import Operations
from api.inference.encode_options import EncodeOptions
from api.inference.quantise import quantise
from api.responses.external_formats import base64_rows, token_vectors
from api.responses.json_response import json_response_of
from api.routes.app_state import EMBED_ERRORS, service_of
from api.schemas.cohere import EmbeddingType
from api.schemas.rerank import MultiVectorRequest, MultiVectorResponse
from embedserve.types import TokenEmbeddings

operations = Operations("Jina")


@operations.post(
    "/v1/multi-vector",
    needs="read",
    operation_id="jina_multi_vector",
    summary="Embed texts as a vector for each token, in Jina's format",
    bodies=[MultiVectorRequest],
    response=MultiVectorResponse,
    errors=EMBED_ERRORS,
)
async def multi_vector(request: Request) -> Response:
    """Return the unit vectors of each text's tokens, for late interaction by MaxSim."""
    body = await read_body(request, MultiVectorRequest)
    service = service_of(request)
    model = service.model(body.model)
    encoder, name = model.encoder, service.models.id_of(model)
    work = model.embed(body.texts, EncodeOptions(body.input_type, dimensions=body.dimensions))
    encoded, _ = await while_connected(request, work)
    vectors = token_vectors(encoder, encoded)
    size = vectors.vectors.size
    return await json_response_of(lambda: multi_vector_response(vectors, name, body.embedding_type), size)


def multi_vector_response(vectors: TokenEmbeddings, model: str, kind: EmbeddingType) -> dict[str, Any]:
    """Return the response; arrays stay arrays."""
    rows = base64_rows(vectors.vectors) if kind == "base64" else quantise(vectors.vectors, kind)
    tokens, offsets = int(vectors.tokens.sum()), vectors.offsets
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embeddings", "index": index, "embeddings": rows[offsets[index] : offsets[index + 1]]}
            for index in range(len(vectors))
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
