"""Texts as token vectors, for the tests of engines that keep several vectors for a text."""

import numpy as np

from embedserve.types import TokenEmbeddings


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def tokens_of(texts, ids=None):
    """Texts, each an array (t, d), as TokenEmbeddings; default token ids: 0, 1, 2, …"""
    counts = np.array([len(rows) for rows in texts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    joined = np.arange(offsets[-1]) if ids is None else np.concatenate(ids)
    vectors = np.concatenate(list(texts)).astype(np.float32)
    return TokenEmbeddings(vectors, offsets, joined.astype(np.int64), counts, np.zeros(len(counts), dtype=bool))


def take(tokens, places):
    """The texts at ``places``, in that order."""
    if len(places) == 0:
        nothing = np.empty(0, dtype=np.int64)
        return TokenEmbeddings(tokens.vectors[:0], np.zeros(1, dtype=np.int64), nothing, nothing, nothing == 1)
    ids = [tokens.token_ids[tokens.offsets[place] : tokens.offsets[place + 1]] for place in places]
    return tokens_of([tokens[place] for place in places], ids)


def random_texts(count, dim=16, longest=9, seed=0):
    rng = np.random.default_rng(seed)
    return [unit(rng.standard_normal((rng.integers(1, longest + 1), dim))) for _ in range(count)]


def stories(count=600, queries=24, dim=32, seed=0):
    """Documents (24 to 56 tokens) and queries (16) where about 25 documents share a story of 20 tokens.

    A document holds 6 to 12 tokens of its story, noisy, among those of a shared vocabulary; all tokens share a
    direction, as those of models do. A query is 8 tokens of a story and 8 of the vocabulary. Returns documents, queries
    and the exact MaxSim scores (queries, count).
    """
    rng = np.random.default_rng(seed)
    common = 0.6 * unit(rng.standard_normal(dim))
    words = unit(common + 0.8 * unit(rng.standard_normal((2_000, dim))))
    of_story = rng.integers(0, max(1, count // 25), count)
    tales = unit(common + 0.8 * unit(rng.standard_normal((max(1, count // 25), 20, dim))))

    def noisy(rows, size):
        return unit(rows + size * unit(rng.standard_normal(rows.shape)))

    documents = []
    for story in of_story:
        told = noisy(tales[story][rng.permutation(20)[: rng.integers(6, 13)]], 0.35)
        documents.append(np.concatenate([told, words[rng.integers(0, len(words), rng.integers(18, 45))]]))
    asked = [
        np.concatenate([noisy(tales[of_story[place]][rng.permutation(20)[:8]], 0.4), words[rng.integers(0, 2_000, 8)]])
        for place in rng.integers(0, count, queries)
    ]
    scores = np.array([[(query @ rows.T).max(axis=1).sum() for rows in documents] for query in asked])
    return tokens_of(documents), tokens_of(asked), scores


def recall(hits, scores, k):
    """Mean share of the best ``k`` columns of ``scores`` among the hits; row i is column i."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.mean([len(set(hits.of(place)[0].tolist()) & set(line)) / k for place, line in enumerate(best)]))
