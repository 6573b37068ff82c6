"""What the OpenAPI document says of writing documents beyond what FastAPI finds by itself."""

from __future__ import annotations

from typing import Any

from api.openapi.bodies import schema_of
from api.openapi.document import text_schema
from api.openapi.search import NAME
from api.schemas.common import Limits
from api.schemas.documents import WriteRequest

FORM = ("format", "id_field", "text_field", "title_field")
LINES = '{"id": "rain", "text": "It rained all night."}\n{"id": "bread", "text": "Knead the dough."}\n'
EXAMPLE = {"documents": [{"id": "rain", "text": "It rained all night.", "metadata": {"year": 2024}}]}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_VECTOR = {
    "anyOf": [
        _NUMBERS,
        {"type": "array", "items": _NUMBERS, "minItems": 1},
        {
            "type": "object",
            "properties": {
                "indices": {"type": "array", "items": {"type": "integer", "minimum": 0}, "uniqueItems": True},
                "values": {"type": "array", "items": {"type": "number", "minimum": 0}},
            },
            "required": ["indices", "values"],
            "additionalProperties": False,
        },
    ]
}


def write_body(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI description of documents that are sent: as JSON, as NDJSON or as a file."""
    schema = schema_of(WriteRequest)
    documents = schema["properties"]["documents"]
    documents |= {"minItems": 1, "maxItems": limits.max_inputs}
    document, text = documents["items"], text_schema(limits)
    document["properties"]["text"]["maxLength"] = limits.max_text_chars
    document["properties"]["vectors"]["anyOf"][0] |= {"additionalProperties": _VECTOR, "propertyNames": NAME}
    document["anyOf"] = [
        {"required": ["text"], "properties": {"text": {"pattern": text["pattern"]}}},
        {"required": ["title"], "properties": {"title": {"pattern": text["pattern"]}}},
    ]
    form = {
        "file": {"type": "string", "format": "binary", "description": "JSONL, CSV, TSV or Parquet."},
        "format": {"type": "string", "enum": ["jsonl", "csv", "tsv", "parquet"]},
        **{name: {"type": "string"} for name in FORM[1:]},
    }
    content = {
        "application/json": {
            "schema": schema,
            "examples": {"example": {"summary": "Documents", "value": EXAMPLE}},
        },
        "application/x-ndjson": {"schema": {"type": "string", "description": LINES}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": form,
                "required": ["file"],
                "additionalProperties": False,
            }
        },
    }
    return {"requestBody": {"required": True, "content": content}}
