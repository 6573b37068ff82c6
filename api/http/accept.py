"""Content negotiation by the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def preferred_media_type(accept: str, offered: Sequence[str]) -> str:
    """Return the offered media type that ``accept`` prefers: by quality, then by order.

    A range such as ``*/*`` means the first offered type, and so does a header without any offered type: a response in
    the default type serves a client better than an error 406.

    >>> preferred_media_type("application/json;q=0.5, application/x-npy", ["application/json", "application/x-npy"])
    'application/x-npy'
    """
    default = offered[0]
    if accept in ("", "*/*", default):
        return default
    best, best_quality = default, 0.0
    for entry in accept.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        media_type = default if name in ("*/*", f"{default.partition('/')[0]}/*") else name
        quality = next((_quality(value) for value in parameters if value.startswith("q=")), 1.0)
        if media_type in offered and quality > best_quality:
            best, best_quality = media_type, quality
    return best


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0
