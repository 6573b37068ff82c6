"""What a search may ask for, and what it answers."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from api.http.body import kind_of
from api.schemas.common import (
    DEFAULT_TOP_K,
    Count,
    Metadata,
    Request,
    check_integral,
    check_queries,
    check_query,
    check_top_k,
    limits_of,
    problem,
)
from indexing.query.search_options import CANDIDATES, MAX_K

WHOLE = BeforeValidator(check_integral)
Part = Literal["text", "metadata", "vectors"]
INCLUDED: tuple[Part, ...] = ("text", "metadata")
BEGIN = "*"  # the cursor of the first page
MAX_GROUP = 10


class FusionRequest(Request):
    """How the rankings of several fields are joined."""

    method: Annotated[
        Literal["rrf", "weighted", "dbsf"],
        Field(description="rrf: by ranks; weighted: scores stretched to 0 to 1; dbsf: scores by their distribution."),
    ] = "rrf"
    k: Annotated[int, Field(ge=0, le=10_000, description="Of rrf: 1 / (k + rank)."), WHOLE] = 60
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None, Field(description="By field; 1 unless given.")
    ] = None


class GroupRequest(Request):
    """Few documents of each group."""

    field: Annotated[str, Field(min_length=1, description="A path into the metadata, or id.")]
    size: Annotated[int, Field(ge=1, le=MAX_GROUP, description="Documents of a group at most."), WHOLE] = 1


class MmrRequest(Request):
    """Documents that are near the query and unlike each other (maximal marginal relevance)."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    balance: Annotated[
        float, Field(alias="lambda", ge=0, le=1, description="The weight of nearness; the rest is that of unlikeness.")
    ]
    field: Annotated[str | None, Field(description="Of dense vectors; the first of the collection.")] = None


def check_vectors(value: object, info: ValidationInfo) -> object:
    """Return vectors of each query as a list of objects."""
    if value is None:
        return None
    found = [value] if isinstance(value, dict) else value
    if not isinstance(found, list) or not all(isinstance(one, dict) and one for one in found):
        message = "vectors must be an object of vectors by field, or a list of such, one for each query"
        raise problem("invalid_type", "vectors", f"{message}; got {kind_of(value)}")
    limits = limits_of(info)
    if not 1 <= len(found) <= limits.max_inputs:
        raise problem("too_many_inputs", "vectors", f"vectors must be of 1 to {limits.max_inputs:,} queries")
    return found


class SearchRequest(Request):
    """Queries to answer from a collection: ``query``, ``queries`` or ``vectors``."""

    collection: Annotated[str | None, Field(description="Name of the collection; left out, the default one.")] = None
    query: Annotated[str | None, BeforeValidator(check_query), Field(description="One query.")] = None
    queries: Annotated[list[str] | None, BeforeValidator(check_queries), Field(description="Several queries.")] = None
    vectors: Annotated[
        list[dict[str, Any]] | None,
        BeforeValidator(check_vectors),
        Field(
            description="By field, in place of what a model makes of the query; a text for words. An object for one "
            "query, a list of them for several."
        ),
    ] = None
    top_k: Annotated[
        int,
        BeforeValidator(check_top_k),
        Field(description=f"Hits for each query; {DEFAULT_TOP_K} unless given. Queries times top_k has a limit, too."),
    ] = DEFAULT_TOP_K
    mode: Annotated[
        str | None,
        Field(
            description="What is searched: a field by name or kind (dense, multi, sparse, bm25), or hybrid for all; "
            "the first field of vectors unless given."
        ),
    ] = None
    fusion: Annotated[FusionRequest | None, Field(description="How the rankings of several fields are joined.")] = None
    rerank: Annotated[
        str | None, Field(description="The field of token vectors by whose MaxSim the candidates are ranked, multi.")
    ] = None
    candidates: Annotated[
        int,
        Field(ge=1, le=MAX_K, description="Documents of each field that are joined, ranked again or spread."),
        WHOLE,
    ] = CANDIDATES
    filter: Annotated[
        dict[str, Any] | None, Field(description="What documents must pass; and, or, not nest. docs/collections.md.")
    ] = None
    group_by: Annotated[
        GroupRequest | None, Field(description="Few documents of each group; top_k counts groups then.")
    ] = None
    mmr: Annotated[MmrRequest | None, Field(description="Documents that are unlike each other.")] = None
    score_threshold: Annotated[
        float | None, Field(ge=-1e30, le=1e30, description="Hits that score less are left out.")
    ] = None
    cursor: Annotated[
        str | None,
        Field(
            min_length=1,
            pattern=r"^[A-Za-z0-9_*-]+$",
            description="'*' begins paging: the answer has next_cursor, which goes here for the next page.",
        ),
    ] = None
    include: Annotated[
        list[Part],
        Field(max_length=3, description="What hits have; text and metadata unless given."),
    ] = list(INCLUDED)
    explain: Annotated[bool, Field(description="Say of each hit why it was found.")] = False

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> SearchRequest:
        if self.query is not None and self.queries is not None:
            raise problem("conflicting_fields", "queries", "both query and queries were sent; send one of them")
        if self.query is None and self.queries is None and self.vectors is None:
            raise problem("missing_field", "query", "query is missing; send 'query' (a string) or 'queries' (a list)")
        if self.texts and self.vectors is not None and len(self.vectors) != len(self.texts):
            message = f"vectors are of {len(self.vectors)} queries, the texts are {len(self.texts)}; send as many"
            raise problem("conflicting_fields", "vectors", message)
        if self.group_by is not None and self.mmr is not None:
            raise problem("conflicting_fields", "mmr", "group_by and mmr do not go together; send one of them")
        if self.cursor is not None and self.count != 1:
            raise problem("conflicting_fields", "cursor", "a cursor goes with one query; send the others by themselves")
        hits = self.count * self.top_k * (self.group_by.size if self.group_by is not None else 1)
        if hits > limits_of(info).max_hits:
            raise problem(
                "too_many_hits",
                "top_k",
                f"{self.count:,} queries with top_k {self.top_k:,} ask for {hits:,} hits, "
                f"the limit is {limits_of(info).max_hits:,} in one answer; lower top_k or send the queries in several "
                "requests",
            )
        return self

    @property
    def texts(self) -> list[str]:
        """The queries, whether sent as one or as several; none where there are only vectors."""
        return self.queries if self.queries is not None else [self.query] if self.query is not None else []

    @property
    def count(self) -> int:
        """How many queries there are."""
        return len(self.texts) or len(self.vectors or ())

    @property
    def asked(self) -> str:
        """What is searched, whatever page of it is asked for."""
        aside = {"cursor", "top_k", "include", "explain", "collection"}
        return json.dumps(self.model_dump(exclude=aside), sort_keys=True, default=str)


class PlacedItem(BaseModel):
    """What one field says of a document."""

    score: float
    rank: Annotated[int, Field(ge=1, description="Among the candidates of the field.")]


class TokenItem(BaseModel):
    """A token of the query and the token of the document that is most like it."""

    query: Annotated[Count, Field(description="Place of the query's token vector.")]
    query_token: str | None
    document: Annotated[Count, Field(description="Place of the document's token vector.")]
    document_token: str | None
    similarity: float


class ExplanationItem(BaseModel):
    """Why a document was found."""

    retrievers: Annotated[dict[str, PlacedItem], Field(description="By field; absent where it was no candidate.")]
    tokens: Annotated[
        dict[str, list[TokenItem]] | None,
        Field(description="By field of token vectors: the best match of every token of the query."),
    ] = None


class HitItem(BaseModel):
    """One document found."""

    id: str
    score: Annotated[float, Field(description="Cosine similarity, unless mode or fusion say otherwise.")]
    text: Annotated[str | None, Field(description="Absent where include leaves it out.")] = None
    metadata: Annotated[Metadata | None, Field(description="Fields of the document, its title among them.")] = None
    group: Annotated[Any, Field(description="Its value of the field that hits are grouped by.")] = None
    vectors: Annotated[dict[str, Any] | None, Field(description="By field, where include asks for them.")] = None
    explain: ExplanationItem | None = None


class ResultItem(BaseModel):
    """The hits of one query, best first."""

    query_index: Count
    hits: list[HitItem]
    next_cursor: Annotated[str | None, Field(description="Of the next page; null at the end.")] = None


class SearchTiming(BaseModel):
    """Milliseconds; 0 for a stage that there was not."""

    embed: Annotated[float, Field(description="Embedding the queries, waiting in the queue included.")]
    retrieve: Annotated[float, Field(description="Finding the candidates of each field, filter included.")]
    fuse: Annotated[float, Field(description="Joining the rankings of several fields.")]
    rerank: Annotated[float, Field(description="Ordering the candidates again, for `rerank` and `mmr`.")]
    fetch: Annotated[float, Field(description="Choosing what is shown, and reading the documents.")]
    search: Annotated[float, Field(description="Everything after embedding, waiting for a thread included.")]
    total: Annotated[float, Field(description="`embed` and `search`.")]


class SearchAnswer(BaseModel):
    """Hits in the order of the queries."""

    results: list[ResultItem]
    collection: str
    fingerprint: Annotated[str, Field(description="Of the encoder of the collection's first field of vectors.")]
    timing_ms: SearchTiming
