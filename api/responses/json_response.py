"""Plain values and numpy arrays as JSON responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
LARGE_RESPONSE = 100_000  # numbers from which serialising leaves the event loop


def json_response(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return plain values and numpy arrays as a JSON response."""
    return Response(orjson.dumps(values, option=OPTIONS), status, headers, media_type="application/json")


async def json_response_of(build: Callable[[], Any], size: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return what ``build`` returns as a JSON response; in a thread if it has many numbers, ``size``."""
    if size > LARGE_RESPONSE:
        return await asyncio.to_thread(lambda: json_response(build(), headers=headers))
    return json_response(build(), headers=headers)
