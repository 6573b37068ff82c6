"""The routes of Text Embeddings Inference (TEI): its bodies, answered and refused as its clients read it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.actions.ranking import rank
from api.http.body import read_body, while_connected
from api.http.error_styles import TEI_STATE
from api.openapi.tei import TEI_ROUTES, tei_errors
from api.responses.external_formats import dense_vectors, json_answer, peek, prompt_of, sparse_weights, token_vectors
from api.schemas.common import Limits
from api.schemas.tei import (
    SimilarityParameters,
    TEIDecodeRequest,
    TEIEmbedRequest,
    TEIRerankRequest,
    TEISimilarityRequest,
    TEITokenizeRequest,
    TEITokensRequest,
)
from api.service import Service
from embedserve.errors import InputError, name_texts
from embedserve.types import Encoded

if TYPE_CHECKING:
    from embedserve import Encoder

Handler = Callable[[Service, Limits, Request], Awaitable[Response]]


def tei_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes of TEI beside /embed and /rerank, which it shares with others."""
    router = APIRouter(tags=["TEI"])
    handlers: dict[str, Handler] = {
        "/": _root,
        "/embed_all": _embed_all,
        "/embed_sparse": _embed_sparse,
        "/similarity": _similarity,
        "/tokenize": _tokenize,
        "/decode": _decode,
    }
    for path, handler in handlers.items():
        _add(router, path, handler, service, limits)
    return router


def _add(router: APIRouter, path: str, handler: Handler, service: Service, limits: Limits) -> None:
    route = TEI_ROUTES[path]

    async def endpoint(request: Request) -> Response:
        return await handler(service, limits, request)

    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        operation_id=route.name,
        summary=route.summary,
        description=route.description,
        responses={200: {"model": route.answer}, **tei_errors(400, 404, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": route.body(limits)},
    )


def mark_tei(request: Request) -> None:
    """Have errors of this request leave in TEI's shape."""
    request.scope.setdefault("state", {})[TEI_STATE] = True


async def _root(service: Service, limits: Limits, request: Request) -> Response:
    """Answer vectors, or similarities where ``inputs`` is an object: the client of the hub posts both here."""
    if isinstance((await peek(request, "source_sentence")).get("inputs"), dict):
        return await _similarity(service, limits, request)
    return await answer_embed(service, limits, request)


async def answer_embed(service: Service, limits: Limits, request: Request) -> Response:
    """Answer a body with ``inputs`` as TEI's /embed does: a list of vectors."""
    mark_tei(request)
    body = await read_body(request, TEIEmbedRequest, limits)
    encoder, found, headers = await _embed(service, request, body, body.dimensions, normalize=body.normalize)
    vectors = dense_vectors(encoder, found)
    return await json_answer(lambda: vectors, vectors.size, headers)


async def _embed_all(service: Service, limits: Limits, request: Request) -> Response:
    body = await read_body(request, TEITokensRequest, limits)
    encoder, found, headers = await _embed(service, request, body)
    vectors = token_vectors(encoder, found)
    return await json_answer(lambda: [vectors[place] for place in range(len(vectors))], vectors.vectors.size, headers)


async def _embed_sparse(service: Service, limits: Limits, request: Request) -> Response:
    body = await read_body(request, TEITokensRequest, limits)
    encoder, found, headers = await _embed(service, request, body)
    weights = sparse_weights(encoder, found)

    def items() -> list[list[dict[str, Any]]]:
        rows = [weights[place] for place in range(len(weights))]
        return [[{"index": entry, "value": weight} for entry, weight in row.items()] for row in rows]

    return await json_answer(items, weights.values.size, headers)


async def _embed(
    service: Service, request: Request, body: TEITokensRequest, dimensions: int | None = None, *, normalize: bool = True
) -> tuple[Encoder, Encoded, dict[str, str]]:
    """Return the encoder, what it makes of the body's texts, and the headers that say what that took."""
    started = time.perf_counter()
    encoder = service.encoder
    task, _ = prompt_of(encoder, "document", body.prompt_name)
    work = service.embed_timed(body.inputs, task, dimensions, normalize=normalize, field="inputs", truncate=body.side)
    found, spent = await while_connected(request, work)
    values: dict[str, object] = {
        "x-compute-type": "cpu" if str(encoder.device) == "cpu" else "gpu",
        "x-compute-time": round(spent["tokenize"] + spent["compute"]),
        "x-compute-characters": sum(len(text) for text in body.inputs if isinstance(text, str)),
        "x-compute-tokens": int(found.tokens.sum()),
        "x-total-time": round(1000 * (time.perf_counter() - started)),
        "x-tokenization-time": round(spent["tokenize"]),
        "x-queue-time": round(spent["queue"]),
        "x-inference-time": round(spent["compute"]),
    }
    return encoder, found, {name: str(value) for name, value in values.items()}


async def _similarity(service: Service, limits: Limits, request: Request) -> Response:
    body = await read_body(request, TEISimilarityRequest, limits)
    options = body.parameters or SimilarityParameters()
    task, _ = prompt_of(service.encoder, "document", options.prompt_name)
    work = rank(
        service,
        body.inputs.source_sentence,
        body.inputs.sentences,
        query_field="inputs.source_sentence",
        field="inputs.sentences",
        tasks=(task, task),
        truncate=options.side,
    )
    found = await while_connected(request, work)
    return await json_answer(lambda: found.scores, found.scores.size)


async def answer_rerank(service: Service, limits: Limits, request: Request) -> Response:
    """Answer a body with ``texts`` as TEI's /rerank does: places and scores, best first."""
    mark_tei(request)
    body = await read_body(request, TEIRerankRequest, limits)
    work = rank(service, body.query, body.texts, field="texts", truncate=body.side)
    found = await while_connected(request, work)

    def items() -> list[dict[str, Any]]:
        texts = {place: {"text": body.texts[place]} if body.return_text else {} for place in range(len(body.texts))}
        return [{"index": place, "score": found.scores[place], **texts[place]} for place in found.best()]

    return await json_answer(items, found.scores.size)


async def _tokenize(service: Service, limits: Limits, request: Request) -> Response:
    from embedserve.token_ids import tokens_of

    body = await read_body(request, TEITokenizeRequest, limits)
    encoder = service.encoder
    task, _ = prompt_of(encoder, "document", body.prompt_name)
    prompt = encoder.spec.prompts.get(task, "") if body.add_special_tokens else ""
    rows = await asyncio.to_thread(tokens_of, encoder, body.inputs, prompt=prompt, special=body.add_special_tokens)
    return await json_answer(lambda: [[token._asdict() for token in row] for row in rows], sum(map(len, rows)))


async def _decode(service: Service, limits: Limits, request: Request) -> Response:
    from embedserve.token_ids import texts_of_ids

    body = await read_body(request, TEIDecodeRequest, limits)
    try:
        texts = await asyncio.to_thread(texts_of_ids, service.encoder, body.ids, skip_special=body.skip_special_tokens)
    except InputError as error:
        raise name_texts(error, lambda place: f"ids[{place}]" if len(body.ids) > 1 else "ids") from error
    return await json_answer(lambda: texts, 0)
