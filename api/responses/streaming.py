"""Lines of JSON while batches finish: a long request's first vectors do not wait for its last."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import orjson
from starlette.responses import StreamingResponse

from api.http.error_responses import ApiError, error_body
from api.responses.embed import OPTIONS, Form, about, closing, embed_items
from embedserve.errors import EmbedserveError
from embedserve.types import Encoded

logger = logging.getLogger(__name__)

LINES = "application/x-ndjson"
LINE = OPTIONS | orjson.OPT_APPEND_NEWLINE


async def stream_lines(
    work: Callable[..., Any], kept: Callable[[Encoded], Encoded], form: Form, made_by: tuple[str, str], started: float
) -> StreamingResponse:
    """Return an answer with a line for each text as its batch finishes, and a last one about them all.

    What goes wrong before the first batch is an error like any other; later it is the last line.

    Args:
        work: Called with ``on_part``; does what `Service.embed_timed` does.
        kept: What of a batch is returned.
        form: How vectors are written.
        made_by: The model's name and its fingerprint.
        started: When the request came, of `time.perf_counter`.
    """
    loop = asyncio.get_running_loop()
    parts: asyncio.Queue[tuple[np.ndarray, Encoded] | None] = asyncio.Queue()

    def on_part(places: np.ndarray, part: Encoded) -> None:  # in the compute thread
        loop.call_soon_threadsafe(parts.put_nowait, (places, part))

    task = asyncio.ensure_future(work(on_part=on_part))
    task.add_done_callback(lambda _: parts.put_nowait(None))
    try:
        first = await parts.get()
    except BaseException:
        task.cancel()
        raise
    if first is None:
        await task  # raises what went wrong

    async def lines() -> AsyncIterator[bytes]:
        try:
            part = first
            while part is not None:
                items = embed_items(kept(part[1]), places=part[0].tolist(), form=form)
                yield b"".join(orjson.dumps(item, option=LINE) for item in items)
                part = await parts.get()
            yield await last_line()
        finally:
            task.cancel()

    async def last_line() -> bytes:
        try:
            found, timing = await task
        except EmbedserveError as error:
            return error_body(error) + b"\n"
        except Exception:  # a fault of ours: the log has it whole
            logger.exception("a streamed answer failed")
            return (
                error_body(ApiError(500, "internal", "the server failed on this request; its log has the reason"))
                + b"\n"
            )
        timing["total"] = round(1000 * (time.perf_counter() - started), 3)
        values = {**about(found, *made_by), **closing(found, timing)}
        return orjson.dumps(values, option=LINE)

    return StreamingResponse(lines(), media_type=LINES)
