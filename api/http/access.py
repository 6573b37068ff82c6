"""What each route needs of a key; a route that is not here needs the scope admin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Access = Literal["open", "read", "write", "admin"]
LEVELS: tuple[Access, ...] = get_args(Access)  # each may do what those before it may

_ROUTES: dict[Access, str] = {
    "open": """
        GET /
        GET /docs
        GET /favicon.ico
        GET /openapi.json
        GET /livez
        GET /readyz
    """,
    "read": """
        GET /info
        GET /metrics
        POST /embed
        POST /v1/embeddings
        POST /embeddings
        POST /v2/embed
        POST /v1/multi-vector
        POST /rerank
        POST /v1/rerank
        POST /v2/rerank
        POST /
        POST /embed_all
        POST /embed_sparse
        POST /similarity
        POST /tokenize
        POST /decode
        POST /search
        GET /v1/models
        GET /v1/models/{id:path}
        GET /v1/models/{id:path}/selfcheck
        GET /v1/collections
        GET /v1/collections/{name}
        GET /v1/collections/{name}/documents
        GET /v1/collections/{name}/documents/{id:path}
        POST /v1/collections/{name}/count
        POST /v1/collections/{name}/facets
        POST /v1/collections/{name}/search
        GET /v1/aliases
        GET /v1/collections/{name}/snapshots
        GET /v1/collections/{name}/snapshots/{snapshot}/verify
        GET /v1/jobs
        GET /v1/jobs/{job}
        GET /v1/jobs/{job}/events
        GET /v1/jobs/{job}/dead-letters
    """,
    "write": """
        POST /v1/collections/{name}/documents
        DELETE /v1/collections/{name}/documents
        POST /v1/collections/{name}/compact
        POST /v1/collections
        PUT /v1/aliases/{alias}
        POST /v1/collections/{name}/snapshots
    """,
    "admin": """
        DELETE /v1/collections/{name}
        DELETE /v1/aliases/{alias}
        GET /v1/collections/{name}/snapshots/{snapshot}
        POST /v1/collections/{name}/snapshots/{snapshot}/restore
        POST /v1/jobs
        POST /v1/jobs/{job}/cancel
        POST /v1/jobs/{job}/resume
        DELETE /v1/jobs/{job}
        POST /v1/models/{id:path}/load
        POST /v1/models/{id:path}/unload
        PUT /v1/models/{id:path}/aliases/{alias}
        DELETE /v1/models/{id:path}/aliases/{alias}
    """,
}
ACCESS: dict[str, Access] = {line.strip(): level for level, lines in _ROUTES.items() for line in lines.split("\n")}
ACCESS.pop("")


def access_of(method: str, templates: Iterable[str]) -> Access:
    """Return what a request needs: the most of what its possible routes need; of no route, nothing but an error."""
    needs = [ACCESS.get(f"{'GET' if method == 'HEAD' else method} {template}", "admin") for template in templates]
    return max(needs, key=LEVELS.index, default="open")
