"""Sets that isolate one trait of an encoder each, derived from a retrieval set; deterministic for a set and seed.

Padding comes from documents that are not in the derived set, so that it is irrelevant to every query and occurs in no
other document.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from benchmarks.common.eval_sets import RetrievalSet
from embedserve import InputError
from embedserve.training.pseudo_queries import KINDS, PART_WORDS

PASSAGES, PSEUDO_QUERIES = 500, 300  # of the retrieval by keywords and by parts
SHORT = 100  # maximum words of a padded passage
PADDED, QUERIES = 300, 200  # passages and queries of the sets for length and position
RUNS, RUN_WORDS = 4, 30  # runs of padding per passage, words per run
PAIRS, FIRST_WORDS, LENGTHS = 600, 16, (8, 256)  # of the comparison of length and similarity
T = TypeVar("T")


def pseudo_query_set(data: RetrievalSet, kind: str, seed: int = 0) -> RetrievalSet:
    """Return unchanged passages of ``data`` with queries derived from some of them.

    Args:
        data: Source of the passages; its queries are ignored.
        kind: ``keywords``: the four words of a passage that occur in the fewest others; ``part``: 16 consecutive words
            of it (LexSemBridge, arXiv 2508.17858, section 4). The relevant passage is the source of the words.
        seed: Seed of the random choices.

    Raises:
        InputError: No passage is longer than a query.
    """
    texts = spread([text for text in dict.fromkeys(data.documents) if len(text.split()) > PART_WORDS], PASSAGES)
    if not texts:
        raise InputError(f"no document has more than {PART_WORDS} words; give a set of longer ones", field="data")
    queries = [(index, query) for index, query in enumerate(KINDS[kind](texts, seed)) if query]
    return _set(texts, dict(spread(queries, PSEUDO_QUERIES)))


def padded_sets(data: RetrievalSet, seed: int = 0) -> dict[str, RetrievalSet]:
    """Return versions of a set of short passages and their queries, by name.

    ``short`` has the passages without padding. ``long`` has the relevant passages in the middle of padding, the others
    without. ``start``, ``middle`` and ``end`` have every passage at that position in padding of
    `RUNS` · `RUN_WORDS` words.

    Raises:
        InputError: No short passage is the only relevant one of a query.
    """
    rng = random.Random(seed)
    queries = _queries_of(data)
    texts = {text: name for name, text in zip(data.document_ids, data.documents, strict=True)}
    short = [text for text in texts if len(text.split()) <= SHORT]
    answers = spread([text for text in short if texts[text] in queries], min(QUERIES, len(texts) // 4))
    if not answers:
        message = f"no document of at most {SHORT} words is the only relevant one of a query; give another set"
        raise InputError(message, field="data")
    others = [text for text in short if text not in set(answers)]
    passages = [*answers, *spread(others, min(PADDED - len(answers), len(texts) // 4))]
    rest = [text for text in texts if text not in set(passages)]
    padding = [[run_of_words(rest, RUN_WORDS, rng) for _ in range(RUNS)] for _ in passages]
    by_index = {index: queries[texts[text]] for index, text in enumerate(answers)}

    def version(before: int, count: int) -> RetrievalSet:
        long = [
            " ".join([*runs[:before], text, *runs[before:]])
            for text, runs in zip(passages[:count], padding, strict=False)
        ]
        return _set([*long, *passages[count:]], by_index)

    return {
        "short": version(0, 0),
        "long": version(RUNS // 2, len(answers)),
        "start": version(0, len(passages)),
        "middle": version(RUNS // 2, len(passages)),
        "end": version(RUNS, len(passages)),
    }


def length_pairs(data: RetrievalSet, seed: int = 0) -> tuple[list[int], list[str], list[str]]:
    """Return lengths in words, short texts of `FIRST_WORDS` words, and unrelated texts of those lengths.

    The two sides come from different halves of the documents, so that no pair shares a document. Lengths are
    log-uniform.
    """
    rng = random.Random(seed)
    half = len(data.documents) // 2
    lengths = [round(math.exp(rng.uniform(*map(math.log, LENGTHS)))) for _ in range(PAIRS)]
    first = [run_of_words(data.documents[:half], FIRST_WORDS, rng) for _ in lengths]
    return lengths, first, [run_of_words(data.documents[half:], length, rng) for length in lengths]


def run_of_words(texts: Sequence[str], count: int, rng: random.Random) -> str:
    """Return ``count`` words from the start of a random text, continued in the texts after it."""
    index, words = rng.randrange(len(texts)), list[str]()
    while len(words) < count:
        words += texts[index % len(texts)].split()
        index += 1
    return " ".join(words[:count])


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return ``count`` evenly spaced ``items``, or all if there are fewer."""
    chosen = min(count, len(items))
    return [items[number * len(items) // chosen] for number in range(chosen)]


def _queries_of(data: RetrievalSet) -> dict[str, str]:
    """Return the first query of each document that is its only relevant one."""
    first_queries: dict[str, str] = {}
    for name, query in zip(data.query_ids, data.queries, strict=True):
        answers = [document for document, gain in data.qrels[name].items() if gain > 0]
        if len(answers) == 1:
            first_queries.setdefault(answers[0], query)
    return first_queries


def _set(texts: list[str], queries_by_index: dict[int, str]) -> RetrievalSet:
    """Return a set of ``texts``, with queries by the index of their relevant text."""
    queries = {f"q{index}": query for index, query in queries_by_index.items()}
    return RetrievalSet(
        document_ids=[f"d{index}" for index in range(len(texts))],
        documents=texts,
        query_ids=list(queries),
        queries=list(queries.values()),
        qrels={f"q{index}": {f"d{index}": 1} for index in queries_by_index},
    )
