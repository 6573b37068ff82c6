"""BM25 against its formula, for texts that are typed by people, in memory and in a collection."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import InputError
from indexing import Collection, Document, build_collection
from indexing.engines.bm25_index import K1, B, Bm25Index, PostingsSegment, rank
from indexing.engines.bm25_postings import GrowingWords, SavedWords, words_of
from indexing.segments.fields import BM25, WORDS
from tests.indexing.bag import BagEncoder

TREES = ["ash", "birch", "cedar", "elm", "fir", "oak"]
TEXTS = st.lists(st.sampled_from(TREES), min_size=1, max_size=8).map(" ".join)


def index_of(texts):
    index = Bm25Index()
    index.add(texts)
    return index


def scores_by_definition(query, documents, allowed=None):
    """Scores by row, by the formula at the head of `indexing.engines.bm25_index`."""
    words_by_row = {row: Counter(text.split()) for row, text in documents.items()}
    average = sum(words.total() for words in words_by_row.values()) / max(len(words_by_row), 1)
    scores = Counter()
    for word in dict.fromkeys(query.split()):
        frequency = sum(word in words for words in words_by_row.values())
        idf = math.log(1 + (len(words_by_row) - frequency + 0.5) / (frequency + 0.5))
        for row, words in words_by_row.items():
            if count := words[word]:
                scores[row] += idf * count * (K1 + 1) / (count + K1 * (1 - B + B * words.total() / average))
    return {row: score for row, score in scores.items() if allowed is None or row in allowed}


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=25), TEXTS, st.integers(1, 30), st.none() | st.lists(st.integers(0, 40)))
def test_scores_equal_the_formula(texts, query, k, allowed):
    index = index_of(texts)
    assert len(index) == len(texts)
    expected = scores_by_definition(query, dict(enumerate(texts)), allowed)
    rows, scores = index.search([query], k, allowed).of(0)
    assert len(rows) == min(k, len(expected))
    np.testing.assert_allclose(scores, [expected[row] for row in rows.tolist()], rtol=1e-5)
    np.testing.assert_allclose(scores, sorted(expected.values(), reverse=True)[:k], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=25), TEXTS, st.integers(1, 30), st.data())
def test_segments_and_deleted_rows_do_not_change_the_formula(texts, query, k, data):
    deleted = data.draw(st.sets(st.integers(0, len(texts) - 1)))
    cut = data.draw(st.integers(0, len(texts)))
    segments = []
    for start, part in ((0, texts[:cut]), (cut, texts[cut:])):
        words = GrowingWords()
        words.append(part)
        alive = np.array([start + row not in deleted for row in range(len(part))], dtype=bool)

        def postings(word, words=words, alive=alive):
            rows, counts = words.postings(word, len(words))
            return rows[alive[rows]], counts[alive[rows]]

        lengths, ids = words.lengths(len(part)), start + np.arange(len(part))
        segments.append(PostingsSegment(postings, lengths, np.flatnonzero(alive), alive, ids))
    live = {row: text for row, text in enumerate(texts) if row not in deleted}
    expected = scores_by_definition(query, live)
    rows, scores = rank(segments, [query], k).of(0)
    assert len(rows) == min(k, len(expected))
    np.testing.assert_allclose(scores, [expected[row] for row in rows.tolist()], rtol=1e-5)
    np.testing.assert_allclose(scores, sorted(expected.values(), reverse=True)[:k], rtol=1e-5)


def test_the_index_ranks_as_a_collection_does(tmp_path):
    texts = ["the oak by the river", "an elm", "oak, oak, oak", "river of the north", "OAKS", "…"]
    documents = [Document(str(row), text) for row, text in enumerate(texts)]
    build_collection(documents, BagEncoder(), tmp_path / "c", fields={BM25: WORDS})
    index = index_of(texts)
    with Collection.open(tmp_path / "c") as collection:
        for query in ("oak river", "the", "Elm!", "none"):
            (hits,) = collection.search([query], k=6, mode=BM25)
            rows, scores = index.search([query], 6).of(0)
            assert [(int(hit.id), hit.score) for hit in hits] == list(zip(rows.tolist(), scores.tolist(), strict=True))


def test_equal_scores_are_ordered_by_row():
    rows, scores = index_of(["elm tree", "oak tree", "oak tree", "oak tree"]).search(["oak"], 2).of(0)
    assert rows.tolist() == [1, 2]
    assert scores[0] == scores[1] > 0


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text(st.sampled_from("\"'()*:^-+{}., \0\nANDORTx"), max_size=30))
def test_a_query_has_no_syntax(text):
    texts = ["AND OR NOT NEAR x", "title text T", "something else"]
    hits = index_of(texts).search([text], 3)
    expected = {row for row, document in enumerate(texts) if set(words_of(document)) & set(words_of(text))}
    assert set(hits.of(0)[0].tolist()) == expected


@pytest.mark.parametrize("query", ["", "???", '"', "-", "   ", "* ^ ()"])
def test_a_query_without_words_has_no_hits(query):
    assert index_of(["one", "two"]).search([query, "two"], 5).counts.tolist() == [0, 1]


def test_an_empty_index_has_no_hits():
    assert Bm25Index().search(["one", "two"], 5).counts.tolist() == [0, 0]


def test_a_query_of_thousands_of_words():
    index = index_of(["w7 w8", "w4999", "none"])
    assert sorted(index.search([" ".join(f"w{n}" for n in range(5000))], 3).of(0)[0].tolist()) == [0, 1]


def test_words_are_folded_but_not_stemmed():
    index = index_of(["The cafés were running", "数据库的索引", "caf"])
    assert index.search(["CAFES"], 3).of(0)[0].tolist() == [0]
    assert index.search(["run"], 3).counts.tolist() == [0]


def test_half_a_surrogate_pair_is_an_ordinary_character():
    assert index_of(["a\ud800 b"]).search(["b"], 1).of(0)[0].tolist() == [0]


def test_a_saved_index_has_the_postings_of_a_segment(tmp_path):
    texts = [f"{tree} tree number {n}" for n, tree in enumerate(TREES)]
    index_of(texts).save(tmp_path / "words")
    saved = SavedWords(tmp_path / "words")
    assert len(saved) == len(texts)
    assert [values.tolist() for values in saved.postings("tree", len(texts))] == [list(range(6)), [1.0] * 6]


def test_invalid_arguments_name_the_field_and_change_nothing():
    index = index_of(TREES)
    with pytest.raises(InputError, match=r"texts\[1\] is of type int, not a string") as raised:
        index.add(["a", 5])
    assert raised.value.field == "texts"
    with pytest.raises(InputError, match="texts must be a list of texts, got one string"):
        index.add("oak")
    with pytest.raises(InputError, match="queries must be a list of texts, got one string"):
        index.search("oak", 1)
    with pytest.raises(InputError, match="top_k"):
        index.search(["oak"], 0)
    with pytest.raises(InputError, match="allowed"):
        index.search(["oak"], 1, np.array([0.5]))
    assert len(index) == 6
    assert index.search(["oak"], 5).of(0)[0].tolist() == [5]


def test_searches_in_many_threads_agree():
    index = index_of(TREES)
    expected = index.search(["oak tree"], 5).rows.tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(
            rows == expected for rows in pool.map(lambda _: index.search(["oak tree"], 5).rows.tolist(), range(60))
        )
