"""Request of a search."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from api.schemas.common import (
    IsIntegral,
    NullMeans,
    OneText,
    Request,
    TextList,
    limits_of,
    problem,
)
from api.schemas.documents import FIELD_NAME
from api.schemas.filter_schema import Filter
from indexing.query.search_options import CANDIDATES, MAX_K

DEFAULT_TOP_K = 10
Part = Literal["text", "metadata", "vectors"]
INCLUDED: tuple[Part, ...] = ("text", "metadata")
BEGIN = "*"  # the cursor of the first page
MAX_GROUP = 10

FieldName = Annotated[str, Field(json_schema_extra={"pattern": FIELD_NAME["pattern"]})]


class FusionRequest(Request):
    """How the rankings of several fields are fused."""

    method: Annotated[
        Literal["rrf", "weighted", "dbsf"],
        Field(
            description="rrf: by ranks; weighted: scores scaled to 0 to 1; dbsf: scores scaled by their distribution."
        ),
    ] = "rrf"
    k: Annotated[int, Field(ge=0, le=10_000, description="Constant of rrf: 1 / (k + rank)."), IsIntegral] = 60
    weights: Annotated[
        Annotated[
            dict[str, Annotated[float, Field(ge=0, le=1e6)]], Field(json_schema_extra={"propertyNames": FIELD_NAME})
        ]
        | None,
        Field(description="Weight by field. Default: 1 each."),
    ] = None


class GroupRequest(Request):
    """Limits the number of documents of each group."""

    field: Annotated[str, Field(min_length=1, description="A path into the metadata, or id.")]
    size: Annotated[int, Field(ge=1, le=MAX_GROUP, description="Maximum documents of a group."), IsIntegral] = 1


class MmrRequest(Request):
    """Maximal marginal relevance: documents that are similar to the query and dissimilar to each other."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    balance: Annotated[
        float, Field(alias="lambda", ge=0, le=1, description="Weight of relevance; the rest is that of diversity.")
    ]
    field: Annotated[
        str | None, Field(description="A field of dense vectors. Default: the first of the collection.")
    ] = None


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def check_vectors(value: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
    """Return the vectors if they are of at least one query and of not more than one request may have."""
    limit = limits_of(info).max_inputs
    if not 1 <= len(value) <= limit:
        raise problem("too_many_inputs", f"vectors has {len(value):,} entries; send 1 to {limit:,}, one for each query")
    return value


def check_top_k(value: int, info: ValidationInfo) -> int:
    """Return the number of hits if the service allows it."""
    limit = limits_of(info).max_top_k
    if not 1 <= value <= limit:
        raise problem("top_k_out_of_range", f"top_k is {value}; it may be 1 to {limit}")
    return value


_BY_FIELD = {
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    "propertyNames": FIELD_NAME,
    "minProperties": 1,
}
QueryVectors = Annotated[
    list[Annotated[dict[str, Any], Field(min_length=1)]],
    BeforeValidator(_as_list),
    AfterValidator(check_vectors),
    WithJsonSchema({"anyOf": [_BY_FIELD, {"type": "array", "items": _BY_FIELD, "minItems": 1, "maxItems": 8}]}),
]
_NULL = {"type": "null"}
_RULES: dict[str, Any] = {
    "oneOf": [
        {"required": ["query"], "properties": {"query": {"type": "string"}, "queries": _NULL, "vectors": _NULL}},
        {
            "required": ["queries"],
            "properties": {"queries": {"type": "array"}, "query": _NULL, "vectors": _NULL, "cursor": _NULL},
        },
        {
            "required": ["vectors"],
            "properties": {"vectors": {"type": ["object", "array"]}, "query": _NULL, "queries": _NULL, "cursor": _NULL},
        },
    ],
    "anyOf": [{"properties": {"mmr": _NULL}}, {"properties": {"group_by": _NULL}}],
}


class SearchRequest(Request):
    """Queries to search a collection with: ``query``, ``queries`` or ``vectors``."""

    model_config = ConfigDict(json_schema_extra=_RULES)
    hints: ClassVar[dict[str, str]] = {"query": "send a list as 'queries'", "queries": "send one string as 'query'"}
    examples: ClassVar[dict[str, Any]] = {
        "One query": {"query": "join arrays along a new axis", "top_k": 5},
        "Several queries": {"queries": ["parse a date", "copy a file"], "top_k": 3},
        "Meaning and words, filtered and explained": {
            "query": "join arrays",
            "mode": "hybrid",
            "fusion": {"method": "rrf", "k": 60, "weights": {"dense": 1.0, "bm25": 0.5}},
            "filter": {"field": "kind", "eq": "function"},
            "explain": True,
        },
        "The first page": {"query": "copy a file", "top_k": 5, "cursor": "*"},
        "Diverse hits": {"query": "copy", "mmr": {"lambda": 0.7}, "include": ["metadata"]},
    }

    query: Annotated[OneText | None, Field(description="One query.")] = None
    queries: Annotated[TextList | None, Field(description="Several queries.")] = None
    vectors: Annotated[
        QueryVectors | None,
        Field(
            description="Query vectors by field, in place of those of a model; a text for words. An object for one "
            "query, a list of objects for several."
        ),
    ] = None
    top_k: Annotated[
        int,
        IsIntegral,
        AfterValidator(check_top_k),
        NullMeans(DEFAULT_TOP_K),
        Field(
            description=f"Hits for each query. Default: {DEFAULT_TOP_K}. Queries times top_k is limited, too.",
            json_schema_extra={"minimum": 1, "maximum": "limit:max_top_k"},
        ),
    ] = DEFAULT_TOP_K
    mode: Annotated[
        FieldName | None,
        Field(
            description="What is searched: a field by name or kind (dense, multi, sparse, bm25), or hybrid for all. "
            "Default: the first vector field."
        ),
    ] = None
    fusion: Annotated[FusionRequest | None, Field(description="How the rankings of several fields are fused.")] = None
    rerank: Annotated[
        FieldName | None, Field(description="A field of token vectors; candidates are reranked by its MaxSim.")
    ] = None
    candidates: Annotated[
        int, Field(ge=1, le=MAX_K, description="Candidates of each field to fuse, rerank or diversify."), IsIntegral
    ] = CANDIDATES
    filter: Filter = None
    group_by: Annotated[
        GroupRequest | None, Field(description="Limits the documents of each group; top_k then counts groups.")
    ] = None
    mmr: Annotated[MmrRequest | None, Field(description="Diversifies the hits.")] = None
    score_threshold: Annotated[
        float | None, Field(ge=-1e30, le=1e30, description="Minimum score; hits with a lower score are dropped.")
    ] = None
    cursor: Annotated[
        str | None,
        Field(
            min_length=1,
            pattern=r"^[A-Za-z0-9_*-]+$",
            description="'*' for the first page, then next_cursor of the page before.",
        ),
    ] = None
    include: Annotated[
        list[Part],
        Field(max_length=3, description="Parts of a hit. Default: text and metadata."),
    ] = list(INCLUDED)
    explain: Annotated[bool, Field(description="Whether to explain the score of each hit.")] = False

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> SearchRequest:
        if self.query is not None and self.queries is not None:
            raise problem("conflicting_fields", "both query and queries were sent; send one of them", "queries")
        if self.query is None and self.queries is None and self.vectors is None:
            message = "query is missing; send 'query' (a string) or 'queries' (a list)"
            raise problem("missing_field", message, "query")
        if self.texts and self.vectors is not None and len(self.vectors) != len(self.texts):
            message = f"vectors has {len(self.vectors)} entries for {len(self.texts)} queries; send one for each"
            raise problem("conflicting_fields", message, "vectors")
        if self.group_by is not None and self.mmr is not None:
            raise problem("conflicting_fields", "group_by and mmr cannot be combined; send one of them", "mmr")
        if self.cursor is not None and self.count != 1:
            message = "cursor needs a single query; send the others in requests of their own"
            raise problem("conflicting_fields", message, "cursor")
        limit = limits_of(info).max_hits
        hits = self.count * self.top_k * (self.group_by.size if self.group_by is not None else 1)
        if hits > limit:
            message = (
                f"{self.count:,} queries with top_k {self.top_k:,} request {hits:,} hits, the limit is {limit:,} in "
                "one response; lower top_k or send several requests"
            )
            raise problem("too_many_hits", message, "top_k")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries as a list; empty if there are only vectors."""
        return self.queries if self.queries is not None else [self.query] if self.query is not None else []

    @property
    def count(self) -> int:
        """Number of queries."""
        return len(self.texts) or len(self.vectors or ())

    @property
    def identity(self) -> str:
        """The search as JSON, without the page and the parts of its hits; equal for all pages of a search."""
        excluded = {"cursor", "top_k", "include", "explain", "collection"}
        return json.dumps(self.model_dump(exclude=excluded), sort_keys=True, default=str)


class NamedSearchRequest(SearchRequest):
    """Queries to search a collection with: ``query``, ``queries`` or ``vectors``."""

    collection: Annotated[str | None, Field(description="Name of the collection. Default: the default one.")] = None
