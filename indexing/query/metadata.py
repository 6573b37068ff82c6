"""Flatten metadata to typed values by path, for filters and facets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OBJECT, BOOLEAN, NUMBER, TEXT = range(4)  # values of different kinds are never equal
LARGEST = 2**63 - 1  # larger integers are stored as floats, because SQLite has 64-bit integers

Value = tuple[str, int, int | float | str, bool]


def typed(value: Any) -> tuple[int, int | float | str] | None:
    """Return the kind of a scalar and its SQLite value; None for other types."""
    if isinstance(value, bool):
        return BOOLEAN, int(value)
    if isinstance(value, int | float):
        return NUMBER, value if isinstance(value, float) or -LARGEST - 1 <= value <= LARGEST else float(value)
    return (TEXT, value) if isinstance(value, str) else None


def plain(kind: int, value: int | float | str) -> int | float | str | bool:
    """Return the scalar of a kind and value from `typed`."""
    return bool(value) if kind == BOOLEAN else value


def values_of(metadata: Mapping[str, Any]) -> Iterator[Value]:
    """Yield path, kind, value, and whether it is a list element, for every value of a document's metadata.

    Names of nested objects are joined by dots; list elements have the path of the list. Objects are values of kind
    OBJECT; null and empty lists are not values.

    >>> list(values_of({"a": {"b": [1, "x"]}, "c": None}))
    [('a', 0, 0, False), ('a.b', 2, 1, True), ('a.b', 3, 'x', True)]
    """
    for name, value in metadata.items():
        yield from _walk(name, value, False)


def _walk(path: str, value: Any, listed: bool) -> Iterator[Value]:
    scalar = typed(value)
    if scalar is not None:
        yield path, *scalar, listed
    elif isinstance(value, Mapping):
        yield path, OBJECT, 0, listed
        for name, inner in value.items():
            yield from _walk(f"{path}.{name}", inner, listed)
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _walk(path, element, True)
