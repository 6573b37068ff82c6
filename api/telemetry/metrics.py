"""What the service counts, in the form of Prometheus: prefix ``es_``, base units, labels with few values.

Labels hold what the service itself names: routes as templates, models that are loaded, collections that are there.
Nothing that a caller makes up becomes a label.
"""

from __future__ import annotations

from collections import Counter as Occurrences
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, TypeVar

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

disable_created_metrics()  # a second series for each counter, which nothing here reads
REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)

SECONDS = tuple(0.001 * 2**n for n in range(17))  # 1 ms to 66 s
COUNTS = tuple(float(2**n) for n in range(17))  # 1 to 65,536
SHARES = tuple(n / 10 for n in range(1, 10))
MAX_COLLECTIONS = 100
OTHER = "other"  # the label of those beyond

MODEL = ("model",)

M = TypeVar("M", Counter, Gauge, Histogram)


def _counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, labels: Iterable[str] = (), buckets: tuple[float, ...] = SECONDS) -> Histogram:
    return Histogram(name, text, labels, registry=REGISTRY, buckets=buckets)


_requests = _counter("es_requests_total", "Answers by route and status.", ("route", "code"))
_duration = _histogram("es_request_duration_seconds", "Seconds from a request to the end of its answer.", ("route",))
_inflight = _gauge("es_inflight_requests", "Requests that are being answered.")
_rejected = _counter("es_rejected_total", "Requests that were turned away, by reason.", ("reason",))
_queue_items = _gauge("es_queue_items", "Requests that wait.", ("model", "priority"))
_queue_tokens = _gauge("es_queue_tokens", "Tokens that wait or are computed.", MODEL)
_queue_wait = _histogram("es_queue_wait_seconds", "Seconds that a request waits for its first batch.", MODEL)
_tokenize = _histogram("es_tokenize_seconds", "Seconds to cut the texts of a request into tokens.", MODEL)
_compute = _histogram("es_compute_seconds", "Seconds that a batch is computed.", MODEL)
_batch_items = _histogram("es_batch_items", "Texts in a batch.", MODEL, COUNTS)
_batch_tokens = _histogram("es_batch_tokens", "Tokens in a batch, padding aside.", MODEL, COUNTS)
_padding = _histogram("es_batch_padding_ratio", "Share of a batch that is padding.", MODEL, SHARES)
_oom = _counter("es_oom_retries_total", "Batches tried again in halves, as they did not fit the memory.", MODEL)
_tokens = _counter("es_tokens_total", "Tokens embedded.", ("model", "input_type"))
_truncated = _counter("es_truncated_total", "Texts that were cut because the model reads no further.", MODEL)
_model_loaded = _gauge("es_model_loaded", "1 where the model answers, 0 where it does not.", MODEL)
_model_failed = _gauge("es_model_failed", "1 where the model cannot be loaded, 0 where nothing went wrong.", MODEL)
_model_load = _gauge("es_model_load_seconds", "Seconds that loading the model took.", MODEL)
_device = _gauge("es_device_healthy", "1 where the device computes, 0 where it is lost.", MODEL)
_points = _gauge("es_collection_points", "Documents in a collection.", ("collection",))
_search = _histogram("es_search_duration_seconds", "Seconds of a search, by stage.", ("collection", "stage"))
_job_items = _counter("es_job_items_total", "Records that index builds are through with, and left out.", ("outcome",))
_jobs = _gauge("es_job_state", "Index builds by state.", ("state",))
_build = _gauge("es_build_info", "Versions, as labels of a constant 1.", ("version", "torch", "faiss"))


def _version_of(*packages: str) -> str:
    """Return the version of the first package that is installed; nothing is imported for it."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "none"


_build.labels(__version__, _version_of("torch"), _version_of("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")).set(1)


@cache
def _labelled(metric: M, *labels: str | int) -> M:
    """Return ``metric.labels(*labels)``, which takes longer to find than to count."""
    return metric.labels(*labels)


def request(route: str, code: int, seconds: float, trace_id: str = "") -> None:
    """Count an answer; ``route`` is the template of the path."""
    _labelled(_requests, route, code).inc()
    _labelled(_duration, route).observe(seconds, {"trace_id": trace_id} if trace_id else None)


def rejected(reason: str) -> None:
    """Count a request that was turned away, for one of a few reasons."""
    _labelled(_rejected, reason).inc()


def inflight(count: int) -> None:
    """Set how many requests are being answered."""
    _inflight.set(count)


def queue(model: str, tokens: int, requests: Mapping[str, int]) -> None:
    """Set what waits for a model: tokens in all, requests by priority."""
    _labelled(_queue_tokens, model).set(tokens)
    for priority, count in requests.items():
        _labelled(_queue_items, model, priority).set(count)


def tokenized(model: str, seconds: float) -> None:
    """Count how long the texts of a request took to be cut into tokens."""
    _labelled(_tokenize, model).observe(seconds)


def batch(model: str, report: BatchReport) -> None:
    """Count a batch, and how long those requests waited that it began with."""
    _labelled(_batch_items, model).observe(report.texts)
    _labelled(_batch_tokens, model).observe(report.tokens)
    _labelled(_padding, model).observe(1 - report.tokens / max(1, report.padded_tokens))
    _labelled(_compute, model).observe(report.compute_s)
    waits = _labelled(_queue_wait, model)
    for waited in report.waits_s:
        waits.observe(waited)


def embedded(model: str, input_type: str, tokens: int, truncated: int) -> None:
    """Count what a caller had embedded."""
    _labelled(_tokens, model, input_type).inc(tokens)
    if truncated:
        _labelled(_truncated, model).inc(truncated)


def oom_retry(model: str) -> None:
    """Count a batch that did not fit the device's memory."""
    _oom.labels(model).inc()


def model(name: str, *, loaded: bool, failed: bool, healthy: bool) -> None:
    """Set whether a model is loaded or cannot be, and whether its device computes."""
    _labelled(_model_loaded, name).set(loaded)
    _model_failed.labels(name).set(failed)
    _labelled(_device, name).set(healthy)


def model_load(name: str, seconds: float) -> None:
    """Set how long loading a model took."""
    _labelled(_model_load, name).set(seconds)


def search(collection: str, stages_ms: Mapping[str, float]) -> None:
    """Count the stages that a search had, given in milliseconds as answers give them."""
    label = _collection_label(collection)
    for stage, spent in stages_ms.items():
        if spent:
            _labelled(_search, label, stage).observe(spent / 1000)


def collections(documents: Mapping[str, int]) -> None:
    """Set how many documents each collection has."""
    _points.clear()
    for name, count in list(documents.items())[:MAX_COLLECTIONS]:
        _points.labels(name).set(count)


def jobs(states: Iterable[str]) -> None:
    """Set how many jobs there are in each state, given the state of each."""
    _jobs.clear()
    for state, count in Occurrences(states).items():
        _jobs.labels(state).set(count)


def job_items(outcome: Literal["done", "dead_letter"], count: int) -> None:
    """Count records that index builds are through with (``done``), and those of them left out (``dead_letter``)."""
    _job_items.labels(outcome).inc(count)


_seen: set[str] = set()


def _collection_label(name: str) -> str:
    """Return the name of a collection, or one for all beyond the first hundred."""
    if name not in _seen and len(_seen) < MAX_COLLECTIONS:
        _seen.add(name)
    return name if name in _seen else OTHER


def render(accept: str = "") -> tuple[bytes, str]:
    """Return all of it as text, and the content type; OpenMetrics where ``accept`` asks for it."""
    encoder, content_type = choose_encoder(accept)
    return encoder(REGISTRY), content_type
