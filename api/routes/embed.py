"""POST /embed: embed texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from api.http.accept import preferred_media_type
from api.http.body import read_body, while_connected
from api.http.error_responses import ApiError
from api.http.routing import Operations
from api.inference.encode_options import EncodeOptions
from api.inference.quantise import quantise
from api.inference.request_queue import OnPart
from api.responses.embed import VectorFormat, embed_response, little_endian, npy
from api.responses.external_formats import dense_vectors, has_field, prompt_of
from api.responses.json_response import LARGE_RESPONSE
from api.responses.streaming import LINES, stream_lines
from api.routes.app_state import EMBED_ERRORS, service_of
from api.routes.tei import tei_embed_response
from api.schemas.embed import EmbedRequest, EmbedResponse
from embedserve.types import Encoded

if TYPE_CHECKING:
    from embedserve import Encoder

RAW = "application/octet-stream"
NPY = "application/x-npy"
JSON = "application/json"
BINARY = {"schema": {"type": "string", "format": "binary"}}

operations = Operations("embed")


@operations.post(
    "/embed",
    needs="read",
    operation_id="embed",
    summary="Embed texts",
    bodies=[EmbedRequest],
    response=EmbedResponse,
    response_types={RAW: BINARY, NPY: BINARY, LINES: {"schema": {"type": "string"}}},
    response_description="Vectors, in the media type that the Accept header prefers.",
    errors=EMBED_ERRORS,
)
async def embed(request: Request) -> Response:
    """Return one unit vector for each text, in the order of the texts.

    A text longer than the model's maximum is cut at its end and marked `truncated`.
    Vectors with equal `fingerprint` may be compared by dot product.
    A body with `inputs` in place of `input` is in TEI's format and gets a response in TEI's format: see `POST /`.

    Accept may prefer `application/octet-stream` (the rows in memory order, little-endian, with their shape and type in
    `X-ES-Shape` and `X-ES-Dtype`), `application/x-npy`, or `application/x-ndjson`: a line for each text as soon as its
    batch is done, numbered by `index`, and a last line with the other fields.
    """
    if await has_field(request, "inputs", "input"):
        return await tei_embed_response(request)
    start = time.perf_counter()
    body = await read_body(request, EmbedRequest)
    service = service_of(request)
    model = service.model(body.model)
    encoder, name = model.encoder, service.models.id_of(model)
    _check_outputs(encoder, body)
    task, prompt = prompt_of(encoder, body.input_type, body.prompt_name, body.instruction)
    media_type = preferred_media_type(request.headers.get("accept", ""), (JSON, RAW, NPY, LINES))
    if media_type in (RAW, NPY):
        _check_one_array(encoder, body)

    options = EncodeOptions(
        task, prompt, body.max_tokens, body.truncate, body.dimensions, body.normalize, body.priority
    )

    def work(on_part: OnPart | None = None) -> Coroutine[Any, Any, tuple[Encoded, dict[str, float]]]:
        return model.embed(body.texts, options, on_part)

    vector_format = VectorFormat(body.embedding_types, body.encoding_format == "base64")
    source = (name, encoder.fingerprint)
    if media_type == LINES:
        return await stream_lines(work, lambda part: _select(part, body), vector_format, source, start)
    encoded, timing = await while_connected(request, work())
    encoded = _select(encoded, body)
    if media_type in (RAW, NPY):
        array = little_endian(quantise(dense_vectors(encoder, encoded), (body.embedding_types or ["float"])[0]))
        headers = array_headers(array, encoder, int(encoded.tokens.sum()))
        write: Callable[[], bytes] = array.tobytes if media_type == RAW else lambda: npy(array)
        return Response(write(), media_type=media_type, headers=headers)
    timing["total"] = round(1000 * (time.perf_counter() - start), 3)
    arguments: tuple[Any, ...] = (encoded, *source, vector_format, timing)
    if encoded.size > LARGE_RESPONSE:
        content = await asyncio.to_thread(embed_response, *arguments)
    else:
        content = embed_response(*arguments)
    return Response(content, media_type=JSON)


def array_headers(array: np.ndarray, encoder: Encoder, tokens: int) -> dict[str, str]:
    """Return the headers that describe the bytes of an array."""
    return {
        "X-ES-Shape": ",".join(map(str, array.shape)),
        "X-ES-Dtype": array.dtype.name,
        "X-ES-Fingerprint": encoder.fingerprint,
        "X-ES-Tokens": str(tokens),
    }


def _check_outputs(encoder: Encoder, body: EmbedRequest) -> None:
    """Raise an error 422 if the encoder does not support a requested output."""
    missing = [output for output in body.outputs or () if output not in encoder.outputs]
    outputs = " and ".join(encoder.outputs)
    if missing:
        message = f"{encoder.name} makes {outputs} vectors, not {missing[0]}; remove it, or name another model"
        raise ApiError(422, "not_made", message, param="outputs")
    if body.embedding_types is not None and "dense" not in encoder.outputs:
        message = f"{encoder.name} makes {outputs} vectors; embedding_types needs a model with dense vectors"
        raise ApiError(422, "not_made", message, param="embedding_types")


def _check_one_array(encoder: Encoder, body: EmbedRequest) -> None:
    """Raise an error 422 unless the response is one array."""
    if "dense" not in encoder.outputs or body.outputs not in (None, ["dense"]) or len(body.embedding_types or "1") > 1:
        message = f"{RAW} and {NPY} carry one array: dense vectors of one type; accept application/json for the others"
        raise ApiError(422, "not_one_array", message, param="Accept")


def _select(encoded: Encoded, body: EmbedRequest) -> Encoded:
    """Return the requested outputs only."""
    if body.outputs is None:
        return encoded
    return Encoded(**{name: getattr(encoded, name) for name in body.outputs})
