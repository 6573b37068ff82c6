"""OpenTelemetry traces over OTLP: a span for each request, with a child span for each of its stages.

All spans of a request are created when it ends, from the stages in its record. An ASGI instrumentation would create the
request's span only, and open it before a stage is known.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from api.telemetry.request_record import RequestRecord
from embedserve import __version__
from embedserve.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.context import Context


class Tracer:
    """Exports spans; they hold no texts and no keys.

    Args:
        endpoint: Address of an OTLP collector over HTTP, such as ``http://collector:4318``.

    Raises:
        InputError: The extra ``otel`` is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            message = "otel_endpoint is set, but OpenTelemetry is not installed; install embedserve[otel]"
            raise InputError(message, field="otel_endpoint") from None
        self._trace = trace
        resource = Resource.create({"service.name": "embedserve", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("embedserve")

    def close(self) -> None:
        """Export the remaining spans."""
        self._provider.shutdown()

    def finish(self, record: RequestRecord, method: str, route: str, status: int) -> str:
        """Export the spans of a finished request, and return the id of its trace."""
        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return now_ns - int(1e9 * (now - moment))

        values: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "embedserve.tokens": record.tokens,
            "embedserve.request_id": record.request_id,
        }
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._parent(record.traceparent),
            kind=self._trace.SpanKind.SERVER,
            start_time=at(record.started),
            attributes=values,
        )
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        context = self._trace.set_span_in_context(span)
        for name, started, ended in record.stages:
            self._tracer.start_span(name, context=context, start_time=at(started)).end(at(ended))
        span.end(now_ns)
        return f"{span.get_span_context().trace_id:032x}"

    def _parent(self, traceparent: str) -> Context | None:
        """Return the context of a ``traceparent`` header, None without one."""
        trace = self._trace
        if not traceparent:
            return None
        _, trace_id, span_id, flags = traceparent.split("-")
        ids = int(trace_id, 16), int(span_id, 16)
        context = trace.SpanContext(*ids, is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16)))
        return trace.set_span_in_context(trace.NonRecordingSpan(context))
