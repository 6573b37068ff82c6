"""The JSON Schema of a filter; `indexing.query.filters` validates and compiles it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

_SCALAR = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}
_ORDERED = {"anyOf": [{"type": "string"}, {"type": "number"}]}
_PATH = {"type": "string", "minLength": 1, "not": {"const": "id"}}
_ID = {"const": "id"}


def _comparison(operator: str, value: Mapping[str, Any], field: Mapping[str, Any] = _PATH) -> dict[str, Any]:
    properties = {"field": dict(field), operator: dict(value)}
    return {
        "type": "object", "properties": properties, "required": ["field", operator], "additionalProperties": False,
    }  # fmt: skip


_COMPARISONS = [
    _comparison("eq", _SCALAR),
    _comparison("in", {"type": "array", "items": _SCALAR, "minItems": 1, "maxItems": 10_000}),
    _comparison("gte", _ORDERED),
    _comparison("lte", _ORDERED),
    _comparison("exists", {"type": "boolean"}),
    _comparison("contains", _SCALAR),
    *(_comparison(operator, {"type": "string"}, _ID) for operator in ("eq", "gte", "lte")),
    _comparison("in", {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 10_000}, _ID),
    _comparison("exists", {"type": "boolean"}, _ID),
]


def _combination(operands: list[Any]) -> list[Any]:
    several = {"type": "array", "items": {"anyOf": operands}, "minItems": 1, "maxItems": 100}
    schemas = {"and": several, "or": several, "not": {"anyOf": operands}}
    return [
        {"type": "object", "properties": {operator: schema}, "required": [operator], "additionalProperties": False}
        for operator, schema in schemas.items()
    ]


# Combinations may be nested deeper than the schema describes.
FILTER: dict[str, Any] = {"anyOf": [{"type": "null"}, *_COMPARISONS, *_combination(_COMPARISONS)]}
Filter = Annotated[
    dict[str, Any] | None,
    WithJsonSchema(FILTER),
    Field(description="Condition on the metadata or the id; see docs/collections.md for its operators."),
]
