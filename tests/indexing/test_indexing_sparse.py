"""The inverted index against dot products of dense vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, NotFoundError
from embedserve.types import SparseEmbeddings
from indexing import SparseIndex
from indexing.query.fusion import sparse_scores

WIDTH = 12


def sparse(vectors):
    """Sparse vectors of dictionaries from entry to weight."""
    lengths = np.array([len(vector) for vector in vectors], dtype=np.int64)
    pairs = [pair for vector in vectors for pair in sorted(vector.items())]
    indices = np.array([entry for entry, _ in pairs], dtype=np.int64)
    values = np.array([weight for _, weight in pairs], dtype=np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SparseEmbeddings(indices, values, offsets, lengths, lengths < 0)


# Weights in quarters: every sum is exact, whatever its order.
WEIGHTS = st.integers(0, 40).map(lambda n: n / 4)
VECTORS = st.dictionaries(st.integers(0, WIDTH - 1), WEIGHTS, max_size=6)


def by_definition(queries, documents, rows, k):
    """The best rows with a score above 0, and their scores."""
    scores = [
        {
            row: sum(w * doc.get(entry, 0) for entry, w in query.items())
            for row, doc in zip(rows, documents, strict=True)
        }
        for query in queries
    ]
    return [
        sorted(((r, s) for r, s in line.items() if s > 0), key=lambda hit: (-hit[1], hit[0]))[:k] for line in scores
    ]


def found(hits):
    return [list(zip(*map(np.ndarray.tolist, hits.of(q)), strict=True)) for q in range(len(hits))]


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.integers(0, 99), VECTORS, min_size=1, max_size=20),
    st.lists(VECTORS, min_size=1, max_size=4),
    st.integers(1, 25),
    st.data(),
)
def test_search_is_the_definition_after_any_history(documents, queries, k, data):
    order = data.draw(st.permutations(list(documents)))
    cut = data.draw(st.integers(0, len(order)))
    gone = data.draw(st.lists(st.sampled_from(order), unique=True))
    allowed = data.draw(st.none() | st.lists(st.integers(0, 110)))
    index = SparseIndex(WIDTH)
    for part in (order[:cut], order[cut:]):
        index.add(np.array(part, dtype=np.int64), sparse([documents[row] for row in part]))
    index.remove(np.array(gone, dtype=np.int64))
    left = [row for row in order if row not in gone]
    assert len(index) == len(left)
    hits = index.search(sparse(queries), k, allowed)
    through = [row for row in left if allowed is None or row in allowed]
    assert found(hits) == by_definition(queries, [documents[row] for row in through], through, k)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    vectors = [{int(e): float(rng.random()) for e in rng.choice(WIDTH, rng.integers(1, 6), False)} for _ in range(90)]
    return sparse(vectors[:80]), sparse(vectors[80:])


def test_scores_are_those_of_the_matrix_product(data):
    documents, queries = data
    index = SparseIndex(WIDTH)
    index.add(np.arange(80), documents)
    hits = index.search(queries, 80)
    product = sparse_scores(queries, documents)
    for q in range(10):
        rows, scores = hits.of(q)
        np.testing.assert_allclose(scores, product[q, rows], rtol=1e-6)
        assert set(rows.tolist()) == set(np.flatnonzero(product[q]).tolist())


def test_a_restart_changes_no_answer(data, tmp_path):
    documents, queries = data
    index = SparseIndex(WIDTH)
    index.add(np.arange(80) * 3, documents)
    index.save(tmp_path, "one")
    again = SparseIndex.load(tmp_path, "one")
    assert (len(again), again.dim, again.metric) == (80, WIDTH, "inner_product")
    assert found(again.search(queries, 10, np.arange(100))) == found(index.search(queries, 10, np.arange(100)))
    again.remove(np.arange(80) * 3)
    assert again.search(queries, 10).counts.tolist() == [0] * 10
    with pytest.raises(IndexMismatchError):
        SparseIndex.load(tmp_path, "two")
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for broken in (whole[:-2], whole[:90] + bytes([whole[90] ^ 1]) + whole[91:]):
            path.write_bytes(broken)
            with pytest.raises(CorruptFileError, match=path.name.replace(".", r"\.")):
                SparseIndex.load(tmp_path)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        ({3: -1.0}, "vectors: vector 1 holds a negative weight"),
        ({3: np.nan}, "vectors: vector 1 holds NaN or infinity"),
        ({WIDTH: 1.0}, "vectors: vector 1 holds an entry that is not from 0 to 11"),
        ({-1: 1.0}, "vectors: vector 1 holds an entry that is not from 0 to 11"),
    ],
)
def test_unusable_vectors_are_named(vector, words):
    index = SparseIndex(WIDTH)
    with pytest.raises(InputError, match=words) as raised:
        index.add(np.arange(2), sparse([{0: 1.0}, vector]))
    assert raised.value.field == "vectors"
    with pytest.raises(InputError, match=words.replace("vectors", "queries", 1)):
        index.search(sparse([{0: 1.0}, vector]), 1)
    assert len(index) == 0


def test_entries_twice_and_wrong_offsets_are_named():
    index = SparseIndex(WIDTH)
    twice = SparseEmbeddings(np.array([4, 4]), np.ones(2, np.float32), np.array([0, 2]), np.ones(1), np.ones(1) > 1)
    with pytest.raises(InputError, match="vectors: vector 0 holds an entry twice"):
        index.add(np.arange(1), twice)
    short = SparseEmbeddings(np.array([4]), np.ones(2, np.float32), np.array([0, 2]), np.ones(1), np.ones(1) > 1)
    with pytest.raises(InputError, match="do not fit their offsets"):
        index.add(np.arange(1), short)
    with pytest.raises(InputError, match="dim must be at least 1"):
        SparseIndex(0)


def test_unusable_rows_are_named(data):
    index = SparseIndex(WIDTH)
    index.add(np.arange(80), data[0])
    with pytest.raises(InputError, match="row 5 is in the index already"):
        index.add(np.array([5]), sparse([{0: 1.0}]))
    with pytest.raises(InputError, match="2 row numbers for 1 vectors"):
        index.add(np.array([90, 91]), sparse([{0: 1.0}]))
    with pytest.raises(NotFoundError, match="row 80 is not in the index"):
        index.remove(np.array([3, 80]))
    with pytest.raises(InputError, match="top_k must be a whole number"):
        index.search(data[1], 0)
    assert len(index) == 80
