"""API keys: who may do what. Without any key in the settings everybody may do everything."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.access import LEVELS, Access, access_of
from api.http.error_responses import ApiError, error_response
from api.telemetry.request_record import current_record

KEY_PREFIX = "es_"
KEY_BYTES = 32

KeyScope = Literal["read", "write", "admin"]


@dataclass(frozen=True)
class ApiKey:
    """A key as the settings know it: not the key itself, but its SHA-256."""

    name: str
    scope: Access
    digest: str


def new_key(name: str, scope: KeyScope) -> tuple[str, str]:
    """Return a new key, 256 random bits, and the line ``name:scope:sha256`` for the settings."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, f"{name}:{scope}:{digest_of(key)}"


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal digits; a key is long and random, so that it needs no salt."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(lines: Iterable[str]) -> list[ApiKey]:
    """Return the keys of the lines that the settings have checked."""
    keys = []
    for line in lines:
        name, scope, digest = line.split(":")
        keys.append(ApiKey(name, scope, digest))  # type: ignore[arg-type]
    return keys


def find_key(keys: Iterable[ApiKey], given: str) -> ApiKey | None:
    """Return the key that was given; the time it takes does not tell how near a wrong one is."""
    digest, found = digest_of(given), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def given_key(headers: Headers) -> str:
    """Return the key of ``Authorization: Bearer`` or of ``x-api-key``, "" where there is none."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip()


class AuthMiddleware:
    """Lets a request through whose key may do what its route needs.

    Args:
        app: What comes after.
        keys: The keys; at least one.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[ApiKey]) -> None:
        self.app = app
        self.keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await error_response(refusal, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        record = current_record.get()
        assert record is not None, "RequestMiddleware stands before this one"
        needed = access_of(scope["method"], record.templates)
        given = given_key(Headers(scope=scope))
        key = find_key(self.keys, given) if given else None
        if key is not None:
            record.key = key.name
        if needed == "open":
            return None
        if key is None:
            found = "this key is not known here" if given else "no key was sent"
            message = f"{found}; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            return ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        if LEVELS.index(key.scope) < LEVELS.index(needed):
            message = f"the key {key.name!r} may {key.scope}; this route needs a key with the scope {needed}"
            return ApiError(403, "forbidden_scope", message)
        return None
