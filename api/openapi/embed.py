"""What the OpenAPI document says about ``POST /embed``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.inference.quantise import VECTOR_TYPES
from api.inference.request_queue import PRIORITIES
from api.inference.truncation import MIN_MAX_TOKENS
from api.openapi.document import request_body, text_schema, texts_schema
from api.openapi.external_formats import FLAG, STRING, TRUNCATE, number
from api.responses.streaming import LINES
from api.schemas.common import Limits
from api.schemas.embed import OUTPUTS, EmbedAnswer, EmbedRequest

if TYPE_CHECKING:
    from embedserve import Encoder

BYTES = {"schema": {"type": "string", "format": "binary"}}
RAW = "application/octet-stream"
NPY = "application/x-npy"


def embed_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /embed``."""
    properties = {
        "model": STRING,
        "input": {"anyOf": [text_schema(limits), texts_schema(limits)]},
        "input_type": {"enum": ["query", "document", None], "default": "document"},
        "prompt_name": {"enum": ["query", "document", None]},
        "instruction": STRING,
        "outputs": _some_of(OUTPUTS),
        "dimensions": number(1),
        "normalize": {**FLAG, "default": True},
        "embedding_types": _some_of(VECTOR_TYPES),
        "encoding_format": {"enum": ["float", "base64", None], "default": "float"},
        "truncate": TRUNCATE,
        "max_tokens": number(MIN_MAX_TOKENS),
        "priority": {"enum": [*PRIORITIES, None]},
    }
    one_prompt = {
        "anyOf": [{"properties": {name: {"type": "null"}}} for name in ("prompt_name", "instruction")],
        "required": ["input"],
    }
    examples = {
        "one": {"summary": "One text", "value": {"input": "join arrays along a new axis"}},
        "several": {
            "summary": "Several documents",
            "value": {"input": ["first text", "second text"], "input_type": "document"},
        },
        "small": {
            "summary": "A query, as 16 dimensions of one byte each",
            "value": {"input": "join arrays", "input_type": "query", "embedding_types": ["int8"], "dimensions": 16},
        },
    }
    return request_body(EmbedRequest, properties, one_prompt, examples)


def embed_answers() -> dict[int | str, dict[str, Any]]:
    """Return the answers of status 200, one for each Accept header."""
    return {
        200: {
            "model": EmbedAnswer,
            "description": "Vectors, as the Accept header asks for them.",
            "content": {RAW: BYTES, NPY: BYTES, LINES: {"schema": {"type": "string"}}},
        }
    }


def teach_embed(document: dict[str, Any], encoder: Encoder) -> None:
    """Put the limits of the default model's encoder into the document."""
    body = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    properties = body["properties"]
    properties["dimensions"]["maximum"] = encoder.dim
    properties["max_tokens"]["maximum"] = encoder.max_tokens
    properties["outputs"]["items"] = {"enum": list(encoder.outputs)}


def _some_of(values: tuple[str, ...]) -> dict[str, Any]:
    return {"type": ["array", "null"], "items": {"enum": list(values)}, "minItems": 1}
