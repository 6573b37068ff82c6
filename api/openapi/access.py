"""What the OpenAPI document says of keys, where the service has some."""

from __future__ import annotations

from typing import Any

from api.http.access import access_of

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "x-api-key: KEY"},
}
REFUSALS = {"401": "No key, or one that is not known here.", "403": "The key's scope is not enough for this route."}


def describe_access(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document how keys are sent, and which operations need which scope."""
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed = access_of(method.upper(), [path])
            if needed == "open":
                continue
            operation["security"] = [{name: []} for name in SCHEMES]
            operation["x-embedserve-scope"] = needed
            for status, description in REFUSALS.items():
                operation["responses"][status] = {"description": description, "content": error}
