"""The token-vector engines that `late_interaction_search` measures, with their search effort."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.types import TokenEmbeddings
from indexing import build_index
from indexing.base import Hits
from indexing.late_interaction.exact_multi import ExactMultiIndex
from indexing.late_interaction.lemur import LemurIndex
from indexing.late_interaction.lemur_features import LemurConfig
from indexing.late_interaction.muvera import CODES, MuveraIndex, default_config
from indexing.late_interaction.plaid import PlaidIndex

K = 100
EFFORTS = (100, 400, 1000)  # documents that are compared by MaxSim
Search = Callable[[TokenEmbeddings], Hits]  # one query to its hits


@dataclass(frozen=True)
class TokenEngine:
    """A built index.

    Attributes:
        searches: By a name of the effort, how to search.
        size: Bytes as saved.
    """

    searches: dict[str, Search]
    size: int


def saved_bytes(index: ExactMultiIndex | MuveraIndex | LemurIndex | PlaidIndex) -> int:
    """Return the bytes of the files that ``index`` is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        return sum(path.stat().st_size for path in (Path(folder) / "index").rglob("*") if path.is_file())


def exact_index(documents: TokenEmbeddings, codec: str = "float16", pooling: int = 1) -> ExactMultiIndex:
    """Return the index that compares every document."""
    index = ExactMultiIndex(documents.vectors.shape[1], codec=codec, pooling=pooling)
    index.add(np.arange(len(documents)), documents)
    return index


def exact(documents: TokenEmbeddings, codec: str = "float16", pooling: int = 1) -> TokenEngine:
    """Return `exact_index` as an engine."""
    index = exact_index(documents, codec, pooling)
    return TokenEngine({"all": lambda query: index.search(query, K)}, saved_bytes(index))


def by_candidates(
    index: MuveraIndex | LemurIndex | PlaidIndex, documents: TokenEmbeddings, **options: Any
) -> TokenEngine:
    """Return the engine of ``index``, filled with ``documents``, that compares several numbers of candidates."""
    index.add(np.arange(len(documents)), documents)

    def search(count: int) -> Search:
        return lambda query: index.search(query, K, candidates=count, **options)

    return TokenEngine({f"{count} candidates": search(count) for count in EFFORTS}, saved_bytes(index))


def muvera(
    documents: TokenEmbeddings, *, codes: str = CODES, keeps: bool = False, tau: float | None = None, **fields: Any
) -> TokenEngine:
    """Return a MUVERA index; ``fields`` replace those of its default config."""
    dim = documents.vectors.shape[1]
    config = replace(default_config(dim), **fields)
    index = MuveraIndex(dim, config, codes=codes, keeps_encodings=keeps, exact_below=len(documents))
    return by_candidates(index, documents, tau=tau)


def lemur(documents: TokenEmbeddings, **fields: int) -> TokenEngine:
    """Return a LEMUR index; ``fields`` replace those of its default config."""
    dim = documents.vectors.shape[1]
    return by_candidates(LemurIndex(dim, LemurConfig(dim, **fields), exact_below=len(documents)), documents)


def plaid(documents: TokenEmbeddings) -> TokenEngine:
    """Return a PLAID index, which needs fast-plaid."""
    return by_candidates(PlaidIndex(documents.vectors.shape[1], exact_below=len(documents)), documents)


def pooled(documents: TokenEmbeddings) -> TokenEngine:
    """Return a flat faiss index of the mean token vectors, whose best are ranked by MaxSim."""
    tokens = exact_index(documents)
    sums = np.add.reduceat(documents.vectors, documents.offsets[:-1], axis=0)
    means = build_index(sums, "flat")

    def search(count: int) -> Search:
        def found(query: TokenEmbeddings) -> Hits:
            best = means.search(query.vectors.sum(axis=0)[None], count).of(0)[0]
            return tokens.search(query, K, allowed=best)

        return found

    return TokenEngine({f"{count} candidates": search(count) for count in EFFORTS}, saved_bytes(tokens) + sums.nbytes)


def flavour(**fields: Any) -> Callable[[TokenEmbeddings], TokenEngine]:
    """Return the build of a MUVERA index that differs from the default by ``fields``."""
    return lambda documents: muvera(documents, **fields)


PAPER: dict[str, Any] = {"bits": 5, "inner_dim": 16, "fill": True}
# An engine whose package is missing raises `LoadError`: its line says n/a.
ENGINES: dict[str, Callable[[TokenEmbeddings], TokenEngine]] = {
    "exact float16": exact,
    "exact int8": lambda documents: exact(documents, "int8"),
    "exact residual4": lambda documents: exact(documents, "residual4"),
    "exact residual2": lambda documents: exact(documents, "residual2"),
    "exact, token pooling 2": lambda documents: exact(documents, pooling=2),
    "mean-pooled flat": pooled,
    "muvera": flavour(),
    "muvera, encodings kept": flavour(keeps=True),
    "muvera Flat": flavour(codes="Flat"),
    "muvera SQ8": flavour(codes="SQ8"),
    "muvera, half the codes": flavour(codes="IVF1,PQ1280x4fs"),
    "muvera, twice the codes": flavour(codes="IVF1,PQ5120x4fs"),
    "muvera, filled": flavour(fill=True),
    "muvera, centred": flavour(centred=True),
    "muvera, signs": flavour(projection="signs"),
    "muvera, sketch": flavour(projection="sketch"),
    "muvera, 20·2^5·16": flavour(bits=5, inner_dim=16),
    "muvera, 20·2^7·4": flavour(bits=7, inner_dim=4),
    "muvera, 20·2^5·8": flavour(bits=5, inner_dim=8),
    "muvera, 40·2^6·8": flavour(repetitions=40),
    "muvera, 20·2^6·64 sketched": flavour(inner_dim=64, final_dim=10_240),
    "muvera, paper": flavour(**PAPER, projection="signs"),
    "muvera, paper, RaBitQ, kept": flavour(**PAPER, projection="signs", codes="RaBitQ", keeps=True),
    "muvera, ball carving 0.7": flavour(tau=0.7),
    "lemur": lemur,
    "lemur, 1,024 features": lambda documents: lemur(documents, features=1_024),
    "lemur, nothing learnt": lambda documents: lemur(documents, epochs=0),
    "plaid": plaid,
}
