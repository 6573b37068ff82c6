"""JSON Schemas of request bodies for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def schema_of(model: type[BaseModel], replaced: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a body, without references.

    Args:
        model: What checks the body.
        replaced: Schemas of properties that say more than the model's annotation.
    """
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(definitions[value["$ref"].rsplit("/", 1)[1]])
            return {key: inlined(inner) for key, inner in value.items()}
        return [inlined(inner) for inner in value] if isinstance(value, list) else value

    schema: dict[str, Any] = inlined(whole)
    for name, changed in (replaced or {}).items():
        described = schema["properties"][name].get("description")
        schema["properties"][name] = {**changed, **({"description": described} if described else {})}
    return schema


def json_body(model: type[BaseModel], example: Any, replaced: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body, with one example."""
    content = {"schema": schema_of(model, replaced), "examples": {"example": {"summary": "Example", "value": example}}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


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


def _joined(parts: list[Any]) -> list[Any]:
    several = {"type": "array", "items": {"anyOf": parts}, "minItems": 1, "maxItems": 100}
    kinds = {"and": several, "or": several, "not": {"anyOf": parts}}
    return [
        {"type": "object", "properties": {kind: schema}, "required": [kind], "additionalProperties": False}
        for kind, schema in kinds.items()
    ]


# What a filter may be; these nest deeper than is written here.
FILTER: dict[str, Any] = {"anyOf": [{"type": "null"}, *_COMPARISONS, *_joined(_COMPARISONS)]}
