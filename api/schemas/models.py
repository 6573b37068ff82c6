"""The models of the service, in OpenAI's shape with more fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.schemas.common import Count


class ModelItem(BaseModel):
    """One model."""

    id: Annotated[str, Field(description="What requests call it.")]
    object: Literal["model"]
    created: Annotated[Count, Field(description="When this server began to offer it, in seconds since 1970.")]
    owned_by: Literal["embedserve"]
    state: Annotated[
        Literal["unloaded", "loading", "ready", "failed"],
        Field(description="unloaded: the first request that names it has it loaded. failed: see error."),
    ]
    default: Annotated[bool, Field(description="Whether requests that name no model get this one.")]
    aliases: Annotated[list[str], Field(description="Further names.")]
    fingerprint: Annotated[str | None, Field(description="Vectors may be compared where this is equal.")]
    dim: int | None
    max_tokens: int | None
    outputs: Annotated[list[str], Field(description="What one pass makes: dense, sparse, multi.")]
    device: str
    pending: Annotated[Count, Field(description="Tokens that wait or are being embedded.")]
    error: Annotated[str | None, Field(description="Why it could not be loaded.")]


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelItem]


class SelfcheckAnswer(BaseModel):
    """How far a model's vectors are from those that came with it, or that it made when it was first loaded."""

    model: str
    fingerprint: str
    passed: Annotated[bool | None, Field(description="null where no reference vectors could be kept.")]
    largest_difference: Annotated[float | None, Field(description="Of any component.")]
    tolerance: Annotated[float, Field(description="The most that it may be, by the dtype of the weights.")]
    texts: Annotated[int, Field(ge=1, description="Texts that were embedded, as queries and as documents.")]
