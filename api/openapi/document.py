"""What the OpenAPI document says beyond what FastAPI finds by itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from api.schemas.common import VISIBLE, ErrorAnswer, Limits

ERRORS = {
    400: "The body is not JSON.",
    404: "There is no such model or collection.",
    409: "The collection was built by another encoder, lacks what is named, or is being written to.",
    413: "The body is over the limit.",
    415: "The body is not declared as JSON.",
    422: "A field is wrong; `param` names it.",
    429: "Too much is waiting; try again after `Retry-After` seconds.",
    500: "The server failed; its log has the reason under the request id.",
    503: "The model is loading, or could not be loaded.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the error answers of a route."""
    return {status: {"model": ErrorAnswer, "description": ERRORS[status]} for status in statuses}


def text_schema(limits: Limits) -> dict[str, Any]:
    """Return the JSON Schema of one text."""
    return {"type": "string", "minLength": 1, "maxLength": limits.max_text_chars, "pattern": VISIBLE.pattern}


def texts_schema(limits: Limits) -> dict[str, Any]:
    """Return the JSON Schema of a list of texts."""
    return {"type": "array", "items": text_schema(limits), "minItems": 1, "maxItems": limits.max_inputs}


def request_body(
    model: type[BaseModel], properties: dict[str, Any], rules: dict[str, Any], examples: dict[str, Any]
) -> dict[str, Any]:
    """Return the documentation of a request body.

    Args:
        model: What checks it; fields are described as it does.
        properties: The JSON Schema of each field.
        rules: Further keywords of the schema.
        examples: By name; each must work.
    """
    described = {
        name: {**schema, "description": model.model_fields[name].description} for name, schema in properties.items()
    }
    schema = {
        "title": model.__name__,
        "description": model.__doc__,
        "type": "object",
        "properties": described,
        "additionalProperties": False,
        **rules,
    }
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
