"""The HTTP application: created from settings, started by its lifespan; importing this module does nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from api.http.auth import AuthMiddleware, read_keys
from api.http.drain import Drain, DrainMiddleware
from api.http.error_responses import EXCEPTION_HANDLERS
from api.http.middleware import BodyLimitMiddleware, RequestMiddleware
from api.http.rate_limits import RateLimiter, RateLimitMiddleware
from api.http.routing import Operation, OperationRoute
from api.routes import (
    cohere,
    collections,
    documents,
    embed,
    health,
    jina,
    jobs,
    models,
    openai,
    pages,
    rerank,
    search,
    snapshots,
    tei,
)
from api.routes import metrics as metrics_routes
from api.schemas.common import Limits
from api.service import Service
from api.settings import Settings, load_settings
from api.telemetry import metrics
from api.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from embedserve import Encoder

# Measured (docs/collections.md): with Python's 5 ms, a search beside a writer takes three to five times as long.
SWITCH_S = 0.0001

RESOURCES = (
    *(embed, search, openai, health, collections, documents, snapshots, jobs, models, metrics_routes),
    *(cohere, tei, jina, rerank, pages),
)


def operations() -> list[Operation]:
    """Return every operation, in the order in which routes are matched."""
    return [operation for resource in RESOURCES for operation in resource.operations]


def create_app(settings: Settings | None = None, encoder: Encoder | None = None) -> Starlette:
    """Return the application.

    The model loads in the background once the application starts; until then ``/readyz`` responds 503.

    Args:
        settings: The settings. Default: those of the environment.
        encoder: A loaded encoder, in place of ``settings.model``.
    """
    settings = settings or load_settings()
    service = Service(settings, encoder, observe=metrics.batch)
    tracer = Tracer(settings.otel_endpoint) if settings.otel_endpoint else None
    drain = Drain()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sys.setswitchinterval(SWITCH_S)
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)
            if tracer is not None:
                await run_in_threadpool(tracer.close)

    guards = _guards(settings)
    app = Starlette(
        routes=[OperationRoute(operation, guards) for operation in operations()],
        middleware=_middleware(settings, drain, tracer),
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.drain = drain
    app.state.limits = Limits(settings.max_inputs, settings.max_text_chars, settings.max_top_k, settings.max_hits)
    return app


def _middleware(settings: Settings, drain: Drain, tracer: Tracer | None) -> list[Middleware]:
    """Return the middleware around the router, outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
    return [
        Middleware(RequestMiddleware, tracer=tracer),
        *([cors] if settings.cors_origins else []),
        Middleware(DrainMiddleware, drain=drain),
        Middleware(BodyLimitMiddleware, limit=settings.max_body_bytes),
    ]


def _guards(settings: Settings) -> list[Middleware]:
    """Return the middleware between a matched route and its handler, outermost first."""
    guards = []
    if settings.api_keys:
        guards.append(Middleware(AuthMiddleware, keys=read_keys(settings.api_keys)))
    if settings.rate_limit_tokens or settings.rate_limit_requests:
        limiter = RateLimiter(settings.rate_limit_tokens, settings.rate_limit_requests)
        guards.append(Middleware(RateLimitMiddleware, limiter=limiter))
    return guards
