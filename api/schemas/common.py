"""Requests as they are checked, and answers as they are documented."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.http.body import kind_of, shown
from indexing.query.search_options import MAX_K

# \S as Python has it, written so that it means the same in a JSON Schema, where regular expressions are JavaScript's.
VISIBLE = re.compile(r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
DEFAULT_TOP_K = 10


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_inputs: int = 4096
    max_text_chars: int = 100_000
    max_top_k: int = MAX_K
    max_hits: int = 10_000


def limits_of(info: ValidationInfo) -> Limits:
    """Return the limits that the validated request stands under: the service's, or the defaults without one."""
    return info.context if isinstance(info.context, Limits) else Limits()


def problem(code: str, param: str, message: str) -> PydanticCustomError:
    """Return a refusal with a code of ours and the exact place."""
    safe = message.replace("{", "{{").replace("}", "}}")
    return PydanticCustomError("embedserve", safe, {"code": code, "param": param})


def check_text(value: object, param: str, limits: Limits) -> str:
    """Return a text that may be embedded; complain with the place otherwise.

    The encoder checks texts as well; here each refusal has a code of its own, before anything waits in the queue.
    """
    if not isinstance(value, str):
        raise problem("invalid_type", param, f"{param} must be a string, got {kind_of(value)} ({shown(value)})")
    if not VISIBLE.search(value):
        raise problem("empty_text", param, f"{param} is empty; send text or leave the entry out")
    if len(value) > limits.max_text_chars:
        raise problem(
            "text_too_long",
            param,
            f"{param} has {len(value):,} characters, the limit is {limits.max_text_chars:,}; cut it into pieces",
        )
    return value


def check_texts(value: object, info: ValidationInfo) -> list[str]:
    """Return the list of texts that a string or a list of strings stands for."""
    limits = limits_of(info)
    param = info.field_name or "input"
    if isinstance(value, str):
        return [check_text(value, param, limits)]
    if not isinstance(value, list):
        raise problem("invalid_type", param, f"{param} must be a string or a list of strings, got {kind_of(value)}")
    if not value:
        raise problem("empty_list", param, f"{param} is an empty list; send at least one text")
    if len(value) > limits.max_inputs:
        raise problem(
            "too_many_inputs",
            param,
            f"{param} has {len(value):,} texts, the limit is {limits.max_inputs:,}; send them in several requests",
        )
    return [check_text(text, f"{param}[{place}]", limits) for place, text in enumerate(value)]


def check_query(value: object, info: ValidationInfo) -> str | None:
    """Return one query; a list belongs in ``queries``."""
    if value is None:
        return None
    if isinstance(value, list):
        raise problem("invalid_type", "query", "query must be a string; send a list as 'queries'")
    return check_texts(value, info)[0]


def check_queries(value: object, info: ValidationInfo) -> list[str] | None:
    """Return the list of queries; a string belongs in ``query``."""
    if value is None:
        return None
    if isinstance(value, str):
        raise problem("invalid_type", "queries", "queries must be a list of strings; send one string as 'query'")
    return check_texts(value, info)


def check_whole(value: object, param: str) -> int:
    """Return a whole number; 8.0 is one, as JSON has it, while true and "8" are none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise problem("invalid_type", param, f"{param} must be a whole number, got {kind_of(value)} ({shown(value)})")
    return value


def check_top_k(value: object, info: ValidationInfo) -> int:
    """Return how many hits to give."""
    limits = limits_of(info)
    if value is None:
        return DEFAULT_TOP_K
    number = check_whole(value, "top_k")
    if not 1 <= number <= limits.max_top_k:
        raise problem("top_k_out_of_range", "top_k", f"top_k is {shown(value)}; it may be 1 to {limits.max_top_k}")
    return number


def check_dimensions(value: object) -> int | None:
    """Return the wanted width; its upper end is the encoder's and is checked there."""
    if value is None:
        return None
    number = check_whole(value, "dimensions")
    if number < 1:
        raise problem("dimensions_out_of_range", "dimensions", f"dimensions is {shown(value)}; it must be at least 1")
    return number


def check_input_type(value: object) -> str:
    """Return the side that the texts stand on."""
    if value is None:
        return "document"
    if not isinstance(value, str) or value not in ("query", "document"):
        message = f"input_type must be 'query' or 'document', got {shown(value)}"
        raise problem("invalid_input_type", "input_type", message)
    return value


def check_integral(value: object) -> object:
    """Return a number that is whole as an int, 8.0 too, as JSON has it; else what was given."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(check_integral)


class Request(BaseModel):
    """What every request body has in common: unknown fields are refused, numbers are not read out of strings."""

    model_config = ConfigDict(extra="forbid", strict=True)


# Answers: they document the shapes and are never built on the hot path.

Count = Annotated[int, Field(ge=0)]
Metadata = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": True})]


class Usage(BaseModel):
    """Tokens read."""

    prompt_tokens: Count
    total_tokens: Count


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: Annotated[str, Field(description="What was got, what was wanted, what to do.")]
    type: Annotated[str, Field(description="Kind of error, one for each status.")]
    code: Annotated[str, Field(description="Stable word for programs.")]
    param: Annotated[str | None, Field(description="The field at fault, such as input[3].")]
    request_id: Annotated[str, Field(description="Also in the header X-Request-ID and in the server's log.")]


class ErrorAnswer(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail


class LiveAnswer(BaseModel):
    """The process runs."""

    status: Literal["alive"]


class ReadyAnswer(BaseModel):
    """The service can answer."""

    status: Literal["ready"]
    checks: Annotated[dict[str, str], Field(description="What was checked, and what was found.")]


class CollectionItem(BaseModel):
    """One collection."""

    name: str
    status: Annotated[
        Literal["open", "closed", "failed"],
        Field(description="closed: the first search opens it. failed: it cannot be searched, see error."),
    ]
    documents: Annotated[int | None, Field(description="How many documents it holds.")]
    error: Annotated[str | None, Field(description="Why its newest build cannot be searched.")]


class TEIInfo(BaseModel):
    """What clients of Text Embeddings Inference (TEI) read to cut their requests into pieces."""

    model_id: str
    served_model_name: str
    model_sha: str | None
    model_dtype: str | None
    model_type: Annotated[dict[str, dict[str, str]], Field(description="embedding, and how its tokens are pooled.")]
    max_input_length: Annotated[int | None, Field(description="Tokens read of one text.")]
    max_batch_tokens: Annotated[int | None, Field(description="Tokens computed in one batch, padding included.")]
    max_batch_requests: int | None
    max_client_batch_size: Annotated[int, Field(description="Texts in one request.")]
    max_concurrent_requests: Annotated[int, Field(description="At most: what waits is limited in tokens.")]
    auto_truncate: Annotated[bool, Field(description="Whether a text that is too long is cut unless told otherwise.")]
    tokenization_workers: int | None


class InfoAnswer(TEIInfo):
    """What this server is."""

    version: str
    status: Literal["loading", "ready", "failed"]
    model: str
    fingerprint: str | None
    dim: int | None
    max_tokens: int | None
    default_collection: str
    limits: dict[str, int]
    pending: Annotated[int, Field(ge=0, description="Tokens that wait or are being embedded.")]
    collections: list[CollectionItem]
