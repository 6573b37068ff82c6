"""POST /embed: texts to vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.http.body import read_body, while_connected
from api.http.error_responses import ApiError
from api.inference.quantise import quantise
from api.openapi.document import errors
from api.openapi.embed import NPY, RAW, embed_answers, embed_body
from api.responses.embed import Form, embed_answer, little_endian, npy
from api.responses.external_formats import LARGE_ANSWER, dense_vectors, holds_field, prompt_of
from api.responses.streaming import LINES, stream_lines
from api.routes.tei import answer_embed
from api.schemas.common import Limits
from api.schemas.embed import EmbedRequest
from api.service import Service
from embedserve.types import Encoded

if TYPE_CHECKING:
    from embedserve import Encoder


def embed_router(service: Service, limits: Limits) -> APIRouter:
    """Return the routes that embed."""
    router = APIRouter(tags=["embed"])

    @router.post(
        "/embed",
        operation_id="embed",
        summary="Turn texts into vectors",
        responses={**embed_answers(), **errors(400, 404, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": embed_body(limits)},
    )
    async def embed(request: Request) -> Response:
        """Return one unit vector for each text, in the order of the texts.

        A text longer than the model reads is cut at its end and marked `truncated`.
        Vectors may be compared where `fingerprint` is equal, by dot product.
        A body with `inputs` in place of `input` is TEI's, and gets TEI's answer: see `POST /`.

        Accept may ask for `application/octet-stream` (the rows as they are in memory, little-endian, their shape and
        type in `X-ES-Shape` and `X-ES-Dtype`), `application/x-npy`, or `application/x-ndjson`: a line for each text as
        soon as its batch is done, numbered by `index`, and a last line with everything else.
        """
        if await holds_field(request, "inputs", "input"):
            return await answer_embed(service, limits, request)
        started = time.perf_counter()
        body = await read_body(request, EmbedRequest, limits)
        model = service.model(body.model)
        encoder, name = model.encoder, service.models.id_of(model)
        _check_outputs(encoder, body)
        task, prompt = prompt_of(encoder, body.input_type, body.prompt_name, body.instruction)
        wanted = _wanted(request)
        if wanted in (RAW, NPY):
            _check_one_array(encoder, body)

        def work(**more: Any) -> Any:
            return service.embed_timed(
                body.input,
                task,
                body.dimensions,
                model=body.model,
                normalize=body.normalize,
                prompt=prompt,
                truncate=body.truncate,
                max_tokens=body.max_tokens,
                priority=body.priority,
                **more,
            )

        form = Form(body.embedding_types, body.encoding_format == "base64")
        if wanted == LINES:
            return await stream_lines(work, lambda part: _kept(part, body), form, (name, encoder.fingerprint), started)
        found, timing = await while_connected(request, work())
        found = _kept(found, body)
        if wanted in (RAW, NPY):
            array = little_endian(quantise(dense_vectors(encoder, found), (body.embedding_types or ["float"])[0]))
            headers = array_headers(array, encoder, int(found.tokens.sum()))
            write: Callable[[], bytes] = array.tobytes if wanted == RAW else lambda: npy(array)
            return Response(write(), media_type=wanted, headers=headers)
        timing["total"] = round(1000 * (time.perf_counter() - started), 3)
        if found.size > LARGE_ANSWER:
            answer = await asyncio.to_thread(embed_answer, found, name, encoder.fingerprint, form, timing)
        else:
            answer = embed_answer(found, name, encoder.fingerprint, form, timing)
        return Response(answer, media_type="application/json")

    return router


def array_headers(array: np.ndarray, encoder: Encoder, tokens: int) -> dict[str, str]:
    """Return the headers that say what the bytes of an array are."""
    return {
        "X-ES-Shape": ",".join(map(str, array.shape)),
        "X-ES-Dtype": array.dtype.name,
        "X-ES-Fingerprint": encoder.fingerprint,
        "X-ES-Tokens": str(tokens),
    }


def _wanted(request: Request) -> str:
    """Return the first media type of the Accept header that is not JSON and can be had, or JSON."""
    accepted = (part.split(";")[0].strip().lower() for part in request.headers.get("accept", "").split(","))
    known = {RAW: RAW, NPY: NPY, LINES: LINES, "application/json": "application/json"}
    return next((known[kind] for kind in accepted if kind in known), "application/json")


def _check_outputs(encoder: Encoder, body: EmbedRequest) -> None:
    """Raise an error 422 where the encoder does not make what is asked for."""
    missing = [output for output in body.outputs or () if output not in encoder.outputs]
    made = " and ".join(encoder.outputs)
    if missing:
        message = f"{encoder.name} makes {made} vectors, not {missing[0]}; leave it out, or name another model"
        raise ApiError(422, "not_made", message, param="outputs")
    if body.embedding_types is not None and "dense" not in encoder.outputs:
        message = f"{encoder.name} makes {made} vectors; embedding_types is for those of whole texts"
        raise ApiError(422, "not_made", message, param="embedding_types")


def _check_one_array(encoder: Encoder, body: EmbedRequest) -> None:
    """Raise an error 422 unless the answer is one array."""
    if "dense" not in encoder.outputs or body.outputs not in (None, ["dense"]) or len(body.embedding_types or "1") > 1:
        message = f"{RAW} and {NPY} carry one array: dense vectors of one type; accept application/json for the others"
        raise ApiError(422, "not_one_array", message, param="Accept")


def _kept(found: Encoded, body: EmbedRequest) -> Encoded:
    """Return only the outputs that were asked for."""
    if body.outputs is None:
        return found
    kept = {name: getattr(found, name) for name in body.outputs}
    return Encoded(**kept)
