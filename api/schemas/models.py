"""The models of the service, in OpenAI's format with more fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.schemas.common import Count


class ModelItem(BaseModel):
    """One model."""

    id: Annotated[str, Field(description="Name of the model in requests.")]
    object: Literal["model"]
    created: Annotated[Count, Field(description="When this server registered the model, in seconds since 1970.")]
    owned_by: Literal["embedserve"]
    state: Annotated[
        Literal["unloaded", "loading", "ready", "failed"],
        Field(description="unloaded: the first request that names it loads it. failed: see error."),
    ]
    default: Annotated[bool, Field(description="Whether requests without a model name use it.")]
    aliases: Annotated[list[str], Field(description="Further names.")]
    fingerprint: Annotated[str | None, Field(description="Vectors with equal fingerprints may be compared.")]
    dim: int | None
    max_tokens: int | None
    outputs: Annotated[list[str], Field(description="Outputs of one pass: dense, sparse, multi.")]
    device: str
    lean_pass: Annotated[
        str | None,
        Field(description="`used`, or why the lean forward pass is not used; null until the model is loaded."),
    ] = None
    pending: Annotated[Count, Field(description="Tokens that are queued or being embedded.")]
    error: Annotated[str | None, Field(description="Why it could not be loaded.")]


class ModelsResponse(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelItem]


class SelfcheckResponse(BaseModel):
    """Difference between a model's vectors and its reference vectors."""

    model: str
    fingerprint: str
    passed: Annotated[bool | None, Field(description="null if there are no reference vectors.")]
    largest_difference: Annotated[float | None, Field(description="Largest difference of any component.")]
    tolerance: Annotated[float, Field(description="Largest accepted difference, by the dtype of the weights.")]
    texts: Annotated[int, Field(ge=1, description="Number of texts, embedded as queries and as documents.")]
