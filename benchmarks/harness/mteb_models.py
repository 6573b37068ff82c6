"""Systems as mteb models: an encoder, or a search over an index; with the time and memory used."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from benchmarks.harness.index_search import Index, take
from benchmarks.harness.systems import System
from embedserve import Encoder
from embedserve.shared_pass import embed_together
from embedserve.types import Encoded, Task
from indexing.late_interaction.maxsim import maxsim_flat

EMPTY = "-"  # replaces a text without words, which encoders reject


@dataclass
class Usage:
    """Resources used so far.

    Attributes:
        encode_s: Seconds of encoding.
        tokens: Tokens read by the model.
        shared_by: Encoders that shared the decoder's passes.
        index_s: Seconds of building an index.
        index_bytes: Size of the saved index; 0 for exhaustive search.
        search_s: Seconds of searching, query encoding excluded.
        token_vectors: Token vectors of all documents in exhaustive search.
    """

    encode_s: float = 0.0
    tokens: int = 0
    shared_by: int = 1
    index_s: float = 0.0
    index_bytes: int = 0
    search_s: float = 0.0
    token_vectors: int = 0


Embed = Callable[[Encoder, list[str], Task], np.ndarray]


class SharedVectors:
    """Cache of the vectors of several encoders: a text is encoded for all encoders that share passes.

    Args:
        encoders: Encoders to serve; vectors are cached for the lifetime of this object.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.groups: dict[str, dict[str, Encoder]] = {}
        for encoder in encoders:
            self.groups.setdefault(encoder.passes_digest, {})[encoder.fingerprint] = encoder
        self.usage = {passes: Usage(shared_by=len(group)) for passes, group in self.groups.items()}
        self.indexes: dict[tuple[str, Task], dict[str, int]] = {}
        self.vectors: dict[tuple[str, Task], np.ndarray] = {}  # by fingerprint

    def __call__(self, encoder: Encoder, texts: list[str], task: Task) -> np.ndarray:
        """Return unit vectors (N, d) float32 of ``texts``."""
        passes = encoder.passes_digest
        group = list(self.groups[passes].values())
        index = self.indexes.setdefault((passes, task), {})
        if missing := [text for text in dict.fromkeys(texts) if text not in index]:
            start = time.perf_counter()
            encoded = embed_together(group, missing, task)
            self.usage[passes].encode_s += time.perf_counter() - start
            self.usage[passes].tokens += int(encoded[0].tokens.sum())
            for member, embeddings in zip(group, encoded, strict=True):
                key = (member.fingerprint, task)
                cached = [self.vectors[key]] if key in self.vectors else []
                self.vectors[key] = np.concatenate([*cached, embeddings.vectors])
            index |= {text: number for number, text in enumerate(missing, start=len(index))}
        rows: np.ndarray = self.vectors[encoder.fingerprint, task][[index[text] for text in texts]]
        return rows


class DenseModel(AbsEncoder):
    """mteb encoder of unit vectors; texts that mteb marks as queries get the query prompt.

    ``counts`` is the number of encoded documents and queries.
    """

    def __init__(self, encoder: Encoder, meta: ModelMeta, embed: Embed) -> None:
        self.encoder, self.embed = encoder, embed
        self.mteb_model_meta = meta
        self.counts = Counter[Task]()

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Return unit vectors (N, d) float32 of all texts of ``inputs``, in one call."""
        texts = [readable(text) for batch in inputs for text in batch["text"]]
        task: Task = "query" if prompt_type == PromptType.query else "document"
        self.counts[task] += len(texts)
        return self.embed(self.encoder, texts, task)


def readable(text: str) -> str:
    """Return ``text``, or `EMPTY` if it is blank."""
    return text if text.strip() else EMPTY


class SearchModel:
    """mteb search model: the system's engine, or exact MaxSim over all token vectors.

    ``counts`` is the number of documents and queries.
    """

    def __init__(self, system: System, meta: ModelMeta) -> None:
        self.system = system
        self.mteb_model_meta = meta
        self.usage = Usage()
        self.counts = Counter[Task]()

    def index(self, corpus: Any, **_: Any) -> None:
        """Encode the documents and build the index."""
        self.ids = list(corpus["id"])
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(self.ids)
        texts = [readable(f"{title} {text}".strip()) for title, text in zip(titles, corpus["text"], strict=True)]
        self.counts["document"] += len(texts)
        self.documents = self._encode(texts, "document")
        self.built: Index | None = None
        if self.system.engine is None and self.documents is not None and self.documents.multi is not None:
            self.usage.token_vectors += len(self.documents.multi.vectors)
        if self.system.engine is not None:
            start = time.perf_counter()
            self.built = self.system.engine.build(self.documents, texts)
            self.usage.index_s += time.perf_counter() - start
            self.usage.index_bytes += self.built.size()

    def search(
        self, queries: Any, *, top_k: int, top_ranked: dict[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return the scores of each query's best ``top_k`` documents, or of its candidates in ``top_ranked``."""
        names, texts = list(queries["id"]), list(queries["text"])
        if "instruction" in queries.column_names:  # after the query, as in mteb's encoders
            texts = [f"{text} {more or ''}".strip() for text, more in zip(texts, queries["instruction"], strict=True)]
        texts = [readable(text) for text in texts]
        encoded = self._encode(texts, "query")
        start = time.perf_counter()
        candidates = None if top_ranked is None else [top_ranked[name] for name in names]
        if self.built is None:
            results = self._maxsim(encoded, candidates, top_k)
        else:
            results = self._by_engine(self.built, encoded, texts, candidates, top_k)
        self.usage.search_s += time.perf_counter() - start
        self.counts["query"] += len(names)
        return dict(zip(names, results, strict=True))

    def _encode(self, texts: list[str], task: Task) -> Encoded | None:
        if self.system.encoder is None:
            return None
        start = time.perf_counter()
        encoded = self.system.encoder.encode(texts, task)
        self.usage.encode_s += time.perf_counter() - start
        self.usage.tokens += int(encoded.tokens.sum())
        return encoded

    def _maxsim(self, queries: Any, candidates: list[list[str]] | None, top_k: int) -> list[dict[str, float]]:
        documents: Any = self.documents
        row_of = {name: number for number, name in enumerate(self.ids)}
        results = []
        for number in range(len(queries.multi)):
            scores = maxsim_flat(queries.multi[number], documents.multi.vectors, documents.multi.offsets)
            if candidates is not None:
                best = np.array([row_of[name] for name in candidates[number]])
            else:
                count = min(top_k, len(scores))
                best = np.argpartition(-scores, count - 1)[:count]
            results.append({self.ids[row]: float(scores[row]) for row in best})
        return results

    def _by_engine(
        self, index: Index, queries: Encoded | None, texts: list[str], candidates: list[list[str]] | None, top_k: int
    ) -> list[dict[str, float]]:
        if candidates is None:
            hits = index.search(queries, texts, min(top_k, len(self.ids)), None)
            return [self._named(*hits.of(number)) for number in range(len(texts))]
        row_of = {name: number for number, name in enumerate(self.ids)}
        results = []
        for number, names in enumerate(candidates):
            rows = np.array([row_of[name] for name in names])
            hits = index.search(take(queries, number), texts[number : number + 1], len(rows), np.unique(rows))
            # Candidates without a hit score 0: they share nothing with the query.
            results.append(dict.fromkeys(names, 0.0) | self._named(*hits.of(0)))
        return results

    def _named(self, rows: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        return {self.ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}


def as_mteb_model(system: System, meta: ModelMeta, embed: Embed) -> DenseModel | SearchModel:
    """Return the system as an mteb model; ``embed`` encodes for systems with dense vectors."""
    if system.engine is None and system.encoder is not None and "dense" in system.encoder.outputs:
        return DenseModel(system.encoder, meta, embed)
    return SearchModel(system, meta)
