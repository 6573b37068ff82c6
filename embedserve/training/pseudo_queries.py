"""Queries made from passages, where nobody asked any: their rarest words, or a part of them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from embedserve.training.pairs import TrainingPair

WORD = re.compile(r"[^\W\d_][\w'-]{2,}")
KEYWORDS, PART_WORDS = 4, 16


def keyword_queries(passages: Sequence[str], seed: int = 0) -> list[str]:
    """Return for each passage its `KEYWORDS` rarest words among ``passages``, in a random order; "" where it has none.

    (LexSemBridge, arXiv 2508.17858, section 4: keyword queries.)
    """
    rng = random.Random(seed)
    words = [list(dict.fromkeys(WORD.findall(text.lower()))) for text in passages]
    frequency = Counter(word for found in words for word in found)
    queries = []
    for found in words:
        rarest = sorted(found, key=lambda word: (frequency[word], word))[:KEYWORDS]
        queries.append(" ".join(rng.sample(rarest, len(rarest))))
    return queries


def part_queries(passages: Sequence[str], seed: int = 0) -> list[str]:
    """Return for each passage a run of `PART_WORDS` of its words from a random place (the same, part of passage)."""
    rng = random.Random(seed)
    queries = []
    for text in passages:
        words = text.split()
        start = rng.randrange(max(1, len(words) - PART_WORDS + 1))
        queries.append(" ".join(words[start : start + PART_WORDS]))
    return queries


KINDS: dict[str, Callable[[Sequence[str], int], list[str]]] = {"keywords": keyword_queries, "part": part_queries}


def pseudo_pairs(pairs: Sequence[TrainingPair], kinds: Sequence[str], seed: int = 0) -> list[TrainingPair]:
    """Return a pair for each different positive of ``pairs``, with its negatives, and each of ``kinds`` of `KINDS`.

    A passage of no more than `PART_WORDS` words would ask for itself: it gives none.
    """
    negatives = {pair.positive: pair.negatives for pair in pairs if len(pair.positive.split()) > PART_WORDS}
    passages = list(negatives)
    found = []
    for kind in kinds:
        queries = KINDS[kind](passages, seed)
        asked = zip(queries, passages, strict=True)
        found += [TrainingPair(query, text, negatives[text]) for query, text in asked if query]
    return found
