"""Requests that create, change and name collections, and their responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from api.schemas.common import Count, IsIntegral, Request
from indexing.segments.fields import NAME, TAKEN

Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="1 to 64 of a-z, 0-9, '-' and '_'."),
]
FIELD_NAMES = {"pattern": f"^{NAME.pattern}$", "not": {"enum": [*TAKEN]}}


class FieldRequest(Request):
    """One field of a collection: vectors of one kind, or the words of the texts."""

    output: Annotated[
        Literal["dense", "multi", "sparse", "words"],
        Field(description="dense, multi (a vector for each token), sparse, or words for BM25."),
    ] = "dense"
    model: Annotated[
        str | None,
        Field(
            description="The model that embeds documents. Default: none if `dim` is set; documents have vectors then."
        ),
    ] = None
    dim: Annotated[
        Annotated[int, Field(ge=1, le=2**24), IsIntegral] | None,
        Field(description="Dimensions of the vectors that documents have."),
    ] = None
    index: Annotated[
        str,
        Field(min_length=1, description="auto, exact, flat, fastscan, ivf, hnsw, muvera, or a faiss factory string."),
    ] = "auto"
    metric: Annotated[Literal["cosine", "inner_product"], Field(description="How dense vectors are compared.")] = (
        "cosine"
    )


class CreateRequest(Request):
    """A new, empty collection."""

    examples: ClassVar[dict[str, Any]] = {
        "Vectors and words": {
            "name": "notes", "fields": {"dense": {"output": "dense", "index": "hnsw"}, "bm25": {"output": "words"}},
        }
    }  # fmt: skip

    name: Name
    model: Annotated[
        str | None, Field(description="The model of fields that name none. Default: the default model.")
    ] = None
    fields: Annotated[
        Annotated[
            dict[str, FieldRequest],
            Field(min_length=1, max_length=32, json_schema_extra={"propertyNames": FIELD_NAMES}),
        ]
        | None,
        Field(description="Fields by name. Default: dense vectors as `dense` and words as `bm25`."),
    ] = None
    index: Annotated[str, Field(min_length=1, description="Index of the default dense field.")] = "auto"
    metric: Annotated[Literal["cosine", "inner_product"], Field(description="Metric of the default dense field.")] = (
        "cosine"
    )


class CompactRequest(Request):
    """How much is compacted."""

    examples: ClassVar[dict[str, Any]] = {"All segments": {"full": True}}

    full: Annotated[bool, Field(description="Whether to merge all segments into one, whatever the cost.")] = False


class AliasRequest(Request):
    """The collection of an alias."""

    examples: ClassVar[dict[str, Any]] = {"A collection": {"collection": "python-docs"}}

    collection: Annotated[Name, Field(description="Name of a collection.")]


class FieldItem(BaseModel):
    """One field of a collection."""

    output: Literal["dense", "multi", "sparse", "words"]
    dim: Annotated[Count, Field(description="Dimensions of a vector; 0 for words.")]
    index: Annotated[str, Field(description="The requested index; segments have the one that was built.")]
    metric: Literal["cosine", "inner_product"]
    encoder: Annotated[str, Field(description="Name of the encoder; empty if documents have vectors.")]
    fingerprint: Annotated[str, Field(description="Vectors with equal fingerprints may be compared.")]


class SegmentItem(BaseModel):
    """One segment."""

    name: str
    documents: Annotated[Count, Field(description="Documents that are not deleted.")]
    deleted: Annotated[Count, Field(description="Deleted documents; compaction frees their space.")]
    indexes: Annotated[dict[str, str], Field(description="Kind of the index of each field.")]
    bytes: Count


class CollectionDetail(BaseModel):
    """Documents, fields, sizes and segments of a collection."""

    name: str
    documents: Count
    truncated: Annotated[Count, Field(description="Documents truncated to the maximum length of an encoder.")]
    created: str
    version: Annotated[str, Field(description="Changes with the files of the collection.")]
    fingerprint: Annotated[str, Field(description="Fingerprint of the encoder of the first vector field.")]
    fields: dict[str, FieldItem]
    segments: list[SegmentItem]
    bytes: Annotated[Count, Field(description="Size of all segments.")]
    log_bytes: Annotated[Count, Field(description="Size of the log, whose documents are not in a segment yet.")]
    aliases: list[str]
    writing: Annotated[bool, Field(description="Whether this server holds the write lock of the collection.")]


class CollectionsResponse(BaseModel):
    """All collections."""

    collections: Annotated[list[dict[str, Any]], Field(description="As in `GET /info`.")]


class AliasesResponse(BaseModel):
    """The collection of each alias."""

    aliases: dict[str, str]


class DeletedCollection(BaseModel):
    """Name of the deleted collection."""

    deleted: str
