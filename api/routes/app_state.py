"""What handlers share: the service of the application that a request came to."""

from __future__ import annotations

from starlette.requests import Request

from api.service import Service

EMBED_ERRORS = (404, 422, 429, 500, 503)


def service_of(request: Request) -> Service:
    """Return the service of the application."""
    service: Service = request.app.state.service
    return service
