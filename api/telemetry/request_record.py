"""What is known of the request that is being answered: for its log line, its metrics, its limits and its trace."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Args:
        request_id: The id in its answer and in the log.
        traceparent: The span that it belongs to, as the caller sent it; "" where there is none.
        templates: The routes that its path may belong to, such as ``/v1/collections/{name}``.
        key: The name of the API key it came with, "" without one.
        tokens: Tokens embedded for it.
        rejected: Why it was turned away, "" where it was not.
        stages: Name, begin and end of each stage, by the performance counter.
    """

    request_id: str
    traceparent: str = ""
    templates: list[str] = field(default_factory=list)
    key: str = ""
    tokens: int = 0
    rejected: str = ""
    started: float = field(default_factory=time.perf_counter)
    stages: list[tuple[str, float, float]] = field(default_factory=list)


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


def count_tokens(tokens: int) -> None:
    """Add to the tokens of the request that is being answered, if there is one."""
    record = current_record.get()
    if record is not None:
        record.tokens += tokens


def add_stage(name: str, started: float, ended: float | None = None) -> None:
    """Note a stage of the request that is being answered, in seconds of the performance counter."""
    record = current_record.get()
    if record is not None:
        record.stages.append((name, started, time.perf_counter() if ended is None else ended))
