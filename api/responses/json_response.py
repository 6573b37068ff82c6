"""Plain values and numpy arrays as JSON responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response

NUMPY = orjson.OPT_SERIALIZE_NUMPY
OPTIONS = NUMPY | orjson.OPT_NON_STR_KEYS  # metadata of a document may have keys of other types
LARGE_RESPONSE = 100_000  # numbers from which serialising leaves the event loop


def json_response(values: Any, status: int = 200) -> Response:
    """Return plain values and numpy arrays as a JSON response."""
    return Response(orjson.dumps(values, option=OPTIONS), status, media_type="application/json")


async def json_response_of(build: Callable[[], Any], size: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return what ``build`` returns as a JSON response; in a thread if it has many numbers, ``size``."""

    def serialise() -> bytes:
        return orjson.dumps(build(), option=NUMPY)

    content = await asyncio.to_thread(serialise) if size > LARGE_RESPONSE else serialise()
    return Response(content, headers=headers, media_type="application/json")
