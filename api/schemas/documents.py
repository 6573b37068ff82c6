"""Requests that write, count and read documents, and their responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from api.schemas.common import VISIBLE, Count, IsIntegral, Metadata, Request, limits_of, problem
from api.schemas.filter_schema import Filter
from indexing.query.search_options import MAX_K

FACETS = 20
PAGE = 100
FIELD_NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z][a-z0-9]{0,31}$"}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_VECTOR: dict[str, Any] = {
    "anyOf": [
        _NUMBERS,
        {"type": "array", "items": _NUMBERS, "minItems": 1},
        {
            "type": "object",
            "properties": {
                "indices": {"type": "array", "items": {"type": "integer", "minimum": 0}, "uniqueItems": True},
                "values": {"type": "array", "items": {"type": "number", "minimum": 0}},
            },
            "required": ["indices", "values"],
            "additionalProperties": False,
        },
    ]
}
_SOME_TEXT: list[Any] = [{"required": [name], "properties": {name: {"pattern": VISIBLE}}} for name in ("text", "title")]
_VECTORS = Field(json_schema_extra={"additionalProperties": _VECTOR, "propertyNames": FIELD_NAME})


class DocumentRequest(Request):
    """A document to write."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _SOME_TEXT})

    id: Annotated[str, Field(min_length=1, description="Unique id in the collection.")]
    text: Annotated[
        str, Field(description="Embedded after the title.", json_schema_extra={"maxLength": "limit:max_text_chars"})
    ] = ""
    title: Annotated[str, Field(description="A short name.")] = ""
    metadata: Annotated[
        dict[str, Any], Field(default_factory=dict, description="Further fields; stored, not embedded.")
    ]
    vectors: Annotated[
        Annotated[dict[str, Any], _VECTORS] | None,
        Field(
            description="Vectors by field, in place of those of a model: numbers; a list of token vectors; or "
            "`indices` and `values`. All documents of a request have the same fields."
        ),
    ] = None


def check_count(value: list[DocumentRequest], info: ValidationInfo) -> list[DocumentRequest]:
    """Return the documents if they are not more than one request may have."""
    limit = limits_of(info).max_inputs
    if len(value) > limit:
        message = f"documents has {len(value):,} entries, the limit is {limit:,}; send NDJSON or a file"
        raise problem("too_many_inputs", message)
    return value


class WriteRequest(Request):
    """Documents to write; each replaces the document with its id."""

    examples: ClassVar[dict[str, Any]] = {
        "Documents": {"documents": [{"id": "rain", "text": "It rained all night.", "metadata": {"year": 2024}}]}
    }

    documents: Annotated[
        list[DocumentRequest],
        Field(
            min_length=1,
            description="The documents; all are written, or none.",
            json_schema_extra={"maxItems": "limit:max_inputs"},
        ),
        AfterValidator(check_count),
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
    examples: ClassVar[dict[str, Any]] = {"One document": {"ids": ["rain"]}}

    ids: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None, Field(description="Their ids; unknown ids are ignored.")
    ] = None
    filter: Filter = None

    @model_validator(mode="after")
    def _check_together(self) -> DeleteRequest:
        if (self.ids is None) == (self.filter is None):
            raise problem("conflicting_fields", "send either ids (a list) or filter (an object)", "ids")
        return self


class CountRequest(Request):
    """The documents to count. Default: all."""

    examples: ClassVar[dict[str, Any]] = {"With a filter": {"filter": {"field": "kind", "eq": "function"}}}

    filter: Filter = None


class FacetRequest(Request):
    """The field whose values are counted."""

    examples: ClassVar[dict[str, Any]] = {"Five values": {"field": "kind", "limit": 5}}

    field: Annotated[str, Field(min_length=1, description="A path into the metadata, as in a filter.")]
    limit: Annotated[
        int, Field(ge=1, le=MAX_K, description="Maximum number of values, the most frequent first."), IsIntegral
    ] = FACETS
    filter: Filter = None


class FailedItem(BaseModel):
    """A record that was skipped."""

    source: Annotated[str, Field(description="Where the record was read from.")]
    line: Annotated[int | None, Field(description="Line or row of the record.")]
    reason: str


class WrittenResponse(BaseModel):
    """Number of documents written; they are durable and visible to searches."""

    upserted: Count
    truncated: Annotated[Count, Field(description="Documents that were truncated to the maximum length of an encoder.")]
    tokens: Annotated[Count, Field(description="Tokens embedded.")]
    failed: list[FailedItem]


class DeletedResponse(BaseModel):
    """Number of documents deleted."""

    deleted: Count


class DocumentResponse(BaseModel):
    """A document."""

    id: str
    text: str
    title: str
    metadata: Metadata


class PageResponse(BaseModel):
    """Documents in the order in which they were written."""

    documents: list[DocumentResponse]
    cursor: Annotated[str | None, Field(description="Cursor of the next page; null after the last.")]


class CountResponse(BaseModel):
    """Number of matching documents."""

    count: Count


class FacetItem(BaseModel):
    """A value and its number of documents."""

    value: str | float | bool
    count: Count


class FacetResponse(BaseModel):
    """The most frequent values of a field."""

    field: str
    values: list[FacetItem]
