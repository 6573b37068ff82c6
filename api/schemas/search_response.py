"""Response of a search."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from api.schemas.common import Count, Metadata


class FieldScore(BaseModel):
    """Score and rank of a document in one field."""

    score: float
    rank: Annotated[int, Field(ge=1, description="Among the candidates of the field.")]


class TokenItem(BaseModel):
    """A token of the query and its most similar token of the document."""

    query: Annotated[Count, Field(description="Index of the query's token vector.")]
    query_token: str | None
    document: Annotated[Count, Field(description="Index of the document's token vector.")]
    document_token: str | None
    similarity: float


class ExplanationItem(BaseModel):
    """How the score of a document came about."""

    retrievers: Annotated[
        dict[str, FieldScore], Field(description="By field; absent if the document was not a candidate.")
    ]
    tokens: Annotated[
        dict[str, list[TokenItem]] | None,
        Field(description="By field of token vectors: the best match of each query token."),
    ] = None


class HitItem(BaseModel):
    """One hit."""

    id: str
    score: Annotated[float, Field(description="Cosine similarity by default; depends on mode and fusion.")]
    text: Annotated[str | None, Field(description="Present if include names it.")] = None
    metadata: Annotated[Metadata | None, Field(description="Metadata of the document, with its title.")] = None
    group: Annotated[Any, Field(description="Value of the field that hits are grouped by.")] = None
    vectors: Annotated[dict[str, Any] | None, Field(description="By field; present if include names them.")] = None
    explain: ExplanationItem | None = None


class ResultItem(BaseModel):
    """The hits of one query, best first."""

    query_index: Count
    hits: list[HitItem]
    next_cursor: Annotated[str | None, Field(description="Cursor of the next page; null after the last.")] = None


class SearchTiming(BaseModel):
    """Durations in milliseconds; 0 for a stage that did not run."""

    embed: Annotated[float, Field(description="Embedding the queries, queueing included.")]
    retrieve: Annotated[float, Field(description="Retrieving the candidates of each field, filtering included.")]
    fuse: Annotated[float, Field(description="Fusing the rankings of several fields.")]
    rerank: Annotated[float, Field(description="Reranking the candidates, for `rerank` and `mmr`.")]
    fetch: Annotated[float, Field(description="Selecting the hits and reading their documents.")]
    search: Annotated[float, Field(description="Everything after embedding, waiting for a thread included.")]
    total: Annotated[float, Field(description="`embed` and `search`.")]


class SearchResponse(BaseModel):
    """Hits in the order of the queries."""

    results: list[ResultItem]
    collection: str
    fingerprint: Annotated[str, Field(description="Fingerprint of the encoder of the first vector field.")]
    timing_ms: SearchTiming
