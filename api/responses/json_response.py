"""Plain values and numpy arrays as JSON responses."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def json_answer(values: Any, status: int = 200) -> Response:
    """Return plain values and numpy arrays as a JSON answer."""
    return Response(orjson.dumps(values, option=OPTIONS), status_code=status, media_type="application/json")
