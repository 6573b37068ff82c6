"""GET / and /docs: pages for a browser, each one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
PART = re.compile(r"\{\{([a-z]+\.(?:css|js))\}\}")  # stands where the text of that file belongs


def pages_router() -> APIRouter:
    """Return the routes that serve pages."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def app_page() -> Response:
        """Return the page to search, compare, and look at texts, collections, jobs and the service itself."""
        return _page("app.html")

    @router.get("/docs")
    async def docs_page() -> Response:
        """Return the page that shows the API and lets one try it."""
        return _page("docs.html")

    @router.get("/favicon.ico")
    async def icon() -> Response:
        """Return nothing: the pages carry their icon."""
        return Response(status_code=204)

    return router


@cache
def _read(name: str) -> tuple[bytes, str]:
    """Return a page and the policy that lets exactly its own script and style run."""
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
