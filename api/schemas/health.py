"""Responses of GET /livez, /readyz and /info."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class LiveResponse(BaseModel):
    """The process runs."""

    status: Literal["alive"]


class ReadyResponse(BaseModel):
    """The service can serve requests."""

    status: Literal["ready"]
    checks: Annotated[dict[str, str], Field(description="Result of each check.")]


class CollectionItem(BaseModel):
    """One collection."""

    name: str
    status: Annotated[
        Literal["open", "closed", "failed"],
        Field(description="closed: the first search opens it. failed: it cannot be searched, see error."),
    ]
    documents: Annotated[int | None, Field(description="Number of documents.")]
    error: Annotated[str | None, Field(description="Why the newest build cannot be searched.")]


class TEIInfo(BaseModel):
    """Fields of Text Embeddings Inference (TEI), by which its clients size their requests."""

    model_id: str
    served_model_name: str
    model_sha: str | None
    model_dtype: str | None
    model_type: Annotated[dict[str, dict[str, str]], Field(description="embedding, with the pooling of its tokens.")]
    max_input_length: Annotated[int | None, Field(description="Maximum tokens of one text.")]
    max_batch_tokens: Annotated[int | None, Field(description="Maximum tokens of one batch, padding included.")]
    max_batch_requests: int | None
    max_client_batch_size: Annotated[int, Field(description="Maximum texts of one request.")]
    max_concurrent_requests: Annotated[int, Field(description="Upper bound; the queue is limited in tokens.")]
    auto_truncate: Annotated[bool, Field(description="Whether a text that is too long is cut by default.")]
    tokenization_workers: int | None


class InfoResponse(TEIInfo):
    """Version, model, limits and collections of the service."""

    version: str
    status: Literal["loading", "ready", "failed"]
    model: str
    fingerprint: str | None
    dim: int | None
    max_tokens: int | None
    default_collection: str
    limits: dict[str, int]
    pending: Annotated[int, Field(ge=0, description="Tokens that are queued or being embedded.")]
    collections: list[CollectionItem]
