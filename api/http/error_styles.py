"""How errors leave on the routes that other services' clients use: the status and the body that those clients read."""

from __future__ import annotations

from typing import Literal

import orjson
from starlette.types import Scope

from api.http.paths import path_of

OPENAI_PATHS = frozenset({"/v1/embeddings", "/embeddings"})
TEI_PATHS = frozenset({"/embed_all", "/embed_sparse", "/similarity", "/tokenize", "/decode"})
TEI_STATE = "tei"  # in the state of a request whose body showed that its caller is a client of TEI
TEI_TYPES = {404: "not_found", 429: "overloaded", 500: "backend", 503: "unhealthy"}


def style_of(scope: Scope) -> Literal["openai", "tei"] | None:
    """Return whose errors the caller of a request reads; None for our own."""
    path = path_of(scope)
    if path in TEI_PATHS or (path == "/" and scope["method"] == "POST") or scope.get("state", {}).get(TEI_STATE):
        return "tei"
    return "openai" if path in OPENAI_PATHS else None


def openai_status(status: int) -> int:
    """Return the status under which OpenAI's clients know what is wrong with a field: 400."""
    return 400 if status == 422 else status


def tei_error(message: str, status: int) -> bytes:
    """Return an error in TEI's flat shape."""
    return orjson.dumps({"error": message, "error_type": TEI_TYPES.get(status, "validation")})
