"""Run a search request: plan it, embed its texts, search, and page through the results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api.actions.vectors import embed_fields, parse_vectors
from api.http.error_responses import ApiError
from api.schemas.search import BEGIN, SearchRequest
from api.service import Service, stages_ms
from embedserve.errors import EmbedserveError, InputError

if TYPE_CHECKING:
    from indexing import Collection, Field, Hit
    from indexing.collections.manifest import Manifest
    from indexing.collections.search_plan import SearchPlan

KINDS = {"dense": "dense", "multi": "multi", "sparse": "sparse", "bm25": "words"}
COLLECTION_PARAMS = ("mode", "rerank", "mmr.field", "weights", "vectors")  # their valid values depend on the collection


@dataclass(frozen=True)
class SearchResult:
    """The result of a search request.

    Attributes:
        hits: Of each query.
        cursor: Of the next page; None at the end.
        manifest: Of the collection.
        timing: Milliseconds of each stage.
    """

    hits: list[list[Hit]]
    cursor: str | None
    manifest: Manifest
    timing: Mapping[str, float]


async def search_collection(service: Service, name: str, request: SearchRequest) -> SearchResult:
    """Return the hits of a search request.

    Raises:
        ApiError: 404, no such collection; 409, the request does not fit the collection's fields, or the cursor belongs
            to another search; 422, an invalid value.
        IndexMismatchError: The encoder of the collection is not loaded.
    """
    started = time.perf_counter()
    await service.open(name)
    with service.collections.use(name) as collection:
        if request.filter is not None:  # large filters take long to compile
            plan = await service.in_search_thread(plan_of, collection, request)
        else:
            plan = plan_of(collection, request)
        queries = await _queries_of(service, plan, request)
        embedded = time.perf_counter()
        timings_s: dict[str, float] = {}
        hits = await service.in_search_thread(collection.find, plan, queries, timings_s)
    timing = stages_ms(started, embedded, time.perf_counter(), timings_s)
    return SearchResult(hits, _next_cursor(plan, request, hits), plan.state.manifest, timing)


def collection_error(error: InputError) -> EmbedserveError:
    """Return an error 409 for a valid value that does not fit this collection; other errors unchanged."""
    field = error.field or ""
    if field == "cursor":
        return ApiError(409, "invalid_cursor", error.message, param=field)
    if field.split("[")[0] in COLLECTION_PARAMS or field.startswith("vectors"):
        return ApiError(409, "not_in_collection", error.message, param=field)
    return error


def field_named(fields: Mapping[str, Field], name: str, param: str) -> str:
    """Return the field with that name, or else the first of that kind."""
    if name in fields:
        return name
    for key, field in fields.items():
        if field.output == KINDS.get(name):
            return key
    raise InputError(f"{param} is {name!r}; the fields of this collection are {', '.join(fields)}", field=param)


def plan_of(collection: Collection, request: SearchRequest) -> SearchPlan:
    """Return the checked plan of a request; it holds the snapshot that is searched."""
    from indexing.collections.search_plan import HYBRID
    from indexing.query.cursors import decode_cursor
    from indexing.query.diversity import GroupBy, Mmr
    from indexing.query.filters import compile_filter
    from indexing.query.search_options import Options

    manifest = collection.manifest
    fields, fusion, shown = manifest.fields, request.fusion, None
    try:
        rerank = None if request.rerank is None else field_named(fields, request.rerank, "rerank")
        mode: str | Sequence[str] | None = request.mode
        if request.mode not in (None, HYBRID):
            mode = field_named(fields, str(request.mode), "mode")
        elif request.mode is None and request.vectors is not None:
            sent = [key for key in fields if key in request.vectors[0]]
            mode = [key for key in sent if key != rerank] or sent or None
        mmr = None
        if request.mmr is not None:
            dense = next((key for key, field in fields.items() if field.output == "dense"), "dense")
            mmr = Mmr(request.mmr.balance, request.mmr.field or dense)
        if request.cursor is not None:
            shown = () if request.cursor == BEGIN else decode_cursor(request.cursor, _identity(manifest, request))
        options = Options(
            request.top_k,
            None if request.filter is None else compile_filter(request.filter),
            "rrf" if fusion is None else fusion.method,
            None if fusion is None else fusion.weights,
            rerank,
            request.candidates,
            rrf_k=60 if fusion is None else fusion.k,
            score_threshold=request.score_threshold,
            group_by=None if request.group_by is None else GroupBy(request.group_by.field, request.group_by.size),
            mmr=mmr,
            shown=shown,
            vectors="vectors" in request.include,
            explain=request.explain,
        )
        return collection.plan(options, mode)
    except InputError as error:
        raise collection_error(error) from None


async def _queries_of(service: Service, plan: SearchPlan, request: SearchRequest) -> dict[str, Any]:
    """Return the query vectors or texts of each field that the plan requires."""
    manifest = plan.state.manifest
    words = {key for key, field in manifest.fields.items() if field.output == "words"}
    sent = [{key: vectors[key] for key in vectors if key not in words} for vectors in request.vectors or ()]
    try:
        queries = parse_vectors(manifest.fields, sent, "vectors[{}]")
    except InputError as error:
        raise collection_error(error) from None
    queries |= {key: _texts_for(key, request) for key in plan.required if key in words}
    missing = [key for key in plan.required if key not in queries]
    if missing:
        if not request.texts:
            message = f"vectors of {', '.join(missing)} are missing; send them, or the query as text"
            raise ApiError(409, "not_in_collection", message, param="vectors")
        param = "queries" if request.queries is not None else "query"
        queries |= (await embed_fields(service, manifest, missing, request.texts, "query", field=param)).vectors
    return queries


def _texts_for(key: str, request: SearchRequest) -> Sequence[Any]:
    """Return the texts for a field of words: those in ``vectors``, or else the queries."""
    sent = [vectors.get(key) for vectors in request.vectors or ()]
    texts: Sequence[Any] = sent if any(text is not None for text in sent) else request.texts
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        message = f"vectors.{key} must be the text of the query, because {key} is a field of words"
        raise ApiError(409, "not_in_collection", message, param=f"vectors.{key}")
    return texts


def _identity(manifest: Manifest, request: SearchRequest) -> str:
    return f"{manifest.name} {manifest.created} {request.identity}"


def _next_cursor(plan: SearchPlan, request: SearchRequest, hits: Sequence[Sequence[Hit]]) -> str | None:
    from indexing.query.cursors import encode_cursor
    from indexing.query.diversity import group_key

    options = plan.options
    if options.shown is None or not hits[0]:
        return None
    groups = {n if hit.group is None else group_key(hit.group) or "" for n, hit in enumerate(hits[0])}
    if (len(groups) if options.group_by is not None else len(hits[0])) < options.k:
        return None
    return encode_cursor([*options.shown, *(hit.row for hit in hits[0])], _identity(plan.state.manifest, request))
