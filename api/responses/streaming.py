"""Embeddings as lines of JSON, streamed as batches finish."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import orjson
from starlette.responses import StreamingResponse

from api.http.error_responses import ApiError, error_body
from api.inference.request_queue import OnPart
from api.responses.embed import VectorFormat, embed_items, model_fields, usage_fields
from api.responses.json_response import NUMPY
from embedserve.errors import EmbedserveError
from embedserve.types import Encoded

logger = logging.getLogger(__name__)

LINES = "application/x-ndjson"
LINE = NUMPY | orjson.OPT_APPEND_NEWLINE


async def stream_lines(
    work: Callable[[OnPart], Awaitable[tuple[Encoded, dict[str, float]]]],
    select: Callable[[Encoded], Encoded],
    vector_format: VectorFormat,
    source: tuple[str, str],
    start: float,
) -> StreamingResponse:
    """Return a response with a line for each text as its batch finishes, and a last line with the other fields.

    An error before the first batch is an error response; a later error is the last line.

    Args:
        work: Embeds the texts, calls its argument for each batch, and returns the outputs and timings.
        select: Returns the requested outputs of a batch.
        vector_format: Serialisation of the vectors.
        source: Name and fingerprint of the model.
        start: Start of the request, of `time.perf_counter`.
    """
    loop = asyncio.get_running_loop()
    parts: asyncio.Queue[tuple[np.ndarray, Encoded] | None] = asyncio.Queue()

    def on_part(rows: np.ndarray, part: Encoded) -> None:  # in the compute thread
        loop.call_soon_threadsafe(parts.put_nowait, (rows, part))

    task = asyncio.ensure_future(work(on_part))
    task.add_done_callback(lambda _: parts.put_nowait(None))
    try:
        first = await parts.get()
    except BaseException:
        task.cancel()
        raise
    if first is None:
        await task  # raises the error

    async def lines() -> AsyncIterator[bytes]:
        try:
            part = first
            while part is not None:
                items = embed_items(select(part[1]), indices=part[0].tolist(), vector_format=vector_format)
                yield b"".join(orjson.dumps(item, option=LINE) for item in items)
                part = await parts.get()
            yield await last_line()
        finally:
            task.cancel()

    async def last_line() -> bytes:
        try:
            encoded, timing = await task
        except EmbedserveError as error:
            return error_body(error) + b"\n"
        except Exception:  # internal error: log the traceback, return the standard error body
            logger.exception("a streamed response failed")
            return error_body(ApiError(500, "internal", "internal error; the server's log has the details")) + b"\n"
        timing["total"] = round(1000 * (time.perf_counter() - start), 3)
        return orjson.dumps({**model_fields(encoded, *source), **usage_fields(encoded, timing)}, option=LINE)

    return StreamingResponse(lines(), media_type=LINES)
