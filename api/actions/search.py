"""A search from its request to its hits: which fields, what of the query for each, and what is asked of the index."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api.actions.vectors import brought, embedded
from api.http.error_responses import ApiError
from api.schemas.search import BEGIN, SearchRequest
from api.service import Service, stages_ms
from embedserve.errors import EmbedserveError, InputError

if TYPE_CHECKING:
    from indexing import Collection, Hit, Options
    from indexing.collections.manifest import Manifest

KINDS = {"dense": "dense", "multi": "multi", "sparse": "sparse", "bm25": "words"}
OF_COLLECTION = ("mode", "rerank", "mmr.field", "weights", "vectors")  # what fits one collection and not another


@dataclass(frozen=True)
class Found:
    """What a search found.

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


async def find(service: Service, name: str, request: SearchRequest) -> Found:
    """Return the hits of a search.

    Raises:
        ApiError: 404, no such collection; 409, what the request names is not in it, or the cursor is of another
            search; 422, a value that no collection takes.
        IndexMismatchError: The collection was made by an encoder that is not loaded.
    """
    started = time.perf_counter()
    await service.open(name)
    with service.collections.use(name) as collection:
        manifest = collection.manifest
        try:
            names, rerank, mmr = _fields(manifest, request)
            queries = brought(manifest.fields, _vectors_of(manifest, request), "vectors[{}]")
        except InputError as error:
            raise of_collection(error) from None
        wanted = dict.fromkeys([*names, *([rerank] if rerank else []), *([mmr] if mmr else [])])
        queries |= _words(manifest, request, wanted)
        missing = [key for key in wanted if key not in queries and manifest.fields[key].output != "words"]
        if missing:
            if not request.texts:
                message = f"vectors of {', '.join(missing)} are missing; send them, or the query as text"
                raise ApiError(409, "not_in_collection", message, param="vectors")
            field = "queries" if request.queries is not None else "query"
            made = await embedded(service, manifest, missing, request.texts, "query", field=field)
            queries |= made.vectors
        done_embedding = time.perf_counter()
        spent: dict[str, float] = {}
        work = (collection, request, names, rerank, mmr, queries, spent)
        hits, cursor = await service.in_search_thread(_search, *work)
    timing = stages_ms(started, done_embedding, time.perf_counter(), spent)
    return Found(hits, cursor, manifest, timing)


def of_collection(error: InputError) -> EmbedserveError:
    """Return an error 409 for what is fine by itself and does not fit this collection."""
    field = error.field or ""
    if field == "cursor":
        return ApiError(409, "invalid_cursor", error.message, param=field)
    if field.split("[")[0] in OF_COLLECTION or field.startswith("vectors"):
        return ApiError(409, "not_in_collection", error.message, param=field)
    return error


def field_named(manifest: Manifest, name: str, param: str) -> str:
    """Return the field of that name, or the first of that kind."""
    if name in manifest.fields:
        return name
    for key, field in manifest.fields.items():
        if field.output == KINDS.get(name):
            return key
    message = f"{param} is {name!r}; the fields of this collection are {', '.join(manifest.fields)}"
    raise InputError(message, field=param)


def _fields(manifest: Manifest, request: SearchRequest) -> tuple[list[str], str | None, str | None]:
    """Return the fields that are searched, the one that ranks again, and the one that spreads."""
    from indexing.collections.search_pipeline import HYBRID, check_mmr, check_reranking, searched, weights_of

    rerank = None if request.rerank is None else field_named(manifest, request.rerank, "rerank")
    if rerank is not None:
        check_reranking(manifest, rerank)
    if request.mode not in (None, HYBRID):
        names = [field_named(manifest, str(request.mode), "mode")]
    elif request.mode is None and request.vectors is not None:
        sent = [key for key in manifest.fields if key in request.vectors[0]]
        names = [key for key in sent if key != rerank] or sent or searched(manifest, None)
    else:
        names = searched(manifest, request.mode)
    if request.fusion is not None:
        weights_of(request.fusion.weights, names)
    mmr = None
    if request.mmr is not None:
        dense = [key for key, field in manifest.fields.items() if field.output == "dense"]
        mmr = check_mmr(manifest, request.mmr.field or (dense[0] if dense else "dense"))
    return names, rerank, mmr


def _vectors_of(manifest: Manifest, request: SearchRequest) -> list[dict[str, Any]]:
    """Return the vectors that a request brings, without texts for words."""
    words = {key for key, field in manifest.fields.items() if field.output == "words"}
    return [{key: one[key] for key in one if key not in words} for one in request.vectors or ()]


def _words(manifest: Manifest, request: SearchRequest, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts for fields of words."""
    made: dict[str, Any] = {}
    for key in wanted:
        if manifest.fields[key].output != "words":
            continue
        sent = [one.get(key) for one in request.vectors or ()]
        texts: Sequence[Any] = sent if any(text is not None for text in sent) else request.texts
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            message = f"vectors.{key} must be the text of the query, as {key} is searched by words"
            raise ApiError(409, "not_in_collection", message, param=f"vectors.{key}")
        made[key] = texts
    return made


def options_of(
    manifest: Manifest, request: SearchRequest, rerank: str | None = None, mmr: str | None = None
) -> Options:
    """Return what is asked of the index."""
    from indexing.query.cursors import decode_cursor
    from indexing.query.diversity import GroupBy, Mmr
    from indexing.query.filters import compile_filter
    from indexing.query.search_options import Options

    shown: Sequence[int] | None = None
    if request.cursor is not None:
        shown = () if request.cursor == BEGIN else decode_cursor(request.cursor, _asked(manifest, request))
    fusion = request.fusion
    return Options(
        request.top_k,
        None if request.filter is None else compile_filter(request.filter),
        "rrf" if fusion is None else fusion.method,
        None if fusion is None else fusion.weights,
        rerank,
        request.candidates,
        rrf_k=60 if fusion is None else fusion.k,
        score_threshold=request.score_threshold,
        group_by=None if request.group_by is None else GroupBy(request.group_by.field, request.group_by.size),
        mmr=None if request.mmr is None or mmr is None else Mmr(request.mmr.balance, mmr),
        shown=shown,
        vectors="vectors" in request.include,
        explain=request.explain,
    )


def _asked(manifest: Manifest, request: SearchRequest) -> str:
    return f"{manifest.name} {manifest.created} {request.asked}"


def _search(
    collection: Collection, request: SearchRequest, names: Sequence[str], rerank: str | None, mmr: str | None,
    queries: Mapping[str, Any], spent: dict[str, float],
) -> tuple[list[list[Hit]], str | None]:  # fmt: skip
    from indexing.query.cursors import encode_cursor

    manifest = collection.manifest
    try:
        options = options_of(manifest, request, rerank, mmr)
        hits = collection.find(queries, options, names, spent)
    except InputError as error:
        raise of_collection(error) from None
    if options.shown is None or not hits[0]:
        return hits, None
    count = len({_group(hit, n) for n, hit in enumerate(hits[0])}) if options.group_by is not None else len(hits[0])
    if count < options.k:
        return hits, None
    return hits, encode_cursor([*options.shown, *(hit.row for hit in hits[0])], _asked(manifest, request))


def _group(hit: Hit, place: int) -> str | int:
    from indexing.query.diversity import group_key

    return place if hit.group is None else group_key(hit.group) or ""
