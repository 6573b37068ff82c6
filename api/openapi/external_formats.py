"""What the OpenAPI document says about the routes for other services' clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.inference.truncation import MIN_MAX_TOKENS
from api.openapi.document import request_body, text_schema, texts_schema
from api.schemas.cohere import EMBEDDING_TYPES, INPUT_TYPES, CohereRequest
from api.schemas.common import Limits
from api.schemas.external_formats import MAX_ID
from api.schemas.openai import OpenAIRequest
from api.schemas.rerank import MULTI_TYPES, MultiVectorRequest, RerankRequest

if TYPE_CHECKING:
    from embedserve import Encoder

STRING: dict[str, Any] = {"type": ["string", "null"]}
TRUNCATE: dict[str, Any] = {"enum": ["end", "start", "none", None], "default": "end"}
COMPAT_PATHS = (
    *("/v1/embeddings", "/embeddings", "/v2/embed", "/v1/multi-vector", "/rerank", "/v1/rerank", "/v2/rerank"),
    *("/", "/embed_all", "/embed_sparse", "/similarity", "/tokenize", "/decode"),
)
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
        "prompt_name": {"enum": ["query", "document", None]},
        "instruction": STRING,
        "truncate": TRUNCATE,
    }
    one_prompt = {
        "anyOf": [{"properties": {name: {"type": "null"}}} for name in ("prompt_name", "instruction")],
        "required": ["input"],
    }
    examples = {
        "several": {"summary": "Several texts", "value": {"input": ["first text", "second text"]}},
        "query": {
            "summary": "A query, in base64",
            "value": {"input": "join arrays", "input_type": "query", "encoding_format": "base64"},
        },
    }
    return request_body(OpenAIRequest, properties, one_prompt, examples)


def cohere_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /v2/embed``."""
    kind = {"enum": list(EMBEDDING_TYPES)}
    properties = {
        "model": STRING,
        "texts": texts_schema(limits),
        "input_type": {"enum": [*INPUT_TYPES, None], "default": "search_document"},
        "embedding_types": {"type": ["array", "null"], "items": kind, "minItems": 1, "default": ["float"]},
        "output_dimension": number(1),
        "max_tokens": number(MIN_MAX_TOKENS),
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
        "max_tokens_per_doc": number(MIN_MAX_TOKENS),
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


def teach_compat(document: dict[str, Any], encoder: Encoder) -> None:
    """Put the limits of the default model's encoder into the document."""
    from embedserve.token_ids import reads_ids, vocabulary_size

    limits = {"dimensions": encoder.dim, "output_dimension": encoder.dim}
    limits |= dict.fromkeys(("max_tokens", "max_tokens_per_doc"), encoder.max_tokens)
    last_id, takes_ids = vocabulary_size(encoder) - 1, reads_ids(encoder)
    for path in COMPAT_PATHS:
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for body in schema.get("oneOf", [schema]):
            for name, field in body["properties"].items():
                if name in limits:
                    field["maximum"] = limits[name]
                kinds = [(one, _limit_ids(one, last_id)) for one in field.get("anyOf", ())]
                if any(is_ids for _, is_ids in kinds):
                    field["anyOf"] = [one for one, is_ids in kinds if takes_ids or name == "ids" or not is_ids]


def _limit_ids(schema: dict[str, Any], last_id: int) -> bool:
    """Put the last id of the vocabulary into the schema of ids or rows of them; say whether it is one."""
    while schema.get("type") == "array":
        schema = schema["items"]
    if schema.get("type") != "integer":
        return False
    schema["maximum"] = last_id
    return True
