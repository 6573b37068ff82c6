"""Search engines of `indexing` for an evaluation, in place of mteb's exact comparison of all vectors.

The difference to the exact comparison is the loss of the index. An engine returns at most `DEPTH` hits, whatever mteb
requests: with more, a graph or a scan would search more deeply than it does when it serves ten.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedserve import InputError
from embedserve.errors import did_you_mean
from embedserve.ragged import offsets_of
from embedserve.types import Encoded, SparseEmbeddings, TokenEmbeddings
from indexing import Hits, SparseIndex, build_index
from indexing.engines.bm25_index import K1, B, Bm25Index
from indexing.engines.faiss_defaults import (
    AUTO,
    CANDIDATES,
    EF_SEARCH,
    LISTS,
    NAMES,
    PROBED,
    REFINE,
    SCAN_BELOW,
    codes_for,
    resolve_kind,
)  # fmt: skip
from indexing.engines.faiss_factory import new_index
from indexing.engines.faiss_index import import_faiss
from indexing.late_interaction.lemur import CANDIDATES as LEMUR_CANDIDATES
from indexing.late_interaction.lemur import CODES as LEMUR_CODES
from indexing.late_interaction.lemur import TRAIN_DOCUMENTS, LemurIndex
from indexing.late_interaction.lemur_features import LemurConfig
from indexing.late_interaction.muvera import CANDIDATES as MUVERA_CANDIDATES
from indexing.late_interaction.muvera import CODES, SCAN_FACTOR, MuveraIndex, default_config
from indexing.query.fusion import fuse, reciprocal_rank

# By default, token-vector engines compare all documents below 10,000; here the loss must show on smaller sets.
EXACT_BELOW = 1_000
DEPTH = 100
FUSED = 1_000  # hits of each ranking of a hybrid search


@dataclass(frozen=True)
class Index:
    """An index of documents.

    Attributes:
        search: Encoded queries, their texts, k, and allowed rows (None for all) -> hits.
        size: Returns the size of the saved index in bytes.
    """

    search: Callable[[Encoded | None, Sequence[str], int, np.ndarray | None], Hits]
    size: Callable[[], int]


@dataclass(frozen=True)
class SearchEngine:
    """A search engine.

    Attributes:
        name: Name after ``#`` in the name of a system.
        needs: Encoder outputs that it reads.
        settings: Dimensions of a vector -> all settings that affect the hits, as plain values.
        build: Encoded documents and their texts -> index.
        reranks: Whether it can rank given candidates.
    """

    name: str
    needs: tuple[str, ...]
    settings: Callable[[int], dict[str, Any]]
    build: Callable[[Encoded | None, Sequence[str]], Index]
    reranks: bool = False


def saved_bytes(index: Any) -> int:
    """Return the size of the files of a saved index in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        return sum(path.stat().st_size for path in (Path(folder) / "index").rglob("*") if path.is_file())


def _dense(kind: str) -> SearchEngine:
    def build(documents: Any, texts: Sequence[str]) -> Index:
        index = build_index(documents.dense.vectors, kind)
        return Index(
            lambda q, _, k, allowed: index.search(_dense_of(q), min(k, DEPTH), allowed), partial(saved_bytes, index)
        )

    def settings(dim: int) -> dict[str, Any]:
        factory = resolve_kind(kind, 1, dim) if kind not in ("auto", "ivf") else kind
        if kind not in NAMES:
            new_index(import_faiss(), dim, factory, "cosine")  # raises for an unknown factory string
        looks = {"ef": EF_SEARCH, "probed": PROBED, "refine": REFINE, "candidates": CANDIDATES, "scan": SCAN_BELOW}
        return {"factory": factory, "codes": codes_for(dim), "auto": AUTO, "lists": LISTS, **looks, "depth": DEPTH}

    return SearchEngine(kind, ("dense",), settings, build)


def _multi(index_of: Callable[..., MuveraIndex | LemurIndex]) -> Callable[[Any, Sequence[str]], Index]:
    """Return the build function of an index of token vectors."""

    def build(documents: Any, texts: Sequence[str]) -> Index:
        index = index_of(documents.multi.vectors.shape[1], exact_below=EXACT_BELOW)
        index.add(np.arange(len(texts)), documents.multi)
        return Index(
            lambda q, _, k, allowed: index.search(_multi_of(q), min(k, DEPTH), allowed), partial(saved_bytes, index)
        )

    return build


def _muvera_settings(dim: int) -> dict[str, Any]:
    config = dataclasses.asdict(default_config(dim))
    looks = {"codes": CODES, "candidates": MUVERA_CANDIDATES, "scanned": SCAN_FACTOR}
    return {**config, **looks, "exact_below": EXACT_BELOW, "depth": DEPTH}


def _lemur_settings(dim: int) -> dict[str, Any]:
    config = dataclasses.asdict(LemurConfig(dim))
    looks = {"codes": LEMUR_CODES, "candidates": LEMUR_CANDIDATES, "trained": TRAIN_DOCUMENTS}
    return {**config, **looks, "exact_below": EXACT_BELOW, "depth": DEPTH}


def _sparse(documents: Any, texts: Sequence[str]) -> Index:
    width = 1 + int(documents.sparse.indices.max(initial=0))

    def search(queries: Any, _: Sequence[str], k: int, allowed: np.ndarray | None) -> Hits:
        return index.search(_below(queries.sparse, width), k, allowed)

    index = SparseIndex(width)
    index.add(np.arange(len(texts)), documents.sparse)
    return Index(search, partial(saved_bytes, index))


def _bm25(documents: Any, texts: Sequence[str]) -> Index:
    index = Bm25Index()
    index.add(texts)
    return Index(lambda _, queries, k, allowed: index.search(queries, k, allowed), partial(saved_bytes, index))


def _hybrid(*parts: Callable[[Any, Sequence[str]], Index]) -> Callable[[Any, Sequence[str]], Index]:
    def build(documents: Any, texts: Sequence[str]) -> Index:
        indexes = [part(documents, texts) for part in parts]

        def search(encoded: Any, queries: Sequence[str], k: int, allowed: np.ndarray | None) -> Hits:
            depth = max(k, FUSED)
            return fuse([index.search(encoded, queries, depth, allowed) for index in indexes], k)

        return Index(search, lambda: sum(index.size() for index in indexes))

    return build


def _sparse_settings(dim: int) -> dict[str, Any]:
    return {}


def _bm25_settings(dim: int) -> dict[str, Any]:
    return {"bm25": "postings", "k1": K1, "b": B}


def _hybrid_settings(dim: int) -> dict[str, Any]:
    constant = {"method": _default(fuse, "method"), "k": _default(reciprocal_rank, "k")}
    return {"fused": FUSED, **constant, **_bm25_settings(dim)}


def _default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def _flat(documents: Any, texts: Sequence[str]) -> Index:
    index = build_index(documents.dense.vectors, "flat")
    return Index(lambda q, _, k, allowed: index.search(_dense_of(q), k, allowed), partial(saved_bytes, index))


ENGINES = {
    engine.name: engine
    for engine in (
        *(_dense(name) for name in NAMES),
        SearchEngine("muvera", ("multi",), _muvera_settings, _multi(MuveraIndex)),
        SearchEngine("lemur", ("multi",), _lemur_settings, _multi(LemurIndex)),
        SearchEngine("sparse", ("sparse",), _sparse_settings, _sparse, reranks=True),
        SearchEngine("bm25", (), _bm25_settings, _bm25, reranks=True),
        SearchEngine("hybrid", ("dense", "sparse"), _hybrid_settings, _hybrid(_flat, _sparse), reranks=True),
        SearchEngine("hybrid-bm25", ("dense",), _hybrid_settings, _hybrid(_flat, _bm25), reranks=True),
    )
}


def engine_of(name: str) -> SearchEngine:
    """Return the engine of a name, or of a faiss factory string such as ``IVF64,SQ8``.

    Raises:
        InputError: ``name`` is neither.
    """
    if name in ENGINES:
        return ENGINES[name]
    if name[:1].isupper():  # as all faiss factory strings do
        return _dense(name)
    hint = did_you_mean(name, ENGINES)
    message = f"unknown engine {name!r}; {hint}expected {', '.join(ENGINES)} or a faiss factory string"
    raise InputError(message, field="encoder")


def take(encoded: Encoded | None, row: int) -> Encoded | None:
    """Return the encoding of one text."""
    return encoded and encoded.take(np.array([row]))


def _dense_of(queries: Encoded | None) -> np.ndarray:
    if queries is None or queries.dense is None:
        raise TypeError("no dense vectors")
    return queries.dense.vectors


def _multi_of(queries: Encoded | None) -> TokenEmbeddings:
    if queries is None or queries.multi is None:
        raise TypeError("no token vectors")
    return queries.multi


def _below(vectors: SparseEmbeddings, width: int) -> SparseEmbeddings:
    """Return the sparse vectors without the indices that no document has."""
    keep = vectors.indices < width
    owner = np.repeat(np.arange(len(vectors)), np.diff(vectors.offsets))[keep]
    offsets = offsets_of(np.bincount(owner, minlength=len(vectors)))
    return dataclasses.replace(vectors, indices=vectors.indices[keep], values=vectors.values[keep], offsets=offsets)
