"""GET /metrics: metrics for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from api.http.routing import Operations
from api.routes.app_state import service_of
from api.telemetry import metrics

operations = Operations("service")


@operations.get(
    "/metrics",
    needs="read",
    operation_id="metrics",
    summary="Read metrics",
    response_types={"text/plain": {"schema": {"type": "string"}}},
    response_description="The metrics.",
)
async def read_metrics(request: Request) -> Response:
    """Return counters, gauges and histograms in the text format of Prometheus, or in OpenMetrics if accepted."""
    service = service_of(request)
    metrics.inflight(request.app.state.drain.running)
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
