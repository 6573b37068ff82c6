"""Metadata as typed values by path, the form in which filters and facets read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OBJECT, BOOLEAN, NUMBER, TEXT = range(4)  # kinds of values; values of different kinds are never equal
LARGEST = 2**63 - 1  # whole numbers beyond are kept as floats: SQLite has no others

Value = tuple[str, int, int | float | str, bool]


def typed(value: Any) -> tuple[int, int | float | str] | None:
    """Return the kind of a scalar and the value as SQLite keeps it; None for what is no text, number or boolean."""
    if isinstance(value, bool):
        return BOOLEAN, int(value)
    if isinstance(value, int | float):
        return NUMBER, value if isinstance(value, float) or -LARGEST - 1 <= value <= LARGEST else float(value)
    return (TEXT, value) if isinstance(value, str) else None


def plain(kind: int, value: int | float | str) -> int | float | str | bool:
    """Return the scalar that `typed` took apart."""
    return bool(value) if kind == BOOLEAN else value


def values_of(metadata: Mapping[str, Any]) -> Iterator[Value]:
    """Yield path, kind, value, and whether it stands in a list, for every value of a document's metadata.

    The path of a value inside of objects joins their names by dots; the elements of a list have the list's path. An
    object is a value too (of kind OBJECT); null and an empty list are none.

    >>> list(values_of({"a": {"b": [1, "x"]}, "c": None}))
    [('a', 0, 0, False), ('a.b', 2, 1, True), ('a.b', 3, 'x', True)]
    """
    for name, value in metadata.items():
        yield from _walk(name, value, False)


def _walk(path: str, value: Any, listed: bool) -> Iterator[Value]:
    found = typed(value)
    if found is not None:
        yield path, *found, listed
    elif isinstance(value, Mapping):
        yield path, OBJECT, 0, listed
        for name, inner in value.items():
            yield from _walk(f"{path}.{name}", inner, listed)
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _walk(path, element, True)
