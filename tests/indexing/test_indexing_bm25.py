"""BM25 in SQLite against its formula, and queries that try to be syntax."""

import math
import re
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, NotFoundError
from indexing.engines.bm25_fts5 import K1, B, Bm25Index, compile_query

WORDS = ["ash", "birch", "cedar", "elm", "fir", "oak"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


def by_definition(query, documents, k, allowed=None):
    """Rows and scores of the formula at the head of `indexing.engines.bm25_fts5`."""
    split = {row: Counter(text.split()) for row, text in documents.items()}
    average = sum(sum(words.values()) for words in split.values()) / max(len(split), 1)
    scores = {}
    for word in dict.fromkeys(query.split()):
        having = sum(word in words for words in split.values())
        idf = math.log((len(split) - having + 0.5) / (having + 0.5))
        idf = idf if idf > 0 else 1e-6
        for row, words in split.items():
            if count := words[word]:
                length = 1 - B + B * sum(words.values()) / average
                scores[row] = scores.get(row, 0) + idf * count * (K1 + 1) / (count + K1 * length)
    kept = [(row, score) for row, score in scores.items() if allowed is None or row in allowed]
    return sorted(kept, key=lambda hit: (-hit[1], hit[0]))[:k]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 60), TEXTS, min_size=1, max_size=25), TEXTS, st.integers(1, 30), st.data())
def test_scores_are_the_formula_after_any_history(documents, query, k, data):
    gone = data.draw(st.lists(st.sampled_from(list(documents)), unique=True))
    allowed = data.draw(st.none() | st.lists(st.integers(0, 70)))
    index = Bm25Index()
    index.add(np.array(list(documents)), list(documents.values()))
    index.remove(np.array(gone, dtype=np.int64))
    left = {row: text for row, text in documents.items() if row not in gone}
    assert len(index) == len(left)
    hits = index.search([query], k, allowed)
    every = dict(by_definition(query, left, 99, allowed))
    rows, scores = hits.of(0)
    assert len(rows) == min(k, len(every))
    assert set(rows.tolist()) <= set(every)
    np.testing.assert_allclose(scores, [every[row] for row in rows.tolist()], rtol=1e-5)
    np.testing.assert_allclose(scores, sorted(every.values(), reverse=True)[:k], rtol=1e-5)
    index.close()


def test_equal_scores_are_ordered_by_row():
    index = Bm25Index()
    index.add(np.array([7, 3, 5, 1]), ["oak tree", "oak tree", "elm tree", "oak tree"])
    rows, scores = index.search(["oak"], 2).of(0)
    assert rows.tolist() == [1, 3]
    assert scores[0] == scores[1] > 0


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text(st.sampled_from("\"'()*:^-+{}., \0\nANDORTx"), max_size=30))
def test_no_text_is_syntax(text):
    index = Bm25Index()
    index.add(np.arange(3), ["AND OR NOT NEAR x", "title text T", "something else"])
    expression = compile_query(text)
    assert re.fullmatch(r'("[^\W_]+"( OR "[^\W_]+")*)?', expression)
    try:
        hits = index.search([text], 3)
    except InputError as error:
        assert "surrogate" in error.message  # half of a pair is no Unicode
    else:
        assert hits.counts[0] <= 3
    index.close()


@pytest.mark.parametrize("query", ["", "???", '"', "-", "   ", "* ^ ()"])
def test_a_query_without_words_finds_nothing(query):
    index = Bm25Index()
    index.add(np.arange(2), ["one", "two"])
    assert index.search([query, "two"], 5).counts.tolist() == [0, 1]


def test_a_query_of_thousands_of_words_is_answered():
    index = Bm25Index()
    index.add(np.arange(3), ["w7 w8", "w4999", "none"])
    assert sorted(index.search([" ".join(f"w{n}" for n in range(5000))], 3).of(0)[0].tolist()) == [0, 1]


def test_tokenizers():
    texts = ["The cafés were running", "数据库的索引", "caf"]
    plain, porter, trigram = (Bm25Index(name) for name in ("unicode61", "porter", "trigram"))
    for index in (plain, porter, trigram):
        index.add(np.arange(3), texts)
    assert plain.search(["CAFES"], 3).of(0)[0].tolist() == [0]
    assert plain.search(["run"], 3).counts.tolist() == [0]
    assert porter.search(["runs"], 3).of(0)[0].tolist() == [0]
    assert trigram.search(["数据库"], 3).of(0)[0].tolist() == [1]
    with pytest.raises(InputError, match="tokenizer must be one of unicode61, porter, trigram, got 'x'"):
        Bm25Index("x")


@pytest.fixture
def index():
    found = Bm25Index()
    found.add(np.arange(10, 16), [f"{word} tree number {n}" for n, word in enumerate(WORDS)])
    return found


def test_a_restart_changes_no_answer(index, tmp_path):
    index.save(tmp_path, "one")
    again = Bm25Index.load(tmp_path, "one")
    for allowed in (None, [11, 12, 14]):
        one, other = (part.search(["elm tree", "fir"], 4, allowed) for part in (index, again))
        assert one.rows.tolist() == other.rows.tolist()
        assert one.scores.tolist() == other.scores.tolist()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again.remove(np.array([13]))
    again.add(np.array([2]), ["elm elm"])
    assert again.search(["elm"], 4).of(0)[0].tolist() == [2]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    again.save(tmp_path, "one")
    third = Bm25Index.load(tmp_path)
    assert (len(third), third.search(["elm"], 4).of(0)[0].tolist()) == (6, [2])
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_and_strangers_are_refused(index, tmp_path, monkeypatch):
    index.save(tmp_path, "one")
    with pytest.raises(IndexMismatchError):
        Bm25Index.load(tmp_path, "two")
    path = next(tmp_path.glob("*.sqlite"))
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]):
        path.write_bytes(broken)
        with pytest.raises(CorruptFileError, match=r"words\.sqlite"):
            Bm25Index.load(tmp_path)


def test_unusable_calls_are_named_and_change_nothing(index):
    with pytest.raises(InputError, match="row 12 is in the index already"):
        index.add(np.array([1, 12]), ["a", "b"])
    with pytest.raises(InputError, match="1 row numbers for 2"):
        index.add(np.array([1]), ["a", "b"])
    with pytest.raises(InputError, match=r"texts\[1\] is of type int, not a string") as raised:
        index.add(np.array([1, 2]), ["a", 5])
    assert raised.value.field == "texts"
    with pytest.raises(InputError, match=r"texts\[0\] is not Unicode"):
        index.add(np.array([1]), ["a\ud800"])
    with pytest.raises(InputError, match="queries must be a list of texts, got one string"):
        index.search("oak", 1)
    with pytest.raises(InputError, match="top_k"):
        index.search(["oak"], 0)
    with pytest.raises(NotFoundError, match="row 99 is not in the index"):
        index.remove(np.array([10, 99]))
    assert len(index) == 6
    assert index.search(["oak"], 5).of(0)[0].tolist() == [15]


def test_a_failing_write_adds_nothing(index, monkeypatch):
    class Failing:
        def __init__(self, connection):
            self.connection = connection

        def __enter__(self):
            return self.connection.__enter__()

        def __exit__(self, *error):
            return self.connection.__exit__(*error)

        def executemany(self, sql, values):
            self.connection.execute(sql, values[0])
            raise sqlite3.OperationalError("disk I/O error")

    whole = index._connection
    index._connection = Failing(whole)
    with pytest.raises(sqlite3.OperationalError):
        index.add(np.array([1, 2]), ["elm", "elm"])
    index._connection = whole
    assert len(index) == 6
    assert index.search(["elm"], 5).of(0)[0].tolist() == [13]


def test_searching_from_many_threads_gives_the_same(index):
    expected = index.search(["oak tree"], 5).rows.tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(
            rows == expected for rows in pool.map(lambda _: index.search(["oak tree"], 5).rows.tolist(), range(60))
        )
