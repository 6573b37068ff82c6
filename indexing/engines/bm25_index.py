"""BM25 ranking of texts that are stored as postings, in one segment or several.

The score of a document is the sum over the distinct words of the query of

    idf(w) · f · (k1 + 1) / (f + k1 · (1 - b + b · |D| / avgdl)),   idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5)),

where f is the number of occurrences of w in the document, |D| the number of its words, N the number of documents and n
the number of those that contain w (Robertson and Zaragoza 2009, section 3.4). This idf is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedserve.errors import InputError
from indexing.base import Hits, clip_k, make_hits
from indexing.engines.bm25_postings import GrowingWords, Postings, words_of
from indexing.engines.exact import top_columns
from indexing.storage.row_table import as_allowed

K1, B = 1.2, 0.75


@dataclass(frozen=True, eq=False)
class PostingsSegment:
    """The rows of one segment, as `rank` reads them.

    Attributes:
        postings: Word -> live rows that contain it, ascending, and its occurrences in each.
        lengths: (n,) float64, words of each row.
        live: (m,) int64, rows that count in N, n and avgdl.
        mask: (n,) bool, rows that may be hits; None for all.
        ids: (n,) int64, ascending, the number of each row in `Hits`.
    """

    postings: Callable[[str], Postings]
    lengths: np.ndarray
    live: np.ndarray
    mask: np.ndarray | None
    ids: np.ndarray


def rank(segments: Sequence[PostingsSegment], queries: Sequence[str], k: int) -> Hits:
    """Return the best ``k`` rows of each query; equal scores by lower id. A row without a query word is not a hit.

    The statistics are those of the live rows of all segments; a mask changes which rows are hits, not their scores.
    """
    document_count = sum(len(segment.live) for segment in segments)
    total_length = sum(float(segment.lengths[segment.live].sum()) for segment in segments)
    norms = [K1 * (1 - B + B * segment.lengths * document_count / max(total_length, 1.0)) for segment in segments]
    best_ids = np.full((len(queries), k), -1, dtype=np.int64)
    best_scores = np.zeros((len(queries), k), dtype=np.float32)
    for number, query in enumerate(queries):
        sums = [np.zeros(len(segment.lengths)) for segment in segments]
        for word in dict.fromkeys(words_of(query)):
            postings = [segment.postings(word) for segment in segments]
            frequency = sum(len(rows) for rows, _ in postings)
            idf = math.log(1 + (document_count - frequency + 0.5) / (frequency + 0.5))
            for values, norm, (rows, counts) in zip(sums, norms, postings, strict=True):
                values[rows] += idf * counts * (K1 + 1) / (counts + norm[rows])
        ids, scores = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        for segment, values in zip(segments, sums, strict=True):
            rows = np.flatnonzero(values > 0 if segment.mask is None else (values > 0) & segment.mask)
            ids.append(segment.ids[rows])
            scores.append(values[rows])
        candidates, candidate_scores = np.concatenate(ids), np.concatenate(scores).astype(np.float32)
        order = np.argsort(candidates)
        best = order[top_columns(candidate_scores[order], k)]
        best_ids[number, : len(best)], best_scores[number, : len(best)] = candidates[best], candidate_scores[best]
    return make_hits(best_ids, best_scores)


class Bm25Index:
    """BM25 over texts in memory, with the words and scores of a collection's words field.

    Searches may run in many threads, also while texts are added.

    >>> index = Bm25Index()
    >>> index.add(["a red fox", "a blue whale"])
    >>> index.search(["Blue?"], k=2).of(0)[0].tolist()
    [1]
    """

    kind = "bm25"
    metric = "bm25"

    def __init__(self) -> None:
        self._words = GrowingWords()

    def __len__(self) -> int:
        return len(self._words)

    def add(self, texts: Sequence[str]) -> None:
        """Append ``texts``; their rows continue the count. Raises `InputError` if one is not a string."""
        _check_texts(texts, "texts")
        self._words.append(texts)

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best ``k`` rows of each query; see `rank`.

        Args:
            queries: Plain text; there is no query syntax.
            k: Hits of each query, clipped to the number of rows.
            allowed: (m,) int64, the only rows that may be hits; unknown ones are ignored.
        """
        _check_texts(queries, "queries")
        size = len(self)
        every = np.arange(size)
        mask = None if allowed is None else np.isin(every, as_allowed(allowed))
        lengths = self._words.lengths(size)
        segment = PostingsSegment(lambda word: self._words.postings(word, size), lengths, every, mask, every)
        return rank([segment], queries, clip_k(k, size))

    def save(self, directory: Path) -> None:
        """Write the postings to ``directory`` in the format of a collection's segments."""
        self._words.save(directory)


def _check_texts(texts: Sequence[str], field: str) -> None:
    if isinstance(texts, str):
        raise InputError(f"{field} must be a list of texts, got one string", field=field)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{field}[{index}] is of type {type(text).__name__}, not a string", field=field)
