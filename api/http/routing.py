"""Operations: what a handler declares of its route, and the Starlette route made of it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.telemetry.request_record import Access, current_record

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path: its handler, the access it needs, and its documentation.

    Attributes:
        method: HTTP method; ``GET`` includes ``HEAD``.
        path: Path template as Starlette takes it.
        endpoint: The handler; its docstring is the description in the OpenAPI document.
        needs: Access level. Default: ``admin``, the strictest.
        tag: Group in the OpenAPI document.
        operation_id: Unique id in the OpenAPI document. Default: the operation is not documented.
        summary: One line.
        bodies: Models of a JSON body; more than one if the route takes several shapes.
        body_types: JSON Schemas of further media types of the body.
        query: JSON Schemas of the query parameters.
        parameters: JSON Schemas of path parameters that are more than a string.
        status: Status of a successful response.
        response: Type of a successful JSON response.
        response_types: OpenAPI media types of further successful responses.
        response_description: What a successful response holds.
        errors: Statuses of documented errors; those of a JSON body are added.
        error_response: Type of an error response. Default: the one of the service.
    """

    method: str
    path: str
    endpoint: Endpoint
    needs: Access = "admin"
    tag: str = ""
    operation_id: str = ""
    summary: str = ""
    bodies: Sequence[type[BaseModel]] = ()
    body_types: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    response: Any = None
    response_types: Mapping[str, Any] = field(default_factory=dict)
    response_description: str = "The request succeeded."
    errors: Sequence[int] = ()
    error_response: Any = None

    @property
    def description(self) -> str:
        """The docstring of the handler."""
        return inspect.getdoc(self.endpoint) or ""


class Operations(list[Operation]):
    """The operations of one resource, declared by decorators at their handlers.

    Args:
        tag: Group in the OpenAPI document.
    """

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.tag = tag

    def declare(self, method: str, path: str, **attributes: Any) -> Callable[[Endpoint], Endpoint]:
        """Return a decorator that adds a handler; ``attributes`` are those of `Operation`."""

        def add(endpoint: Endpoint) -> Endpoint:
            self.append(Operation(method=method, path=path, endpoint=endpoint, tag=self.tag, **attributes))
            return endpoint

        return add

    def get(self, path: str, **attributes: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a handler of ``GET`` and ``HEAD``."""
        return self.declare("GET", path, **attributes)

    def post(self, path: str, **attributes: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a handler of ``POST``."""
        return self.declare("POST", path, **attributes)

    def put(self, path: str, **attributes: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a handler of ``PUT``."""
        return self.declare("PUT", path, **attributes)

    def delete(self, path: str, **attributes: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a handler of ``DELETE``."""
        return self.declare("DELETE", path, **attributes)


class OperationRoute(Route):
    """The route of an operation; it tells the request's record which route matched and what access it needs.

    Args:
        operation: The operation.
        middleware: Guards that run after the match and before the handler: keys and rate limits.
    """

    def __init__(self, operation: Operation, middleware: Sequence[Middleware] = ()) -> None:
        super().__init__(operation.path, operation.endpoint, methods=[operation.method], middleware=middleware)
        self.operation = operation

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request that matches the path."""
        record = current_record.get()
        if record is not None:
            record.route, record.access = self.path, self.operation.needs
        await super().handle(scope, receive, send)
