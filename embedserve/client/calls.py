"""The client's protocol without I/O: generators yield requests and receive parsed responses."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
import numpy as np

from embedserve.errors import EmbedserveError, OverloadedError

T = TypeVar("T")

RETRIED_METHODS = ("GET", "PUT", "DELETE")  # idempotent: retried even if the connection broke before the response
BODY_SHARE = 0.8  # share of the service's largest request body that one chunk may fill


class ServiceError(EmbedserveError):
    """The service rejected a request.

    Attributes:
        status: HTTP status.
        code: Stable error code for programs.
        request_id: Id of the request in the log of the service.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None, request_id: str | None) -> None:
        super().__init__(message, field=field)
        self.status, self.code, self.request_id = status, code, request_id


@dataclass(frozen=True)
class Call:
    """One request to the service."""

    method: str
    path: str
    body: Any = None
    is_idempotent: bool = True


@dataclass(frozen=True)
class Retries:
    """Retry policy: exponential backoff with jitter, on 429, 503 with ``Retry-After`` and failed connections.

    Args:
        attempts: Maximum number of attempts.
        first_s: Upper bound of the first wait; it doubles with each attempt. The actual wait is random, so that
            many clients do not retry at the same moment.
        most_s: Upper bound of every wait, including ``Retry-After``.
    """

    attempts: int = 6
    first_s: float = 0.25
    most_s: float = 30.0

    def wait_s(self, attempt: int, retry_after: str | None) -> float:
        """Return the seconds before the next attempt; ``attempt`` counts from 0."""
        jitter = random.uniform(0.5, 1.0) * self.first_s * 2**attempt
        try:
            requested = float(retry_after or 0)
        except ValueError:  # a date, which this service does not send
            requested = 0.0
        return min(self.most_s, requested + jitter)

    def after_error(self, attempt: int, call: Call, error: httpx2.TransportError) -> float:
        """Return the seconds to wait after a failed connection; raise ``error`` if it must not be retried.

        A request that may have reached the service is retried only if it is idempotent.
        """
        never_arrived = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        broken = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError)
        if attempt + 1 >= self.attempts or not (never_arrived or (call.is_idempotent and broken)):
            raise error
        return self.wait_s(attempt, None)

    def after_response(self, attempt: int, response: httpx2.Response) -> float | None:
        """Return the seconds to wait before sending the request again; None if this response is final.

        503 without ``Retry-After`` is permanent.
        """
        retry_after = response.headers.get("retry-after")
        is_temporary = response.status_code == 429 or (response.status_code == 503 and retry_after is not None)
        if attempt + 1 >= self.attempts or not is_temporary:
            return None
        return self.wait_s(attempt, retry_after)


Flow = Generator[Call, Any, T]  # yields requests, is sent the parsed responses, returns the result


@dataclass
class Conversation:
    """The operations that both clients share, as generators without I/O."""

    limits: dict[str, int] = field(default_factory=dict)

    def embed(
        self, texts: str | Sequence[str], input_type: str, model: str | None, dimensions: int | None
    ) -> Flow[np.ndarray]:
        """Return the vectors of texts, float32 (N, d)."""
        values = [texts] if isinstance(texts, str) else list(texts)
        options = _without_none(input_type=input_type, model=model, dimensions=dimensions, encoding_format="base64")
        vectors: list[np.ndarray] = []
        for chunk in (yield from self._chunks(values)):
            response = yield Call("POST", "/embed", {"input": chunk, **options})
            vectors += [_vector(item["embedding"]) for item in response["data"]]
        return np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)

    def search(
        self, queries: str | Sequence[str], collection: str | None, top_k: int, more: Mapping[str, Any]
    ) -> Flow[list[list[dict[str, Any]]]]:
        """Return the hits of each query."""
        values = [queries] if isinstance(queries, str) else list(queries)
        hits: list[list[dict[str, Any]]] = []
        for chunk in (yield from self._chunks(values, hits_per_value=top_k)):
            body = _without_none(queries=chunk, collection=collection, top_k=top_k, **more)
            response = yield Call("POST", "/search", body)
            hits += [result["hits"] for result in response["results"]]
        return hits

    def upsert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> Flow[int]:
        """Return how many documents were written."""
        path = f"/v1/collections/{quote(collection, safe='')}/documents"
        count = 0
        for chunk in (yield from self._chunks(list(documents))):
            response = yield Call("POST", path, {"documents": chunk})
            count += int(response["upserted"])
        return count

    def _chunks(self, values: list[Any], hits_per_value: int = 0) -> Flow[list[list[Any]]]:
        """Split values so that each request stays within the limits of the service."""
        if not self.limits:
            self.limits.update((yield Call("GET", "/info"))["limits"])
        max_values = self.limits["max_inputs"]
        if hits_per_value:
            max_values = max(1, min(max_values, self.limits["max_hits"] // hits_per_value))
        max_bytes = int(BODY_SHARE * self.limits["max_body_bytes"])
        chunks: list[list[Any]] = []
        chunk_bytes = 0
        for value in values:
            value_bytes = len(json.dumps(value)) + 2
            if not chunks or len(chunks[-1]) >= max_values or chunk_bytes + value_bytes > max_bytes:
                chunks.append([])
                chunk_bytes = 0
            chunks[-1].append(value)
            chunk_bytes += value_bytes
        return chunks


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _vector(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)


def read_response(response: httpx2.Response) -> Any:
    """Return the parsed body of a response.

    Raises:
        OverloadedError: The status is 429.
        ServiceError: The status is another error.
    """
    if response.is_success:
        return response.json() if response.content else None
    try:
        error = response.json()["error"]
        message, code = error["message"], error["code"]
    except (ValueError, KeyError, TypeError):  # not from the service, for example from a proxy
        error, message, code = {}, f"HTTP {response.status_code}: {response.text[:200]}", "http_error"
    if response.status_code == 429:
        retry_after = response.headers.get("retry-after", "1")
        raise OverloadedError(message, retry_after_s=int(retry_after) if retry_after.isdecimal() else 1)
    raise ServiceError(response.status_code, code, message, error.get("param"), error.get("request_id"))
