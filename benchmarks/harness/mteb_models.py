"""A system as mteb wants it: an encoder of texts, or an index to search; and what encoding took."""

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

EMPTY = "-"  # stands for a text without words, which no encoder reads


@dataclass
class Spent:
    """What was spent so far.

    Attributes:
        encode_s: Seconds of encoding.
        tokens: That the model read.
        shared_by: Encoders that the same passes of the decoder served.
        index_s: Seconds of building an index.
        index_bytes: Of the index as saved; 0 where all vectors are compared.
        search_s: Seconds of searching with the queries encoded.
        token_vectors: Of all documents, where they are compared exactly.
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
    """Vectors of several encoders: a text that one asks for is encoded for all that share passes.

    Args:
        encoders: Those that will ask; the vectors are kept as long as this lives.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.groups: dict[str, dict[str, Encoder]] = {}
        for encoder in encoders:
            self.groups.setdefault(encoder.passes_digest, {})[encoder.fingerprint] = encoder
        self.spent = {passes: Spent(shared_by=len(group)) for passes, group in self.groups.items()}
        self.places: dict[tuple[str, Task], dict[str, int]] = {}
        self.vectors: dict[tuple[str, Task], np.ndarray] = {}  # by fingerprint

    def __call__(self, encoder: Encoder, texts: list[str], task: Task) -> np.ndarray:
        """Return unit vectors (N, d) float32 of ``texts``."""
        passes = encoder.passes_digest
        group = list(self.groups[passes].values())
        place = self.places.setdefault((passes, task), {})
        if missing := [text for text in dict.fromkeys(texts) if text not in place]:
            began = time.perf_counter()
            made = embed_together(group, missing, task)
            self.spent[passes].encode_s += time.perf_counter() - began
            self.spent[passes].tokens += int(made[0].tokens.sum())
            for member, found in zip(group, made, strict=True):
                key = (member.fingerprint, task)
                kept = [self.vectors[key]] if key in self.vectors else []
                self.vectors[key] = np.concatenate([*kept, found.vectors])
            place |= {text: number for number, text in enumerate(missing, start=len(place))}
        chosen: np.ndarray = self.vectors[encoder.fingerprint, task][[place[text] for text in texts]]
        return chosen


class DenseModel(AbsEncoder):
    """mteb's encoder: unit vectors, with a query's prompt where mteb says that texts are queries.

    ``counts`` says how many documents and queries were asked for.
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
    """Return ``text``, or `EMPTY` where it holds no words."""
    return text if text.strip() else EMPTY


class SearchModel:
    """mteb's search over a system's own: its engine, or exact MaxSim of all token vectors.

    ``counts`` says how many documents and queries it was given.
    """

    def __init__(self, system: System, meta: ModelMeta) -> None:
        self.system = system
        self.mteb_model_meta = meta
        self.spent = Spent()
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
            self.spent.token_vectors += len(self.documents.multi.vectors)
        if self.system.engine is not None:
            began = time.perf_counter()
            self.built = self.system.engine.build(self.documents, texts)
            self.spent.index_s += time.perf_counter() - began
            self.spent.index_bytes += self.built.size()

    def search(
        self, queries: Any, *, top_k: int, top_ranked: dict[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return the scores of each query's best ``top_k`` documents, or of its candidates in ``top_ranked``."""
        names, texts = list(queries["id"]), list(queries["text"])
        if "instruction" in queries.column_names:  # behind the query, as mteb gives both to its encoders
            texts = [f"{text} {more or ''}".strip() for text, more in zip(texts, queries["instruction"], strict=True)]
        texts = [readable(text) for text in texts]
        asked = self._encode(texts, "query")
        began = time.perf_counter()
        candidates = None if top_ranked is None else [top_ranked[name] for name in names]
        if self.built is None:
            found = self._maxsim(asked, candidates, top_k)
        else:
            found = self._by_engine(self.built, asked, texts, candidates, top_k)
        self.spent.search_s += time.perf_counter() - began
        self.counts["query"] += len(names)
        return dict(zip(names, found, strict=True))

    def _encode(self, texts: list[str], task: Task) -> Encoded | None:
        if self.system.encoder is None:
            return None
        began = time.perf_counter()
        made = self.system.encoder.encode(texts, task)
        self.spent.encode_s += time.perf_counter() - began
        self.spent.tokens += int(made.tokens.sum())
        return made

    def _maxsim(self, asked: Any, candidates: list[list[str]] | None, top_k: int) -> list[dict[str, float]]:
        documents: Any = self.documents
        place = {name: number for number, name in enumerate(self.ids)}
        found = []
        for number in range(len(asked.multi)):
            scores = maxsim_flat(asked.multi[number], documents.multi.vectors, documents.multi.offsets)
            if candidates is not None:
                best = np.array([place[name] for name in candidates[number]])
            else:
                count = min(top_k, len(scores))
                best = np.argpartition(-scores, count - 1)[:count]
            found.append({self.ids[row]: float(scores[row]) for row in best})
        return found

    def _by_engine(
        self, index: Index, asked: Encoded | None, texts: list[str], candidates: list[list[str]] | None, top_k: int
    ) -> list[dict[str, float]]:
        if candidates is None:
            hits = index.search(asked, texts, min(top_k, len(self.ids)), None)
            return [self._named(*hits.of(number)) for number in range(len(texts))]
        place = {name: number for number, name in enumerate(self.ids)}
        found = []
        for number, names in enumerate(candidates):
            rows = np.array([place[name] for name in names])
            hits = index.search(take(asked, number), texts[number : number + 1], len(rows), np.unique(rows))
            # A candidate that the engine does not find shares nothing with the query.
            found.append(dict.fromkeys(names, 0.0) | self._named(*hits.of(0)))
        return found

    def _named(self, rows: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        return {self.ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}


def as_mteb_model(system: System, meta: ModelMeta, embed: Embed) -> DenseModel | SearchModel:
    """Return the system as mteb wants it; ``embed`` encodes for those that make one vector a text."""
    if system.engine is None and system.encoder is not None and "dense" in system.encoder.outputs:
        return DenseModel(system.encoder, meta, embed)
    return SearchModel(system, meta)
