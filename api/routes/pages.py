"""GET /, /docs and /openapi.json: self-contained pages for a browser, and the OpenAPI document."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from api.http.routing import OperationRoute, Operations
from api.openapi.document import openapi_document
from api.responses.json_response import json_response
from api.service import Service

INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
PART = re.compile(r"\{\{([a-z]+\.(?:css|js))\}\}")  # replaced by the text of that file


operations = Operations("pages")


@operations.get("/", needs="open")
async def app_page(request: Request) -> Response:
    """Return the page for search, comparison, texts, collections, jobs and the service itself."""
    return _page("app.html")


@operations.get("/docs", needs="open")
async def docs_page(request: Request) -> Response:
    """Return the page that documents the API and sends requests to it."""
    return _page("docs.html")


@operations.get("/favicon.ico", needs="open")
async def icon(request: Request) -> Response:
    """Return an empty response: the pages embed their icon."""
    return Response(status_code=204)


@operations.get("/openapi.json", needs="open")
async def openapi(request: Request) -> Response:
    """Return the OpenAPI document, with the limits of this server and of its default model."""
    return json_response(openapi_of(request.app))


def openapi_of(app: Starlette) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    service: Service = app.state.service
    declared = [route.operation for route in app.routes if isinstance(route, OperationRoute)]
    encoder = service.model().encoder if service.state == "ready" else None
    return openapi_document(declared, app.state.limits, encoder, secured=bool(service.settings.api_keys))


@cache
def _read(name: str) -> tuple[bytes, str]:
    """Return a page and a content security policy that allows only its own script and style."""
    folder = resources.files("api.pages")
    text = folder.joinpath(name).read_text(encoding="utf-8")
    text = PART.sub(lambda part: folder.joinpath(part[1]).read_text(encoding="utf-8"), text)
    allowed: dict[str, list[str]] = {"script": [], "style": []}
    for kind, source in INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {' '.join(allowed['script'])}; style-src {' '.join(allowed['style'])}"
    )
    return text.encode(), policy


def _page(name: str) -> Response:
    body, policy = _read(name)
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)
