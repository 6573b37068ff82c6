"""The HTTP application: built from settings, loaded when it starts, nothing at import."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from api.http import error_responses as errors
from api.http.auth import AuthMiddleware, read_keys
from api.http.drain import Drain, DrainMiddleware
from api.http.middleware import BodyLimitMiddleware, DirectMiddleware, Endpoint, RequestMiddleware
from api.http.paths import Paths
from api.http.rate_limits import RateLimiter, RateLimitMiddleware
from api.openapi.access import describe_access
from api.openapi.embed import teach_embed
from api.openapi.external_formats import teach_compat
from api.routes.cohere import cohere_router
from api.routes.collections import collections_router
from api.routes.documents import documents_router
from api.routes.embed import embed_router
from api.routes.health import health_router
from api.routes.jina import jina_router
from api.routes.jobs import jobs_router
from api.routes.metrics import metrics_router
from api.routes.models import models_router
from api.routes.openai import openai_router
from api.routes.pages import pages_router
from api.routes.rerank import rerank_router
from api.routes.search import search_router
from api.routes.snapshots import snapshots_router
from api.routes.tei import tei_router
from api.schemas.common import Limits
from api.service import Service
from api.settings import Settings, load_settings
from api.telemetry import metrics
from api.telemetry.tracing import Tracer
from embedserve import __version__

if TYPE_CHECKING:
    from embedserve import Encoder

# A search takes the interpreter's lock some thirty times, and waits so long for each beside a thread that writes: with
# Python's 5 ms a search beside a writer takes three to five times as long (docs/collections.md).
SWITCH_S = 0.0001

DIRECT = "(request: 'Request') -> 'Response'"  # what DirectMiddleware can call

DESCRIPTION = """Turn texts into vectors and find documents by meaning.

Every error has one shape: `{"error": {"message", "type", "code", "param", "request_id"}}`.
Send `X-Request-ID` to find a request in the log; without it the server makes one up. It is in every answer."""


def create_app(settings: Settings | None = None, encoder: Encoder | None = None) -> FastAPI:
    """Return the application.

    The model loads in the background once the application starts; until then ``/readyz`` answers 503.

    Args:
        settings: The settings; left out, they are read from the environment.
        encoder: An encoder that is loaded already, in place of ``settings.model``.
    """
    settings = settings or load_settings()
    limits = Limits(settings.max_inputs, settings.max_text_chars, settings.max_top_k, settings.max_hits)
    service = Service(settings, encoder, observe=metrics.batch)

    tracer = Tracer(settings.otel_endpoint) if settings.otel_endpoint else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(SWITCH_S)
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)
            if tracer is not None:
                await run_in_threadpool(tracer.close)

    app = FastAPI(
        title="embedserve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # there are metrics and traces of our own
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.drain = drain = Drain()
    paths: dict[str, set[str]] = {"/openapi.json": {"GET", "HEAD"}}
    direct: dict[tuple[str, str], Endpoint] = {}
    routers = (
        embed_router(service, limits),
        search_router(service, limits),
        collections_router(service),
        documents_router(service, limits),
        snapshots_router(service),
        jobs_router(service),
        health_router(service),
        models_router(service),
        metrics_router(service, drain),
        openai_router(service, limits),
        cohere_router(service, limits),
        tei_router(service, limits),
        jina_router(service, limits),
        rerank_router(service, limits),
        pages_router(),
    )
    for router in routers:
        for route in [route for route in router.routes if isinstance(route, APIRoute)]:
            methods = set(route.methods or ())
            if "{" not in route.path and str(signature(route.endpoint)) == DIRECT:
                direct.update({(method, route.path): route.endpoint for method in methods})
            paths.setdefault(route.path, set()).update(methods)
            if "GET" in methods:
                paths[route.path].add("HEAD")
                router.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
        app.router.routes.extend(router.routes)  # in place of include_router: found by one look at the path
    app.state.paths = paths
    errors.install(app)
    app.add_middleware(DirectMiddleware, endpoints=direct)
    _add_middleware(app, settings, drain, Paths(paths), tracer)
    _teach_dimensions(app, service)
    return app


def _add_middleware(app: FastAPI, settings: Settings, drain: Drain, paths: Paths, tracer: Tracer | None) -> None:
    """Put around the routes what every request goes through, the innermost first."""
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes)
    if settings.rate_limit_tokens or settings.rate_limit_requests:
        limiter = RateLimiter(settings.rate_limit_tokens, settings.rate_limit_requests)
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    if settings.api_keys:
        app.add_middleware(AuthMiddleware, keys=read_keys(settings.api_keys))
    app.add_middleware(DrainMiddleware, drain=drain)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(RequestMiddleware, paths=paths, tracer=tracer)


def _teach_dimensions(app: FastAPI, service: Service) -> None:
    """Put the loaded encoder's width into the OpenAPI document, as the most that ``dimensions`` may be."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        if service.settings.api_keys:
            describe_access(document)
        if service.state == "ready":
            teach_embed(document, service.encoder)
            teach_compat(document, service.encoder)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
