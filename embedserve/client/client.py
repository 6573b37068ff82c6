"""A client of the service: numpy arrays out, large requests cut up, overload waited out. Needs the extra ``client``.

>>> from embedserve.client import Client
>>> with Client("http://127.0.0.1:8080") as client:  # doctest: +SKIP
...     client.embed(["first text", "second text"]).shape
(2, 256)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

try:
    import httpx2
except ImportError as error:  # the client alone needs it
    raise ImportError("embedserve.client needs httpx2; install embedserve[client]") from error

from embedserve.client.calls import (
    RETRIED_METHODS,
    Call,
    Conversation,
    Flow,
    Retries,
    ServiceError,
    is_retried,
    may_repeat,
    read_answer,
)

__all__ = ["AsyncClient", "Client", "Retries", "ServiceError"]

T = TypeVar("T")


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


class Client:
    """Speaks to the service.

    Args:
        address: Where it is, such as ``http://127.0.0.1:8080``.
        api_key: The key, where the service wants one.
        timeout_s: Seconds that one request may take.
        retries: How long to go on where the service answers 429 or 503, or a connection cannot be made.

    Raises:
        ServiceError: What the service refused, with its message, code and the field at fault.
        OverloadedError: The service was overloaded at every attempt.
    """

    def __init__(
        self, address: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        self.retries = retries or Retries()
        self._conversation = Conversation()
        self._http = httpx2.Client(base_url=address, headers=_headers(api_key), timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        input_type: Literal["query", "document"] = "document",
        model: str | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Return float32 (N, d): one unit vector for each text, in their order, however many there are."""
        return self._run(self._conversation.embed(texts, input_type, model, dimensions))

    def search(
        self, queries: str | Sequence[str], *, collection: str | None = None, top_k: int = 10, **more: Any
    ) -> list[list[dict[str, Any]]]:
        """Return for each query its hits, best first: ``id``, ``score``, ``text``, ``metadata``.

        Further fields of ``POST /search``, such as ``mode`` and ``filter``, are named arguments.
        """
        return self._run(self._conversation.search(queries, collection, top_k, more))

    def upsert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> int:
        """Write documents, each with ``id`` and ``text``, and return how many were written."""
        return self._run(self._conversation.upsert(collection, documents))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the parsed answer of any other route."""
        return self._send(Call(method, path, body, repeatable=method in RETRIED_METHODS))

    def info(self) -> dict[str, Any]:
        """Return what the service is: version, model, limits, collections."""
        return self.request("GET", "/info")

    def _run(self, flow: Flow[T]) -> T:
        answer = None
        while True:
            try:
                call = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = self._send(call)

    def _send(self, call: Call) -> Any:
        for attempt in range(self.retries.attempts):
            last = attempt + 1 == self.retries.attempts
            asked = None
            try:
                response = self._http.request(call.method, call.path, json=call.body)
            except httpx2.TransportError as error:
                if last or not may_repeat(call, error):
                    raise
            else:
                if last or not is_retried(response):
                    return read_answer(response)
                asked = response.headers.get("retry-after")
            time.sleep(self.retries.wait_s(attempt, asked))
        raise AssertionError("unreachable")


class AsyncClient:
    """The same for asyncio; see `Client`."""

    def __init__(
        self, address: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        self.retries = retries or Retries()
        self._conversation = Conversation()
        self._http = httpx2.AsyncClient(base_url=address, headers=_headers(api_key), timeout=timeout_s)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        input_type: Literal["query", "document"] = "document",
        model: str | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Return float32 (N, d); see `Client.embed`."""
        return await self._run(self._conversation.embed(texts, input_type, model, dimensions))

    async def search(
        self, queries: str | Sequence[str], *, collection: str | None = None, top_k: int = 10, **more: Any
    ) -> list[list[dict[str, Any]]]:
        """Return for each query its hits; see `Client.search`."""
        return await self._run(self._conversation.search(queries, collection, top_k, more))

    async def upsert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> int:
        """Write documents; see `Client.upsert`."""
        return await self._run(self._conversation.upsert(collection, documents))

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the parsed answer of any other route."""
        return await self._send(Call(method, path, body, repeatable=method in RETRIED_METHODS))

    async def info(self) -> dict[str, Any]:
        """Return what the service is."""
        return await self.request("GET", "/info")

    async def _run(self, flow: Flow[T]) -> T:
        answer = None
        while True:
            try:
                call = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = await self._send(call)

    async def _send(self, call: Call) -> Any:
        for attempt in range(self.retries.attempts):
            last = attempt + 1 == self.retries.attempts
            asked = None
            try:
                response = await self._http.request(call.method, call.path, json=call.body)
            except httpx2.TransportError as error:
                if last or not may_repeat(call, error):
                    raise
            else:
                if last or not is_retried(response):
                    return read_answer(response)
                asked = response.headers.get("retry-after")
            await asyncio.sleep(self.retries.wait_s(attempt, asked))
        raise AssertionError("unreachable")
