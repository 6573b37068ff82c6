"""The record of the current request: what its log line, metrics, limits and trace are made of."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, get_args

Access = Literal["open", "read", "write", "admin"]
LEVELS: tuple[Access, ...] = get_args(Access)  # each level includes those before it
UNMATCHED = "unmatched"  # the route of a path that no route matches


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        request_id: Id in the response and in the log.
        traceparent: The caller's span, "" without one.
        route: Path template of the matched route, such as ``/v1/collections/{name}``.
        access: Access level that the matched route needs.
        key: Name of the API key, "" without one.
        tokens: Tokens embedded for the request.
        rejected: Reason of a rejection, "" without one.
        started: Start of the request, of `time.perf_counter`.
        stages: Name, start and end of each stage, of `time.perf_counter`.
    """

    request_id: str
    traceparent: str = ""
    route: str = UNMATCHED
    access: Access = "admin"
    key: str = ""
    tokens: int = 0
    rejected: str = ""
    started: float = field(default_factory=time.perf_counter)
    stages: list[tuple[str, float, float]] = field(default_factory=list)


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


def count_tokens(tokens: int) -> None:
    """Add to the tokens of the current request, if any."""
    record = current_record.get()
    if record is not None:
        record.tokens += tokens


def add_stage(name: str, started: float, ended: float | None = None) -> None:
    """Record a stage of the current request, if any; times are of `time.perf_counter`. Default end: now."""
    record = current_record.get()
    if record is not None:
        record.stages.append((name, started, time.perf_counter() if ended is None else ended))
