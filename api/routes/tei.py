"""The routes of Text Embeddings Inference (TEI), with its bodies, responses and errors."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from api.actions.ranking import rank
from api.http.body import read_body, while_connected
from api.http.error_styles import TEI_STATE
from api.http.routing import Operations
from api.inference.encode_options import EncodeOptions
from api.responses.external_formats import dense_vectors, peek, prompt_of, sparse_weights, token_vectors
from api.responses.json_response import json_response_of
from api.routes.app_state import EMBED_ERRORS, service_of
from api.schemas.tei import (
    SimilarityParameters,
    TEIDecodeRequest,
    TEIEmbedRequest,
    TEIError,
    TEIRerankRequest,
    TEISimilarityRequest,
    TEIToken,
    TEITokenizeRequest,
    TEITokensRequest,
    TEIWeight,
)
from embedserve.errors import InputError, name_texts
from embedserve.types import Encoded

if TYPE_CHECKING:
    from embedserve import Encoder

operations = Operations("TEI")
TEI: dict[str, Any] = {"needs": "read", "errors": EMBED_ERRORS, "error_response": TEIError}


@operations.post(
    "/",
    operation_id="tei_root",
    summary="Embed or compare texts, in TEI's format",
    bodies=[TEIEmbedRequest, TEISimilarityRequest],
    response=list[list[float]] | list[float],
    **TEI,
)
async def root(request: Request) -> Response:
    """Embed texts as `POST /embed` does, or compare them as `POST /similarity` does if `inputs` is an object.

    The client of the Hugging Face hub posts both to the base URL.
    """
    if isinstance((await peek(request, "source_sentence")).get("inputs"), dict):
        return await similarity(request)
    return await tei_embed_response(request)


async def tei_embed_response(request: Request) -> Response:
    """Return the vectors of a body in TEI's format, as a list."""
    mark_tei(request)
    body = await read_body(request, TEIEmbedRequest)
    encoder, encoded, headers = await _embed(request, body, body.dimensions, normalize=body.normalize)
    vectors = dense_vectors(encoder, encoded)
    return await json_response_of(lambda: vectors, vectors.size, headers)


def mark_tei(request: Request) -> None:
    """Return errors of this request in TEI's format."""
    request.scope.setdefault("state", {})[TEI_STATE] = True


@operations.post(
    "/embed_all",
    operation_id="tei_embed_all",
    summary="Embed texts as a vector for each token, in TEI's format",
    bodies=[TEITokensRequest],
    response=list[list[list[float]]],
    **TEI,
)
async def embed_all(request: Request) -> Response:
    """Return the token vectors of each text; needs a model with token vectors for late interaction."""
    body = await read_body(request, TEITokensRequest)
    encoder, encoded, headers = await _embed(request, body)
    vectors = token_vectors(encoder, encoded)
    size = vectors.vectors.size
    return await json_response_of(lambda: [vectors[index] for index in range(len(vectors))], size, headers)


@operations.post(
    "/embed_sparse",
    operation_id="tei_embed_sparse",
    summary="Embed texts as weights of vocabulary entries, in TEI's format",
    bodies=[TEITokensRequest],
    response=list[list[TEIWeight]],
    **TEI,
)
async def embed_sparse(request: Request) -> Response:
    """Return the weights of vocabulary entries of each text; needs a model with a sparse output."""
    body = await read_body(request, TEITokensRequest)
    encoder, encoded, headers = await _embed(request, body)
    weights = sparse_weights(encoder, encoded)

    def items() -> list[list[dict[str, Any]]]:
        rows = [weights[index] for index in range(len(weights))]
        return [[{"index": entry, "value": weight} for entry, weight in row.items()] for row in rows]

    return await json_response_of(items, weights.values.size, headers)


async def _embed(
    request: Request, body: TEITokensRequest, dimensions: int | None = None, *, normalize: bool = True
) -> tuple[Encoder, Encoded, dict[str, str]]:
    """Return the encoder, its outputs for the body's texts, and TEI's headers with counts and durations."""
    start = time.perf_counter()
    model = service_of(request).model()
    encoder = model.encoder
    task, _ = prompt_of(encoder, "document", body.prompt_name)
    options = EncodeOptions(task, truncate=body.side, dimensions=dimensions, normalize=normalize, field="inputs")
    encoded, timing = await while_connected(request, model.embed(body.texts, options))
    values: dict[str, object] = {
        "x-compute-type": "cpu" if str(encoder.device) == "cpu" else "gpu",
        "x-compute-time": round(timing["tokenize"] + timing["compute"]),
        "x-compute-characters": sum(len(text) for text in body.texts if isinstance(text, str)),
        "x-compute-tokens": int(encoded.tokens.sum()),
        "x-total-time": round(1000 * (time.perf_counter() - start)),
        "x-tokenization-time": round(timing["tokenize"]),
        "x-queue-time": round(timing["queue"]),
        "x-inference-time": round(timing["compute"]),
    }
    return encoder, encoded, {name: str(value) for name, value in values.items()}


@operations.post(
    "/similarity",
    operation_id="tei_similarity",
    summary="Compare one text with others, in TEI's format",
    bodies=[TEISimilarityRequest],
    response=list[float],
    **TEI,
)
async def similarity(request: Request) -> Response:
    """Return cosines, or MaxSim sums if the model makes a vector for each token."""
    body = await read_body(request, TEISimilarityRequest)
    service = service_of(request)
    model = service.model()
    parameters = body.parameters or SimilarityParameters()
    task, _ = prompt_of(model.encoder, "document", parameters.prompt_name)
    options = EncodeOptions(task, truncate=parameters.side, field="inputs.sentences")
    query_options = replace(options, field="inputs.source_sentence")
    work = rank(service, model, body.inputs.source_sentence, body.inputs.sentences, query_options, options)
    ranked = await while_connected(request, work)
    return await json_response_of(lambda: ranked.scores, ranked.scores.size)


async def tei_rerank_response(request: Request) -> Response:
    """Return indices and scores of a body in TEI's format, best first."""
    mark_tei(request)
    body = await read_body(request, TEIRerankRequest)
    service = service_of(request)
    query_options = EncodeOptions("query", truncate=body.side, field="query")
    options = EncodeOptions("document", truncate=body.side, field="texts")
    work = rank(service, service.model(), body.query, body.texts, query_options, options)
    ranked = await while_connected(request, work)

    def items() -> list[dict[str, Any]]:
        texts = [{"text": text} if body.return_text else {} for text in body.texts]
        return [{"index": index, "score": ranked.scores[index], **texts[index]} for index in ranked.best()]

    return await json_response_of(items, ranked.scores.size)


@operations.post(
    "/tokenize",
    operation_id="tei_tokenize",
    summary="Tokenise texts, in TEI's format",
    bodies=[TEITokenizeRequest],
    response=list[list[TEIToken]],
    **TEI,
)
async def tokenize(request: Request) -> Response:
    """Return the tokens that the model reads.

    With special tokens, they include the model's prompt for documents, or that of `prompt_name`.
    """
    from embedserve.token_ids import tokens_of

    body = await read_body(request, TEITokenizeRequest)
    encoder, special = service_of(request).model().encoder, body.add_special_tokens
    task, _ = prompt_of(encoder, "document", body.prompt_name)
    prompt = encoder.spec.prompts.get(task, "") if special else ""
    rows = await asyncio.to_thread(tokens_of, encoder, body.texts, prompt=prompt, special=special)
    return await json_response_of(lambda: [[token._asdict() for token in row] for row in rows], sum(map(len, rows)))


@operations.post(
    "/decode",
    operation_id="tei_decode",
    summary="Decode token ids, in TEI's format",
    bodies=[TEIDecodeRequest],
    response=list[str],
    **TEI,
)
async def decode(request: Request) -> Response:
    """Return one text for each row of token ids."""
    from embedserve.token_ids import texts_of_ids

    body = await read_body(request, TEIDecodeRequest)
    rows, skip = body.rows, body.skip_special_tokens
    try:
        texts = await asyncio.to_thread(texts_of_ids, service_of(request).model().encoder, rows, skip_special=skip)
    except InputError as error:
        raise name_texts(error, lambda index: f"ids[{index}]" if len(rows) > 1 else "ids") from error
    return await json_response_of(lambda: texts, 0)
