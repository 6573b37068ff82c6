"""What the clients send and read; how it is sent is theirs."""

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

RETRIED_METHODS = ("GET", "PUT", "DELETE")  # may be sent again where the connection broke before the answer
BODY_SHARE = 0.8  # of the largest body that the service takes, which a chunk fills at most


class ServiceError(EmbedserveError):
    """The service refused a request.

    Attributes:
        status: HTTP status.
        code: Stable word for programs.
        request_id: The id under which the log of the service has the request.
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
    repeatable: bool = True  # sending it twice does what sending it once does


@dataclass(frozen=True)
class Retries:
    """How long to go on where the service is overloaded, starting, or ending.

    Args:
        attempts: Requests in all.
        first_s: Longest first wait; each further one may be twice as long. The wait itself is drawn by chance, so
            that many clients do not come back together.
        most_s: Longest wait, also where ``Retry-After`` asks for more.
    """

    attempts: int = 6
    first_s: float = 0.25
    most_s: float = 30.0

    def wait_s(self, attempt: int, retry_after: str | None) -> float:
        """Return the seconds before the next attempt; ``attempt`` counts from 0."""
        drawn = random.uniform(0.5, 1.0) * self.first_s * 2**attempt
        try:
            asked = float(retry_after or 0)
        except ValueError:  # a date, which this service does not send
            asked = 0.0
        return min(self.most_s, asked + drawn if asked else drawn)


Flow = Generator[Call, Any, T]  # yields requests, is sent the parsed answers, returns the result


@dataclass
class Conversation:
    """What both clients do: generators that yield requests and are sent their answers."""

    limits: dict[str, int] = field(default_factory=dict)

    def embed(
        self, texts: str | Sequence[str], input_type: str, model: str | None, dimensions: int | None
    ) -> Flow[np.ndarray]:
        """Return the vectors of texts, float32 (N, d)."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        body = _given(input_type=input_type, model=model, dimensions=dimensions, encoding_format="base64")
        parts: list[np.ndarray] = []
        for part in (yield from self._chunks(wanted)):
            answer = yield Call("POST", "/embed", {"input": part, **body})
            parts += [_vector(item["embedding"]) for item in answer["data"]]
        return np.stack(parts) if parts else np.zeros((0, 0), dtype=np.float32)

    def search(
        self, queries: str | Sequence[str], collection: str | None, top_k: int, more: Mapping[str, Any]
    ) -> Flow[list[list[dict[str, Any]]]]:
        """Return the hits of each query."""
        wanted = [queries] if isinstance(queries, str) else list(queries)
        found: list[list[dict[str, Any]]] = []
        for part in (yield from self._chunks(wanted, hits=top_k)):
            body = _given(queries=part, collection=collection, top_k=top_k, **more)
            answer = yield Call("POST", "/search", body)
            found += [result["hits"] for result in answer["results"]]
        return found

    def upsert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> Flow[int]:
        """Return how many documents were written."""
        written = 0
        for part in (yield from self._chunks(list(documents))):
            answer = yield Call("POST", f"/v1/collections/{quote(collection, safe='')}/documents", {"documents": part})
            written += int(answer["upserted"])
        return written

    def _chunks(self, values: list[Any], hits: int = 0) -> Flow[list[list[Any]]]:
        """Cut what is to be sent so that each part stays within the limits of the service."""
        if not self.limits:
            self.limits = (yield Call("GET", "/info"))["limits"]
        most = self.limits["max_inputs"]
        if hits:
            most = max(1, min(most, self.limits["max_hits"] // hits))
        room = int(BODY_SHARE * self.limits["max_body_bytes"])
        chunks: list[list[Any]] = []
        size = 0
        for value in values:
            cost = len(json.dumps(value)) + 2
            if not chunks or len(chunks[-1]) >= most or size + cost > room:
                chunks.append([])
                size = 0
            chunks[-1].append(value)
            size += cost
        return chunks


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _vector(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)


def read_answer(response: httpx2.Response) -> Any:
    """Return the parsed answer, or raise what the service refused."""
    if response.is_success:
        return response.json() if response.content else None
    try:
        error = response.json()["error"]
        message, code = error["message"], error["code"]
    except (ValueError, KeyError, TypeError):  # not the service's: a proxy's, say
        error, message, code = {}, f"HTTP {response.status_code}: {response.text[:200]}", "http_error"
    if response.status_code == 429:
        asked = response.headers.get("retry-after", "1")
        raise OverloadedError(message, retry_after_s=int(asked) if asked.isdecimal() else 1)
    raise ServiceError(response.status_code, code, message, error.get("param"), error.get("request_id"))


def may_repeat(call: Call, error: httpx2.TransportError) -> bool:
    """Return whether sending a request again can do no harm: it never arrived, or doing it twice is doing it once."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return True
    return call.repeatable and isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError)


def is_retried(response: httpx2.Response) -> bool:
    """Return whether the service says that the request may be sent again: 503 without ``Retry-After`` is for good."""
    return response.status_code == 429 or (response.status_code == 503 and "retry-after" in response.headers)
