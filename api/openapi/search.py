"""What the OpenAPI document says of a search beyond what FastAPI finds by itself."""

from __future__ import annotations

from typing import Any

from api.openapi.bodies import FILTER, schema_of
from api.openapi.document import text_schema, texts_schema
from api.schemas.common import DEFAULT_TOP_K, Limits
from api.schemas.search import SearchRequest

NAME = {"type": "string", "pattern": "^[a-z][a-z0-9]{0,31}$"}
EXAMPLES = {
    "one": {"summary": "One query", "value": {"query": "join arrays along a new axis", "top_k": 5}},
    "several": {"summary": "Several queries", "value": {"queries": ["parse a date", "copy a file"], "top_k": 3}},
    "hybrid": {
        "summary": "Meaning and words, filtered and explained",
        "value": {
            "query": "join arrays",
            "mode": "hybrid",
            "fusion": {"method": "rrf", "k": 60, "weights": {"dense": 1.0, "bm25": 0.5}},
            "filter": {"field": "kind", "eq": "function"},
            "explain": True,
        },
    },
    "pages": {"summary": "The first page", "value": {"query": "copy a file", "top_k": 5, "cursor": "*"}},
    "unlike": {
        "summary": "Hits that are unlike each other",
        "value": {"query": "copy", "mmr": {"lambda": 0.7}, "include": ["metadata"]},
    },
}


def search_body(limits: Limits, *, named: bool) -> dict[str, Any]:
    """Return the request body of a search; ``named`` says whether it names the collection."""
    text, texts, null = text_schema(limits), texts_schema(limits), {"type": "null"}
    by_field = {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "number"}, "minItems": 1},
        "propertyNames": NAME,
        "minProperties": 1,
    }
    replaced = {
        "collection": {"type": ["string", "null"]},
        "query": {"anyOf": [text, null]},
        "queries": {"anyOf": [texts, null]},
        "vectors": {"anyOf": [by_field, {"type": "array", "items": by_field, "minItems": 1, "maxItems": 8}, null]},
        "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": limits.max_top_k, "default": DEFAULT_TOP_K},
        "mode": {"anyOf": [NAME, null]},
        "rerank": {"anyOf": [NAME, null]},
        "filter": FILTER,
    }
    schema = schema_of(SearchRequest, replaced)
    schema["properties"]["fusion"]["anyOf"][0]["properties"]["weights"]["anyOf"][0]["propertyNames"] = NAME
    schema["oneOf"] = [
        {"required": ["query"], "properties": {"query": text, "queries": null, "vectors": null}},
        {
            "required": ["queries"],
            "properties": {"queries": texts, "query": null, "vectors": null, "cursor": null},
        },
        {
            "required": ["vectors"],
            "properties": {"vectors": {"type": ["object", "array"]}, "query": null, "queries": null, "cursor": null},
        },
    ]
    schema["anyOf"] = [{"properties": {"mmr": null}}, {"properties": {"group_by": null}}]
    if not named:
        del schema["properties"]["collection"]
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": EXAMPLES}}}
