"""GET /metrics: what Prometheus reads."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.http.drain import Drain
from api.service import Service
from api.telemetry import metrics


def metrics_router(service: Service, drain: Drain) -> APIRouter:
    """Return the route that tells the metrics."""
    router = APIRouter(tags=["service"])

    @router.get(
        "/metrics",
        operation_id="metrics",
        summary="What Prometheus reads",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The metrics."}},
    )
    async def read_metrics(request: Request) -> Response:
        """Return counters, gauges and histograms in the text format of Prometheus, or as OpenMetrics if accepted."""
        metrics.inflight(drain.running)
        for model in service.models:
            ready = model.state == "ready"
            healthy = ready and model.batcher.failure is None
            metrics.model(model.name, loaded=ready, failed=model.state == "failed", healthy=healthy)
            if ready:
                metrics.queue(model.name, model.batcher.pending, model.batcher.waiting())
        if service.state == "ready":
            metrics.jobs(job.state for job in service.jobs.all())
            metrics.collections({state.name: state.documents or 0 for state in await service.survey()})
        body, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return router
