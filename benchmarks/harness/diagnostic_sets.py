"""Sets that show one trait of an encoder each, made from a retrieval set: the same set and seed give the same texts.

Where documents are padded, it is with words of documents that are not searched themselves, so that what is added
answers nothing and stands nowhere else.
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
SHORT = 100  # words of a passage that is padded, at most
PADDED, ASKED = 300, 200  # passages of the sets about length and position, and how many of them have a query
RUNS, RUN_WORDS = 4, 30  # of padding for a passage
PAIRS, FIRST_WORDS, LENGTHS = 600, 16, (8, 256)  # of the comparison of length and similarity
T = TypeVar("T")


def pseudo_query_set(data: RetrievalSet, kind: str, seed: int = 0) -> RetrievalSet:
    """Return passages of ``data`` as they are, and queries that are made of some of them.

    Args:
        data: Whose passages; its queries do not count.
        kind: ``keywords``: the four words of a passage that stand in the fewest others; ``part``: 16 of its words in a
            row (LexSemBridge, arXiv 2508.17858, section 4). The answer is the passage that they were taken from.
        seed: Of what is drawn.

    Raises:
        InputError: No passage is longer than such a query.
    """
    texts = spread([text for text in dict.fromkeys(data.documents) if len(text.split()) > PART_WORDS], PASSAGES)
    if not texts:
        raise InputError(f"no document has more than {PART_WORDS} words; give a set of longer ones", field="data")
    made = enumerate(KINDS[kind](texts, seed))
    asked = spread([(place, query) for place, query in made if query], PSEUDO_QUERIES)
    return _set(texts, dict(asked))


def padded_sets(data: RetrievalSet, seed: int = 0) -> dict[str, RetrievalSet]:
    """Return one set of short passages and their queries in several versions, by name.

    ``short`` has the passages alone. ``long`` has those that answer a query in the middle of padding, and the others
    alone. ``start``, ``middle`` and ``end`` have all of them there, in the same padding of `RUNS` · `RUN_WORDS` words.

    Raises:
        InputError: No short passage answers a query by itself.
    """
    rng = random.Random(seed)
    queries = _queries_of(data)
    texts = {text: name for name, text in zip(data.document_ids, data.documents, strict=True)}
    short = [text for text in texts if len(text.split()) <= SHORT]
    answers = spread([text for text in short if texts[text] in queries], min(ASKED, len(texts) // 4))
    if not answers:
        message = f"no document of at most {SHORT} words is the only answer to a query; give a set that has some"
        raise InputError(message, field="data")
    others = [text for text in short if text not in set(answers)]
    passages = [*answers, *spread(others, min(PADDED - len(answers), len(texts) // 4))]
    rest = [text for text in texts if text not in set(passages)]
    padding = [[run_of_words(rest, RUN_WORDS, rng) for _ in range(RUNS)] for _ in passages]
    asked = {place: queries[texts[text]] for place, text in enumerate(answers)}

    def version(before: int, count: int) -> RetrievalSet:
        long = [
            " ".join([*runs[:before], text, *runs[before:]])
            for text, runs in zip(passages[:count], padding, strict=False)
        ]
        return _set([*long, *passages[count:]], asked)

    return {
        "short": version(0, 0),
        "long": version(RUNS // 2, len(answers)),
        "start": version(0, len(passages)),
        "middle": version(RUNS // 2, len(passages)),
        "end": version(RUNS, len(passages)),
    }


def length_pairs(data: RetrievalSet, seed: int = 0) -> tuple[list[int], list[str], list[str]]:
    """Return lengths in words, short texts of `FIRST_WORDS` words, and unrelated texts of those lengths.

    The first texts come from the first half of the documents and the second ones from the other, so that none share a
    document. Lengths are even in their logarithm.
    """
    rng = random.Random(seed)
    half = len(data.documents) // 2
    lengths = [round(math.exp(rng.uniform(*map(math.log, LENGTHS)))) for _ in range(PAIRS)]
    first = [run_of_words(data.documents[:half], FIRST_WORDS, rng) for _ in lengths]
    return lengths, first, [run_of_words(data.documents[half:], length, rng) for length in lengths]


def run_of_words(texts: Sequence[str], count: int, rng: random.Random) -> str:
    """Return ``count`` words from the beginning of a random text on, and of those behind it."""
    place, words = rng.randrange(len(texts)), list[str]()
    while len(words) < count:
        words += texts[place % len(texts)].split()
        place += 1
    return " ".join(words[:count])


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return ``count`` of ``items``, evenly spread, or all that there are."""
    chosen = min(count, len(items))
    return [items[place * len(items) // chosen] for place in range(chosen)]


def _queries_of(data: RetrievalSet) -> dict[str, str]:
    """Return the first query of each document that is a query's only answer."""
    found: dict[str, str] = {}
    for name, query in zip(data.query_ids, data.queries, strict=True):
        answers = [document for document, gain in data.qrels[name].items() if gain > 0]
        if len(answers) == 1:
            found.setdefault(answers[0], query)
    return found


def _set(texts: list[str], asked: dict[int, str]) -> RetrievalSet:
    """Return a set of ``texts``, with queries by the place of their one answer."""
    queries = {f"q{place}": query for place, query in asked.items()}
    return RetrievalSet(
        document_ids=[f"d{place}" for place in range(len(texts))],
        documents=texts,
        query_ids=list(queries),
        queries=list(queries.values()),
        qrels={f"q{place}": {f"d{place}": 1} for place in asked},
    )
