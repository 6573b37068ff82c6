"""Error bodies and statuses in the formats of other services, on the routes that their clients use."""

from __future__ import annotations

from typing import Literal

import orjson
from starlette.types import Scope

OPENAI_PATHS = frozenset({"/v1/embeddings", "/embeddings"})
TEI_PATHS = frozenset({"/embed_all", "/embed_sparse", "/similarity", "/tokenize", "/decode"})
TEI_STATE = "tei"  # in the state of a request whose body is in TEI's format
TEI_TYPES = {404: "not_found", 429: "overloaded", 500: "backend", 503: "unhealthy"}


def path_of(scope: Scope) -> str:
    """Return the path of a request below the path that the application is mounted at, as the router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if not root or not path.startswith(root):
        return path
    rest = path[len(root) :]
    return rest if not rest or rest.startswith("/") else path


def style_of(scope: Scope) -> Literal["openai", "tei"] | None:
    """Return the error format of a request; None for the format of this service."""
    path = path_of(scope)
    if path in TEI_PATHS or (path == "/" and scope["method"] == "POST") or scope.get("state", {}).get(TEI_STATE):
        return "tei"
    return "openai" if path in OPENAI_PATHS else None


def openai_status(status: int) -> int:
    """Return the status by which OpenAI's clients recognise a wrong field: 400."""
    return 400 if status == 422 else status


def tei_error(message: str, status: int) -> bytes:
    """Return an error in TEI's format."""
    return orjson.dumps({"error": message, "error_type": TEI_TYPES.get(status, "validation")})
