"""API keys and their scopes. Without keys in the settings, every request is allowed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.error_responses import ApiError, error_response
from api.telemetry.request_record import LEVELS, Access, current_record

KEY_PREFIX = "es_"
KEY_BYTES = 32

KeyScope = Literal["read", "write", "admin"]


@dataclass(frozen=True)
class ApiKey:
    """A key of the settings, which have its SHA-256 only."""

    name: str
    scope: Access
    digest: str


def new_key(name: str, scope: KeyScope) -> tuple[str, str]:
    """Return a new key with 256 random bits, and the line ``name:scope:sha256`` for the settings."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, f"{name}:{scope}:{digest_of(key)}"


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key in hexadecimal; a long random key needs no salt."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(lines: Iterable[str]) -> list[ApiKey]:
    """Return the keys of validated lines."""
    keys = []
    for line in lines:
        name, scope, digest = line.split(":")
        keys.append(ApiKey(name, scope, digest))  # type: ignore[arg-type]
    return keys


def find_key(keys: Iterable[ApiKey], secret: str) -> ApiKey | None:
    """Return the key with this secret, or None; the comparison takes constant time."""
    digest, match = digest_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            match = key
    return match


def secret_of(headers: Headers) -> str:
    """Return the secret of ``Authorization: Bearer`` or of ``x-api-key``, "" without one."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip()


class AuthMiddleware:
    """Rejects a request whose key does not include the access that the matched route needs.

    Args:
        app: The next application.
        keys: The keys, at least one.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[ApiKey]) -> None:
        self.app = app
        self.keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        rejection = self._rejection(scope)
        if rejection is not None:
            await error_response(rejection, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _rejection(self, scope: Scope) -> ApiError | None:
        record = current_record.get()
        assert record is not None, "RequestMiddleware runs first"
        secret = secret_of(Headers(scope=scope))
        key = find_key(self.keys, secret) if secret else None
        if key is not None:
            record.key = key.name
        if record.access == "open":
            return None
        if key is None:
            reason = "the API key is unknown" if secret else "no API key was sent"
            message = f"{reason}; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            return ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        if LEVELS.index(key.scope) < LEVELS.index(record.access):
            message = f"the key {key.name!r} has the scope {key.scope}; this route needs the scope {record.access}"
            return ApiError(403, "forbidden_scope", message)
        return None
