"""Clients of the HTTP service: numpy arrays out, large requests split, overload retried. Needs the extra ``client``.

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
except ImportError as error:
    raise ImportError("embedserve.client needs httpx2; run: pip install 'embedserve[client]'") from error

from embedserve.client.calls import RETRIED_METHODS, Call, Conversation, Flow, Retries, ServiceError, read_response

__all__ = ["AsyncClient", "Client", "Retries", "ServiceError"]

T = TypeVar("T")


def _http_options(address: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": address, "headers": headers, "timeout": timeout_s}


class Client:
    """A client of one service. Thread-safe.

    Args:
        address: Base URL, such as ``http://127.0.0.1:8080``.
        api_key: The key, if the service requires one.
        timeout_s: Timeout of one HTTP request.
        retries: When to retry after 429, 503 or a failed connection. Default: ``Retries()``.

    Raises:
        ServiceError: The service rejected the request; has its message, code and the invalid field.
        OverloadedError: The service was overloaded at every attempt.
    """

    def __init__(
        self, address: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        self.retries = retries or Retries()
        self._conversation = Conversation()
        self._http = httpx2.Client(**_http_options(address, api_key, timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def limits(self) -> dict[str, int]:
        """The limits of the service, by which requests are split; read from ``GET /info`` on first use."""
        return self._conversation.limits

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
        """Return one unit vector per text, in order, float32 (N, d). Any number of texts."""
        return self._run(self._conversation.embed(texts, input_type, model, dimensions))

    def search(
        self, queries: str | Sequence[str], *, collection: str | None = None, top_k: int = 10, **more: Any
    ) -> list[list[dict[str, Any]]]:
        """Return the hits of each query, best first: ``id``, ``score``, ``text``, ``metadata``.

        Pass other fields of ``POST /search``, such as ``mode`` and ``filter``, as keyword arguments.
        """
        return self._run(self._conversation.search(queries, collection, top_k, more))

    def upsert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> int:
        """Write documents, each with ``id`` and ``text``, and return how many were written."""
        return self._run(self._conversation.upsert(collection, documents))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to any route and return the parsed response."""
        return self._send(Call(method, path, body, is_idempotent=method in RETRIED_METHODS))

    def info(self) -> dict[str, Any]:
        """Return version, model, limits and collections of the service."""
        return self.request("GET", "/info")

    def _run(self, flow: Flow[T]) -> T:
        response = None
        while True:
            try:
                call = flow.send(response)
            except StopIteration as end:
                return end.value
            response = self._send(call)

    def _send(self, call: Call) -> Any:
        attempt = 0
        while True:
            try:
                response = self._http.request(call.method, call.path, json=call.body)
            except httpx2.TransportError as error:
                wait_s = self.retries.after_error(attempt, call, error)
            else:
                if (retry_s := self.retries.after_response(attempt, response)) is None:
                    return read_response(response)
                wait_s = retry_s
            time.sleep(wait_s)
            attempt += 1


class AsyncClient:
    """The same client for asyncio; see `Client`."""

    def __init__(
        self, address: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        self.retries = retries or Retries()
        self._conversation = Conversation()
        self._http = httpx2.AsyncClient(**_http_options(address, api_key, timeout_s))

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
        """Return one unit vector per text, float32 (N, d); see `Client.embed`."""
        return await self._run(self._conversation.embed(texts, input_type, model, dimensions))

    async def search(
        self, queries: str | Sequence[str], *, collection: str | None = None, top_k: int = 10, **more: Any
    ) -> list[list[dict[str, Any]]]:
        """Return the hits of each query; see `Client.search`."""
        return await self._run(self._conversation.search(queries, collection, top_k, more))

    async def upsert(self, collection: str, documents: Sequence[Mapping[str, Any]]) -> int:
        """Write documents; see `Client.upsert`."""
        return await self._run(self._conversation.upsert(collection, documents))

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to any route; see `Client.request`."""
        return await self._send(Call(method, path, body, is_idempotent=method in RETRIED_METHODS))

    async def info(self) -> dict[str, Any]:
        """Return version, model, limits and collections of the service."""
        return await self.request("GET", "/info")

    async def _run(self, flow: Flow[T]) -> T:
        response = None
        while True:
            try:
                call = flow.send(response)
            except StopIteration as end:
                return end.value
            response = await self._send(call)

    async def _send(self, call: Call) -> Any:
        attempt = 0
        while True:
            try:
                response = await self._http.request(call.method, call.path, json=call.body)
            except httpx2.TransportError as error:
                wait_s = self.retries.after_error(attempt, call, error)
            else:
                if (retry_s := self.retries.after_response(attempt, response)) is None:
                    return read_response(response)
                wait_s = retry_s
            await asyncio.sleep(wait_s)
            attempt += 1
