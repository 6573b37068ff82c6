"""Requests that write, count and read documents, and what the answers look like."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from api.http.body import kind_of
from api.schemas.common import WHOLE, Count, Metadata, Request, limits_of, problem
from indexing.query.search_options import MAX_K

Filter = Annotated[dict[str, Any] | None, Field(description="What documents must pass, see docs/collections.md.")]
FACETS = 20
PAGE = 100


class DocumentRequest(Request):
    """A document as it is sent."""

    id: Annotated[str, Field(min_length=1, description="Its name, unique in the collection.")]
    text: Annotated[str, Field(description="What is embedded, behind the title.")] = ""
    title: Annotated[str, Field(description="A short name.")] = ""
    metadata: Annotated[dict[str, Any], Field(default_factory=dict, description="Anything else; kept, not embedded.")]
    vectors: Annotated[
        dict[str, Any] | None,
        Field(
            description="By field, in place of what a model makes: numbers; a list of token vectors; or `indices` and "
            "`values`. All documents of a request bring the same fields."
        ),
    ] = None


def check_documents(value: object, info: ValidationInfo) -> object:
    """Complain about another number of documents than may be sent."""
    limits = limits_of(info)
    if not isinstance(value, list):
        raise problem("invalid_type", "documents", f"documents must be a list, got {kind_of(value)}")
    if not value:
        raise problem("empty_list", "documents", "documents is an empty list; send at least one")
    if len(value) > limits.max_inputs:
        message = f"documents has {len(value):,} entries, the limit is {limits.max_inputs:,}; send NDJSON or a file"
        raise problem("too_many_inputs", "documents", message)
    return value


class WriteRequest(Request):
    """Documents to write, each in place of the one with its id."""

    documents: Annotated[
        list[DocumentRequest], BeforeValidator(check_documents), Field(description="All are written, or none.")
    ]


class DeleteRequest(Request):
    """Documents to delete: either ``ids`` or ``filter``."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["ids"], "properties": {"ids": {"type": "array"}, "filter": {"type": "null"}}},
                {"required": ["filter"], "properties": {"filter": {"type": "object"}, "ids": {"type": "null"}}},
            ]
        }
    )

    ids: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None, Field(description="Their ids; those not there do not matter.")
    ] = None
    filter: Filter = None

    @model_validator(mode="after")
    def _check_together(self) -> DeleteRequest:
        if (self.ids is None) == (self.filter is None):
            raise problem("conflicting_fields", "ids", "send either ids (a list) or filter (an object)")
        return self


class CountRequest(Request):
    """Which documents to count; all unless there is a filter."""

    filter: Filter = None


class FacetRequest(Request):
    """The field whose values are counted."""

    field: Annotated[str, Field(min_length=1, description="A path into the metadata, as in a filter.")]
    limit: Annotated[int, Field(ge=1, le=MAX_K, description="Values at most, the most frequent ones."), WHOLE] = FACETS
    filter: Filter = None


class FailedItem(BaseModel):
    """A record that was left out."""

    source: Annotated[str, Field(description="Where it stood.")]
    line: Annotated[int | None, Field(description="Its line or row.")]
    reason: str


class WrittenAnswer(BaseModel):
    """What was written; it is on the disk, and every search from now on finds it."""

    upserted: Count
    truncated: Annotated[Count, Field(description="Documents that were cut to what an encoder reads.")]
    tokens: Annotated[Count, Field(description="Tokens read for them.")]
    failed: list[FailedItem]


class DeletedAnswer(BaseModel):
    """How many documents were deleted."""

    deleted: Count


class DocumentAnswer(BaseModel):
    """A document."""

    id: str
    text: str
    title: str
    metadata: Metadata


class PageAnswer(BaseModel):
    """Documents in the order of writing."""

    documents: list[DocumentAnswer]
    cursor: Annotated[str | None, Field(description="Of the next page; null at the end.")]


class CountAnswer(BaseModel):
    """How many documents pass."""

    count: Count


class FacetItem(BaseModel):
    """A value and how many documents have it."""

    value: str | float | bool
    count: Count


class FacetAnswer(BaseModel):
    """The most frequent values of a field."""

    field: str
    values: list[FacetItem]
