"""What the OpenAPI document says about the routes of Text Embeddings Inference (TEI)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.openapi.document import ERRORS, request_body, text_schema, texts_schema
from api.openapi.external_formats import FLAG, ids_schema, number, texts_or_ids_schema
from api.schemas.common import ErrorAnswer, Limits
from api.schemas.tei import (
    TEIDecodeRequest,
    TEIEmbedRequest,
    TEIError,
    TEIRerankRequest,
    TEISimilarityRequest,
    TEIToken,
    TEITokenizeRequest,
    TEITokensRequest,
    TEIWeight,
)

DIRECTION: dict[str, Any] = {"enum": ["Left", "Right", "left", "right", None], "default": "Right"}
PROMPT_NAME: dict[str, Any] = {"enum": ["query", "document", None]}
CUT: dict[str, Any] = {"truncate": FLAG | {"default": True}, "truncation_direction": DIRECTION}


@dataclass(frozen=True)
class Route:
    """How one route is documented."""

    name: str
    summary: str
    description: str
    answer: Any
    body: Callable[[Limits], dict[str, Any]]


def tei_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the error answers of a route of TEI."""
    return {status: {"model": TEIError, "description": ERRORS[status]} for status in statuses}


def either_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the error answers of a route that TEI shares with others."""
    return {status: {"model": ErrorAnswer | TEIError, "description": ERRORS[status]} for status in statuses}


def embed_inputs_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /embed`` with ``inputs``."""
    properties = {
        "inputs": texts_or_ids_schema(limits),
        **CUT,
        "prompt_name": PROMPT_NAME,
        "normalize": FLAG | {"default": True},
        "dimensions": number(1),
        "encoding_format": {"enum": ["float", None]},
    }
    examples = {"tei": {"summary": "TEI's", "value": {"inputs": ["first text", "second text"], "truncate": True}}}
    return request_body(TEIEmbedRequest, properties, {"required": ["inputs"]}, examples)


def _tokens_body(limits: Limits) -> dict[str, Any]:
    properties = {"inputs": texts_or_ids_schema(limits), **CUT, "prompt_name": PROMPT_NAME}
    examples = {"one": {"summary": "One text", "value": {"inputs": "join arrays along a new axis"}}}
    return request_body(TEITokensRequest, properties, {"required": ["inputs"]}, examples)


def _similarity_body(limits: Limits) -> dict[str, Any]:
    sentences = {"source_sentence": text_schema(limits), "sentences": texts_schema(limits)}
    options = CUT | {"prompt_name": PROMPT_NAME}
    properties = {
        "inputs": _object(sentences, required=list(sentences)),
        "parameters": _object(options, required=[]) | {"type": ["object", "null"]},
    }
    value = {"inputs": {"source_sentence": "copy a file", "sentences": ["duplicate a file", "rain"]}}
    examples = {"two": {"summary": "Two texts", "value": value}}
    return request_body(TEISimilarityRequest, properties, {"required": ["inputs"]}, examples)


def _object(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _tokenize_body(limits: Limits) -> dict[str, Any]:
    properties = {
        "inputs": {"anyOf": [text_schema(limits), texts_schema(limits)]},
        "add_special_tokens": FLAG | {"default": True},
        "prompt_name": PROMPT_NAME,
    }
    examples = {"one": {"summary": "One text", "value": {"inputs": "copy a file"}}}
    return request_body(TEITokenizeRequest, properties, {"required": ["inputs"]}, examples)


def _decode_body(limits: Limits) -> dict[str, Any]:
    ids = ids_schema(limits)
    rows = {"type": "array", "items": ids, "minItems": 1, "maxItems": limits.max_inputs}
    properties = {"ids": {"anyOf": [ids, rows]}, "skip_special_tokens": FLAG | {"default": True}}
    examples = {"one": {"summary": "One row of ids", "value": {"ids": [4, 5, 6]}}}
    return request_body(TEIDecodeRequest, properties, {"required": ["ids"]}, examples)


def rerank_texts_body(limits: Limits) -> dict[str, Any]:
    """Return the request body of ``POST /rerank`` with ``texts``."""
    properties = {
        "query": text_schema(limits),
        "texts": texts_schema(limits),
        **CUT,
        "raw_scores": FLAG | {"default": False},
        "return_text": FLAG | {"default": False},
    }
    value = {"query": "copy a file", "texts": ["duplicate a file", "rain"], "return_text": True}
    examples = {"tei": {"summary": "TEI's", "value": value}}
    return request_body(TEIRerankRequest, properties, {"required": ["query", "texts"]}, examples)


def either_body(*bodies: dict[str, Any]) -> dict[str, Any]:
    """Return a request body that is one of several."""
    contents = [body["content"]["application/json"] for body in bodies]
    examples = {name: example for content in contents for name, example in content["examples"].items()}
    schema = {"oneOf": [content["schema"] for content in contents]}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


TEI_ROUTES = {
    "/": Route(
        "tei_root",
        "Turn texts into vectors, or compare them, in TEI's shape",
        "Where `inputs` is an object it is what `POST /similarity` takes, else what `POST /embed` does: the client of "
        "the Hugging Face hub posts both to the address that it is given.",
        list[list[float]] | list[float],
        lambda limits: either_body(embed_inputs_body(limits), _similarity_body(limits)),
    ),
    "/embed_all": Route(
        "tei_embed_all",
        "Turn texts into a vector for each token, in TEI's shape",
        "Needs a model that makes token vectors for late interaction.",
        list[list[list[float]]],
        _tokens_body,
    ),
    "/embed_sparse": Route(
        "tei_embed_sparse",
        "Turn texts into weights of vocabulary entries, in TEI's shape",
        "Needs a model that makes such weights.",
        list[list[TEIWeight]],
        _tokens_body,
    ),
    "/similarity": Route(
        "tei_similarity",
        "Compare one text with others, in TEI's shape",
        "Return cosines, or MaxSim sums where the model makes a vector for each token.",
        list[float],
        _similarity_body,
    ),
    "/tokenize": Route(
        "tei_tokenize",
        "Cut texts into the tokens that the model reads, in TEI's shape",
        "With special tokens, the model's prompt for documents stands in front, or that of `prompt_name`.",
        list[list[TEIToken]],
        _tokenize_body,
    ),
    "/decode": Route(
        "tei_decode",
        "Turn token ids back into texts, in TEI's shape",
        "Return one text for each row of ids.",
        list[str],
        _decode_body,
    ),
}
