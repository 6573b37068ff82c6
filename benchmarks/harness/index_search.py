"""How a system's vectors are searched where that is not mteb's own exact comparison: the engines of `indexing`.

An evaluation by an engine shows what the index loses beside the exact comparison of the same vectors. It is asked for
`DEPTH` hits, however many mteb wants: asked for more, a graph or a scan looks further than where it serves ten.
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

# The engines of token vectors compare everything below 10,000 documents; here they are to show what they lose.
EXACT_BELOW = 1_000
DEPTH = 100
FUSED = 1_000  # hits of each part of a hybrid search that are fused


@dataclass(frozen=True)
class Index:
    """Documents that can be searched.

    Attributes:
        search: Encoded queries, their texts, hits wanted and the rows allowed (None for all) -> hits.
        size: Saves the index, and returns its bytes.
    """

    search: Callable[[Encoded | None, Sequence[str], int, np.ndarray | None], Hits]
    size: Callable[[], int]


@dataclass(frozen=True)
class Engine:
    """A way to search.

    Attributes:
        name: In the name of a system.
        needs: The encoder's outputs that it reads.
        settings: The width of a vector -> everything that shapes what is found, as plain values.
        build: Encoded documents and their texts -> the index.
        reranks: Whether it can be asked to sort given candidates.
    """

    name: str
    needs: tuple[str, ...]
    settings: Callable[[int], dict[str, Any]]
    build: Callable[[Encoded | None, Sequence[str]], Index]
    reranks: bool = False


def saved_bytes(index: Any) -> int:
    """Return the bytes of the files that ``index`` is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        return sum(path.stat().st_size for path in (Path(folder) / "index").rglob("*") if path.is_file())


def _dense(kind: str) -> Engine:
    def build(documents: Any, texts: Sequence[str]) -> Index:
        index = build_index(documents.dense.vectors, kind)
        return Index(
            lambda q, _, k, allowed: index.search(_dense_of(q), min(k, DEPTH), allowed), partial(saved_bytes, index)
        )

    def settings(dim: int) -> dict[str, Any]:
        factory = resolve_kind(kind, 1, dim) if kind not in ("auto", "ivf") else kind
        if kind not in NAMES:
            new_index(import_faiss(), dim, factory, "cosine")  # refuses what faiss does not know
        looks = {"ef": EF_SEARCH, "probed": PROBED, "refine": REFINE, "candidates": CANDIDATES, "scan": SCAN_BELOW}
        return {"factory": factory, "codes": codes_for(dim), "auto": AUTO, "lists": LISTS, **looks, "depth": DEPTH}

    return Engine(kind, ("dense",), settings, build)


def _muvera(documents: Any, texts: Sequence[str]) -> Index:
    index = MuveraIndex(documents.multi.vectors.shape[1], exact_below=EXACT_BELOW)
    index.add(np.arange(len(texts)), documents.multi)
    return Index(
        lambda q, _, k, allowed: index.search(_multi_of(q), min(k, DEPTH), allowed), partial(saved_bytes, index)
    )


def _muvera_settings(dim: int) -> dict[str, Any]:
    config = dataclasses.asdict(default_config(dim))
    looks = {"codes": CODES, "candidates": MUVERA_CANDIDATES, "scanned": SCAN_FACTOR}
    return {**config, **looks, "exact_below": EXACT_BELOW, "depth": DEPTH}


def _lemur(documents: Any, texts: Sequence[str]) -> Index:
    index = LemurIndex(documents.multi.vectors.shape[1], exact_below=EXACT_BELOW)
    index.add(np.arange(len(texts)), documents.multi)
    return Index(
        lambda q, _, k, allowed: index.search(_multi_of(q), min(k, DEPTH), allowed), partial(saved_bytes, index)
    )


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
    return Index(lambda _, asked, k, allowed: index.search(asked, k, allowed), partial(saved_bytes, index))


def _hybrid(*parts: Callable[[Any, Sequence[str]], Index]) -> Callable[[Any, Sequence[str]], Index]:
    def build(documents: Any, texts: Sequence[str]) -> Index:
        built = [part(documents, texts) for part in parts]

        def search(queries: Any, asked: Sequence[str], k: int, allowed: np.ndarray | None) -> Hits:
            wanted = max(k, FUSED)
            return fuse([index.search(queries, asked, wanted, allowed) for index in built], k)

        return Index(search, lambda: sum(index.size() for index in built))

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
        Engine("muvera", ("multi",), _muvera_settings, _muvera),
        Engine("lemur", ("multi",), _lemur_settings, _lemur),
        Engine("sparse", ("sparse",), _sparse_settings, _sparse, reranks=True),
        Engine("bm25", (), _bm25_settings, _bm25, reranks=True),
        Engine("hybrid", ("dense", "sparse"), _hybrid_settings, _hybrid(_flat, _sparse), reranks=True),
        Engine("hybrid-bm25", ("dense",), _hybrid_settings, _hybrid(_flat, _bm25), reranks=True),
    )
}


def engine_of(name: str) -> Engine:
    """Return an engine by its name, or the dense index of a faiss factory string such as ``IVF64,SQ8``.

    Raises:
        InputError: It is neither.
    """
    if name in ENGINES:
        return ENGINES[name]
    if name[:1].isupper():  # faiss's own names all are
        return _dense(name)
    hint = did_you_mean(name, ENGINES)
    message = f"there is no engine {name!r}; {hint}there are {', '.join(ENGINES)}, and faiss factory strings"
    raise InputError(message, field="encoder")


def take(encoded: Encoded | None, place: int) -> Encoded | None:
    """Return one text of what was encoded, as a value of its own."""
    return encoded and encoded.take(np.array([place]))


def _dense_of(queries: Encoded | None) -> np.ndarray:
    if queries is None or queries.dense is None:
        raise TypeError("no dense vectors")
    return queries.dense.vectors


def _multi_of(queries: Encoded | None) -> TokenEmbeddings:
    if queries is None or queries.multi is None:
        raise TypeError("no token vectors")
    return queries.multi


def _below(vectors: SparseEmbeddings, width: int) -> SparseEmbeddings:
    """Return the sparse vectors without entries that no document has."""
    keep = vectors.indices < width
    owner = np.repeat(np.arange(len(vectors)), np.diff(vectors.offsets))[keep]
    offsets = offsets_of(np.bincount(owner, minlength=len(vectors)))
    return dataclasses.replace(vectors, indices=vectors.indices[keep], values=vectors.values[keep], offsets=offsets)
