"""POST /embed: texts to vectors."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.body import read_body, while_connected
from api.openapi import embed_body, errors
from api.schemas import EmbedAnswer, EmbedRequest, Limits
from api.service import Service
from embedserve.types import Encoded

LARGE_ANSWER = 100_000  # numbers from which serialising leaves the event loop


def embed_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that embed."""
    router = APIRouter(tags=["embed"])

    @router.post(
        "/embed",
        operation_id="embed",
        summary="Turn texts into vectors",
        responses={200: {"model": EmbedAnswer}, **errors(400, 404, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": embed_body(limits)},
    )
    async def embed(request: Request) -> Response:
        """Return one unit vector for each text, in the order of the texts.

        A text longer than the model reads is cut at its end and marked `truncated`.
        Vectors may be compared where `fingerprint` is equal, by dot product.
        """
        body = await read_body(request, EmbedRequest, limits)
        service.check_model(body.model)
        found = await while_connected(request, service.embed(body.input, body.input_type, body.dimensions))
        encoder = service.encoder
        if found.size > LARGE_ANSWER:
            answer = await asyncio.to_thread(embed_answer, found, encoder.name, encoder.fingerprint)
        else:
            answer = embed_answer(found, encoder.name, encoder.fingerprint)
        return Response(answer, media_type="application/json")

    return router


def embed_answer(found: Encoded, model: str, fingerprint: str) -> bytes:
    """Return the JSON of an answer, straight from the arrays."""
    vectors = found.dense or found.multi
    total = int(found.tokens.sum())
    return orjson.dumps(
        {
            "model": model,
            "fingerprint": fingerprint,
            "dim": vectors.vectors.shape[1] if vectors is not None else None,
            "data": embed_items(found),
            "usage": {"prompt_tokens": total, "total_tokens": total},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def embed_items(found: Encoded, first: int = 0) -> list[dict[str, Any]]:
    """Return one object for each text, numbered from ``first``, with what its encoder makes: arrays stay arrays.

    ``embedding`` is the vector, ``multi`` those of the tokens, ``sparse`` the vocabulary entries and their weights.
    """
    tokens, truncated = found.tokens.tolist(), found.truncated.tolist()
    items: list[dict[str, Any]] = [
        {"index": first + row, "tokens": tokens[row], "truncated": truncated[row]} for row in range(len(found))
    ]
    for row, item in enumerate(items):
        if found.dense is not None:
            item["embedding"] = found.dense.vectors[row]
        if found.multi is not None:
            item["multi"] = found.multi[row]
        if found.sparse is not None:
            part = slice(found.sparse.offsets[row], found.sparse.offsets[row + 1])
            item["sparse"] = {"indices": found.sparse.indices[part], "values": found.sparse.values[part]}
    return items
