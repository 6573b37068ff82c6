"""Requests that make, change and name collections, and what the answers look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.schemas.common import WHOLE, Count, Request
from indexing.segments.fields import NAME, TAKEN

Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="1 to 64 of a-z, 0-9, '-' and '_'."),
]


class FieldRequest(Request):
    """One field of a collection: a kind of vector, or the words of the texts."""

    output: Annotated[
        Literal["dense", "multi", "sparse", "words"],
        Field(description="dense, multi (a vector for each token), sparse, or words for BM25."),
    ] = "dense"
    model: Annotated[
        str | None, Field(description="The model that makes the vectors; left out with `dim`, documents bring them.")
    ] = None
    dim: Annotated[
        int | None, Field(ge=1, le=2**24, description="Numbers in a vector that documents bring."), WHOLE
    ] = None
    index: Annotated[
        str,
        Field(min_length=1, description="auto, exact, flat, fastscan, ivf, hnsw, muvera, or a faiss factory string."),
    ] = "auto"
    metric: Annotated[Literal["cosine", "inner_product"], Field(description="Of dense vectors.")] = "cosine"


class CreateRequest(Request):
    """A new, empty collection."""

    name: Name
    model: Annotated[str | None, Field(description="The model of fields that name none; the default one.")] = None
    fields: Annotated[
        dict[str, FieldRequest] | None,
        Field(
            min_length=1,
            max_length=32,
            description="By name; dense vectors and the words as `bm25` unless given.",
            json_schema_extra={"propertyNames": {"pattern": f"^{NAME.pattern}$", "not": {"enum": [*TAKEN]}}},
        ),
    ] = None
    index: Annotated[str, Field(min_length=1, description="Of the dense field where `fields` is left out.")] = "auto"
    metric: Annotated[
        Literal["cosine", "inner_product"], Field(description="Of the dense field where `fields` is left out.")
    ] = "cosine"


class CompactRequest(Request):
    """How much is written anew."""

    full: Annotated[bool, Field(description="Make one segment of all, whatever it costs.")] = False


class AliasRequest(Request):
    """What an alias is to mean."""

    collection: Annotated[Name, Field(description="Name of a collection.")]


class FieldItem(BaseModel):
    """One field of a collection."""

    output: Literal["dense", "multi", "sparse", "words"]
    dim: Annotated[Count, Field(description="Numbers in a vector; 0 for words.")]
    index: Annotated[str, Field(description="What was asked for; segments say what was built.")]
    metric: Literal["cosine", "inner_product"]
    encoder: Annotated[str, Field(description="The encoder's name; empty where documents bring vectors.")]
    fingerprint: Annotated[str, Field(description="Vectors may be compared where this is equal.")]


class SegmentItem(BaseModel):
    """One segment."""

    name: str
    documents: Annotated[Count, Field(description="Those that can be found.")]
    deleted: Annotated[Count, Field(description="Those whose space comes back when the segment is written anew.")]
    indexes: Annotated[dict[str, str], Field(description="The kind of index of each field.")]
    bytes: Count


class CollectionDetail(BaseModel):
    """What a collection holds and what it is made of."""

    name: str
    documents: Count
    truncated: Annotated[Count, Field(description="Documents that were cut to what an encoder reads.")]
    created: str
    version: Annotated[str, Field(description="Another one after each change of the files.")]
    fingerprint: Annotated[str, Field(description="Of the encoder of the first field of vectors.")]
    fields: dict[str, FieldItem]
    segments: list[SegmentItem]
    bytes: Annotated[Count, Field(description="Of all segments.")]
    log_bytes: Annotated[Count, Field(description="Of the log, whose documents are in no segment yet.")]
    aliases: list[str]
    writing: Annotated[bool, Field(description="Whether this server holds the right to write to it just now.")]


class CollectionsAnswer(BaseModel):
    """All collections."""

    collections: Annotated[list[dict[str, Any]], Field(description="As in `GET /info`.")]


class AliasesAnswer(BaseModel):
    """The collection behind each alias."""

    aliases: dict[str, str]


class DeletedCollection(BaseModel):
    """What is gone."""

    deleted: str
