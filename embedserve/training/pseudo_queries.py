"""Synthetic queries from passages: their rarest words, or a span of words."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from embedserve.training.pairs import TrainingPair

WORD = re.compile(r"[^\W\d_][\w'-]{2,}")
KEYWORDS, PART_WORDS = 4, 16


def keyword_queries(passages: Sequence[str], seed: int = 0) -> list[str]:
    """Return the `KEYWORDS` rarest words of each passage in random order; "" if it has no words.

    Keyword queries of LexSemBridge (arXiv 2508.17858, section 4).
    """
    rng = random.Random(seed)
    words = [list(dict.fromkeys(WORD.findall(text.lower()))) for text in passages]
    frequency = Counter(word for distinct in words for word in distinct)
    queries = []
    for distinct in words:
        rarest = sorted(distinct, key=lambda word: (frequency[word], word))[:KEYWORDS]
        queries.append(" ".join(rng.sample(rarest, len(rarest))))
    return queries


def part_queries(passages: Sequence[str], seed: int = 0) -> list[str]:
    """Return `PART_WORDS` consecutive words of each passage from a random position (part of passage, as above)."""
    rng = random.Random(seed)
    queries = []
    for text in passages:
        words = text.split()
        start = rng.randrange(max(1, len(words) - PART_WORDS + 1))
        queries.append(" ".join(words[start : start + PART_WORDS]))
    return queries


KINDS: dict[str, Callable[[Sequence[str], int], list[str]]] = {"keywords": keyword_queries, "part": part_queries}


def pseudo_pairs(pairs: Sequence[TrainingPair], kinds: Sequence[str], seed: int = 0) -> list[TrainingPair]:
    """Return a pair for each distinct positive of ``pairs``, with its negatives, and each of ``kinds`` of `KINDS`.

    Passages of at most `PART_WORDS` words are skipped: the query would equal the passage.
    """
    negatives = {pair.positive: pair.negatives for pair in pairs if len(pair.positive.split()) > PART_WORDS}
    passages = list(negatives)
    generated = []
    for kind in kinds:
        queries = KINDS[kind](passages, seed)
        matched = zip(queries, passages, strict=True)
        generated += [TrainingPair(query, text, negatives[text]) for query, text in matched if query]
    return generated
