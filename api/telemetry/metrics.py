"""Prometheus metrics of the service: prefix ``es_``, base units, labels with few values.

Label values are those of the service: path templates, loaded models, existing collections. No value that a client
chooses becomes a label.
"""

from __future__ import annotations

from collections import Counter as Occurrences
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from embedserve import __version__

if TYPE_CHECKING:
    from api.telemetry.batch_report import BatchReport

SECONDS = tuple(0.001 * 2**n for n in range(17))  # 1 ms to 66 s
COUNTS = tuple(float(2**n) for n in range(17))  # 1 to 65,536
SHARES = tuple(n / 10 for n in range(1, 10))
MAX_COLLECTIONS = 100
OTHER = "other"  # label of the collections after the first hundred

# Name: kind or buckets of a histogram, description, labels.
_METRICS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "es_requests_total": (Counter, "Responses by route and status.", ("route", "code")),
    "es_request_duration_seconds": (SECONDS, "Seconds from a request to the end of its response.", ("route",)),
    "es_inflight_requests": (Gauge, "Requests in progress.", ()),
    "es_rejected_total": (Counter, "Rejected requests, by reason.", ("reason",)),
    "es_queue_items": (Gauge, "Queued requests.", ("model", "priority")),
    "es_queue_tokens": (Gauge, "Tokens that are queued or computed.", ("model",)),
    "es_queue_wait_seconds": (SECONDS, "Seconds from queueing a request to its first batch.", ("model",)),
    "es_tokenize_seconds": (SECONDS, "Seconds to tokenise the texts of a request.", ("model",)),
    "es_compute_seconds": (SECONDS, "Seconds to compute a batch.", ("model",)),
    "es_batch_items": (COUNTS, "Texts in a batch.", ("model",)),
    "es_batch_tokens": (COUNTS, "Tokens in a batch, without padding.", ("model",)),
    "es_batch_padding_ratio": (SHARES, "Share of padding in a batch.", ("model",)),
    "es_oom_retries_total": (Counter, "Batches halved and retried after running out of memory.", ("model",)),
    "es_tokens_total": (Counter, "Tokens embedded.", ("model", "input_type")),
    "es_truncated_total": (Counter, "Texts cut to the model's maximum.", ("model",)),
    "es_model_loaded": (Gauge, "1 if the model is loaded.", ("model",)),
    "es_model_failed": (Gauge, "1 if the model failed to load.", ("model",)),
    "es_model_load_seconds": (Gauge, "Seconds to load the model.", ("model",)),
    "es_device_healthy": (Gauge, "1 if the device computes, 0 if it is lost.", ("model",)),
    "es_collection_points": (Gauge, "Documents in a collection.", ("collection",)),
    "es_search_duration_seconds": (SECONDS, "Seconds of a search, by stage.", ("collection", "stage")),
    "es_job_items_total": (Counter, "Records that index builds completed or skipped.", ("outcome",)),
    "es_job_state": (Gauge, "Index builds by state.", ("state",)),
    "es_build_info": (Gauge, "Versions, as labels of a constant 1.", ("version", "torch", "faiss")),
}


@cache
def registry() -> CollectorRegistry:
    """Return the registry of the process, created at the first call."""
    disable_created_metrics()  # a second series for each counter, which is not used
    created = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=created)
    return created


@cache
def _metrics() -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, (kind, text, labels) in _METRICS.items():
        if isinstance(kind, tuple):
            metrics[name] = Histogram(name, text, labels, registry=registry(), buckets=kind)
        else:
            metrics[name] = kind(name, text, labels, registry=registry())
    build = __version__, _version_of("torch"), _version_of("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
    metrics["es_build_info"].labels(*build).set(1)
    return metrics


def _version_of(*packages: str) -> str:
    """Return the version of the first installed package, without importing it."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "none"


@cache
def _metric(name: str, *labels: str | int) -> Any:
    """Return a metric with label values; cached, because the lookup takes longer than counting."""
    metric = _metrics()[name]
    return metric.labels(*labels) if labels else metric


def request(route: str, code: int, seconds: float, trace_id: str = "") -> None:
    """Count a response; ``route`` is the template of the path."""
    _metric("es_requests_total", route, code).inc()
    _metric("es_request_duration_seconds", route).observe(seconds, {"trace_id": trace_id} if trace_id else None)


def rejected(reason: str) -> None:
    """Count a rejected request, by one of a few reasons."""
    _metric("es_rejected_total", reason).inc()


def inflight(count: int) -> None:
    """Set the number of requests in progress."""
    _metric("es_inflight_requests").set(count)


def queue(model: str, tokens: int, requests: Mapping[str, int]) -> None:
    """Set the queue of a model: tokens in total, requests by priority."""
    _metric("es_queue_tokens", model).set(tokens)
    for priority, count in requests.items():
        _metric("es_queue_items", model, priority).set(count)


def tokenized(model: str, seconds: float) -> None:
    """Record the seconds to tokenise the texts of a request."""
    _metric("es_tokenize_seconds", model).observe(seconds)


def batch(model: str, report: BatchReport) -> None:
    """Record a batch, and the waits of the requests whose first batch it is."""
    _metric("es_batch_items", model).observe(report.texts)
    _metric("es_batch_tokens", model).observe(report.tokens)
    _metric("es_batch_padding_ratio", model).observe(1 - report.tokens / max(1, report.padded_tokens))
    _metric("es_compute_seconds", model).observe(report.compute_s)
    waits = _metric("es_queue_wait_seconds", model)
    for waited in report.waits_s:
        waits.observe(waited)


def embedded(model: str, input_type: str, tokens: int, truncated: int) -> None:
    """Count embedded tokens and truncated texts."""
    _metric("es_tokens_total", model, input_type).inc(tokens)
    if truncated:
        _metric("es_truncated_total", model).inc(truncated)


def oom_retry(model: str) -> None:
    """Count a batch that ran out of memory."""
    _metric("es_oom_retries_total", model).inc()


def model(name: str, *, loaded: bool, failed: bool, healthy: bool) -> None:
    """Set the state of a model and of its device."""
    _metric("es_model_loaded", name).set(loaded)
    _metric("es_model_failed", name).set(failed)
    _metric("es_device_healthy", name).set(healthy)


def model_load(name: str, seconds: float) -> None:
    """Set the seconds to load a model."""
    _metric("es_model_load_seconds", name).set(seconds)


def search(collection: str, stages_ms: Mapping[str, float]) -> None:
    """Record the stages of a search, in milliseconds."""
    label = _collection_label(collection)
    for stage, duration_ms in stages_ms.items():
        if duration_ms:
            _metric("es_search_duration_seconds", label, stage).observe(duration_ms / 1000)


def collections(documents: Mapping[str, int]) -> None:
    """Set the number of documents of each collection."""
    _metric("es_collection_points").clear()
    for name, count in list(documents.items())[:MAX_COLLECTIONS]:
        _metric("es_collection_points").labels(name).set(count)


def jobs(states: Iterable[str]) -> None:
    """Set the number of jobs by state, from the state of each job."""
    _metric("es_job_state").clear()
    for state, count in Occurrences(states).items():
        _metric("es_job_state").labels(state).set(count)


def job_items(outcome: Literal["done", "dead_letter"], count: int) -> None:
    """Count records that index builds completed (``done``) or skipped (``dead_letter``)."""
    _metric("es_job_items_total", outcome).inc(count)


_seen: set[str] = set()


def _collection_label(name: str) -> str:
    """Return the name of a collection, or one label for all after the first hundred."""
    if name not in _seen and len(_seen) < MAX_COLLECTIONS:
        _seen.add(name)
    return name if name in _seen else OTHER


def render(accept: str = "") -> tuple[bytes, str]:
    """Return the metrics as text, and the content type: OpenMetrics if ``accept`` prefers it."""
    _metrics()
    encoder, content_type = choose_encoder(accept)
    return encoder(registry()), content_type
