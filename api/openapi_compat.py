"""What the OpenAPI document says about the routes for other services' clients."""

from __future__ import annotations

from typing import Any

from api.openapi import request_body, text_schema, texts_schema
from api.schemas import Limits
from api.schemas_cohere import EMBEDDING_TYPES, INPUT_TYPES, CohereRequest
from api.schemas_compat import MAX_ID
from api.schemas_openai import OpenAIRequest
from api.schemas_rerank import MULTI_TYPES, MultiVectorRequest, RerankRequest

STRING: dict[str, Any] = {"type": ["string", "null"]}
TRUNCATE: dict[str, Any] = {"enum": ["end", "start", "none", None], "default": "end"}
FLAG: dict[str, Any] = {"type": ["boolean", "null"]}


def number(least: int, most: int | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a whole number that may be left out."""
    return {"type": ["integer", "null"], "minimum": least} | ({} if most is None else {"maximum": most})


def ids_schema(limits: Limits) -> dict[str, Any]:
    """Return the JSON Schema of one row of token ids."""
    id_schema = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
    return {"type": "array", "items": id_schema, "minItems": 1, "maxItems": limits.max_text_chars}


def texts_or_ids_schema(limits: Limits) -> dict[str, Any]:
    """Return the JSON Schema of texts or rows of token ids."""
    ids = ids_schema(limits)
    rows = {"type": "array", "items": ids, "minItems": 1, "maxItems": limits.max_inputs}
    return {"anyOf": [text_schema(limits), texts_schema(limits), ids, rows]}


def openai_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /v1/embeddings``."""
    properties = {
        "model": STRING,
        "input": texts_or_ids_schema(limits),
        "dimensions": number(1),
        "encoding_format": {"enum": ["float", "base64", None], "default": "float"},
        "user": STRING,
        "input_type": {"enum": ["query", "document", None], "default": "document"},
        "prompt_name": STRING,
        "instruction": STRING,
        "truncate": TRUNCATE,
    }
    examples = {
        "several": {"summary": "Several texts", "value": {"input": ["first text", "second text"]}},
        "query": {
            "summary": "A query, in base64",
            "value": {"input": "join arrays", "input_type": "query", "encoding_format": "base64"},
        },
    }
    return request_body(OpenAIRequest, properties, {"required": ["input"]}, examples)


def cohere_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /v2/embed``."""
    kind = {"enum": list(EMBEDDING_TYPES)}
    properties = {
        "model": STRING,
        "texts": texts_schema(limits),
        "input_type": {"enum": [*INPUT_TYPES, None], "default": "search_document"},
        "embedding_types": {"type": ["array", "null"], "items": kind, "minItems": 1, "default": ["float"]},
        "output_dimension": number(1),
        "max_tokens": number(1),
        "truncate": {"enum": ["NONE", "START", "END", None], "default": "END"},
        "priority": number(0, 999),
    }
    value = {"texts": ["first text", "second text"], "embedding_types": ["float", "ubinary"]}
    examples = {"types": {"summary": "Two types of vector", "value": value}}
    return request_body(CohereRequest, properties, {"required": ["texts"]}, examples)


def rerank_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /v1/rerank``."""
    text = text_schema(limits)
    document = {"type": "object", "properties": {"text": text}, "required": ["text"], "additionalProperties": False}
    properties = {
        "model": STRING,
        "query": text,
        "documents": texts_schema(limits) | {"items": {"anyOf": [text, document]}},
        "top_n": number(1),
        "return_documents": FLAG | {"default": False},
        "max_tokens_per_doc": number(1),
        "priority": number(0, 999),
    }
    value = {"query": "copy a file", "documents": ["rain", "duplicate a file"], "top_n": 1, "return_documents": True}
    examples = {"two": {"summary": "Two documents", "value": value}}
    return request_body(RerankRequest, properties, {"required": ["query", "documents"]}, examples)


def multi_vector_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /v1/multi-vector``."""
    properties = {
        "model": STRING,
        "input": {"anyOf": [text_schema(limits), texts_schema(limits)]},
        "input_type": {"enum": ["query", "document", None], "default": "document"},
        "embedding_type": {"enum": [*MULTI_TYPES, None], "default": "float"},
        "dimensions": number(1),
    }
    examples = {"query": {"summary": "A query", "value": {"input": "copy a file", "input_type": "query"}}}
    return request_body(MultiVectorRequest, properties, {"required": ["input"]}, examples)
