"""Every index against brute force, and brute force against the definition."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedserve.errors import CorruptFileError, InputError, LoadError
from indexing import ExactIndex, build_index, load_index
from indexing.base import make_hits, unit
from indexing.engines import exact, faiss_factory
from indexing.engines.faiss_defaults import resolve_kind
from indexing.engines.faiss_factory import new_index, training_rows
from indexing.engines.faiss_index import import_faiss

INTEGERS = st.integers(-4, 4)
KINDS = ["flat", "hnsw", "HNSW16,SQ8", "IVF8,Flat", "SQ8", "PCA8,IVF4,Flat"]


def numbers(*shape):
    return arrays(np.float32, shape, elements=INTEGERS)


@st.composite
def problems(draw):
    """Rows, queries and k over few small integers: exact arithmetic and many ties."""
    rows, dim, queries = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return draw(numbers(rows, dim)), draw(numbers(queries, dim)), draw(st.integers(1, 50))


@pytest.fixture(scope="module")
def clusters():
    """2,000 unit vectors around 40 centres, and queries near them."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(40, 16))
    near = [centres[rng.integers(0, 40, n)] + 0.4 * rng.normal(size=(n, 16)) for n in (2000, 30)]
    return unit(near[0].astype(np.float32)), unit(near[1].astype(np.float32))


def by_definition(rows, queries, k):
    scores = queries @ rows.T
    return [sorted(range(len(rows)), key=lambda row: (-line[row], row))[:k] for line in scores]


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 7), st.integers(1, 3))
def test_exact_is_the_definition_in_blocks_of_any_size(problem, row_block, query_block):
    rows, queries, k = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "ROW_BLOCK", row_block)
        patch.setattr(exact, "QUERY_BLOCK", query_block)
        hits = ExactIndex(rows, "inner_product").search(queries, k)
    assert hits.rows.tolist() == by_definition(rows, queries, k)
    assert (hits.counts == min(k, len(rows))).all()


@settings(max_examples=40, deadline=None)
@given(problems())
def test_flat_scores_are_those_of_exact(problem):
    rows, queries, k = problem
    flat = build_index(rows, "flat", "inner_product").search(queries, k)
    slow = ExactIndex(rows, "inner_product").search(queries, k)
    assert flat.scores.tolist() == slow.scores.tolist()
    assert flat.counts.tolist() == slow.counts.tolist()
    for query in range(len(queries)):
        found, scores = flat.of(query)
        assert len(set(found.tolist())) == len(found)
        assert (rows[found] @ queries[query]).tolist() == scores.tolist()


@settings(max_examples=30, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_score(problem, random):
    rows, queries, k = problem
    order = list(range(len(rows)))
    random.shuffle(order)
    one = ExactIndex(rows, "cosine").search(queries, k)
    other = ExactIndex(rows[order], "cosine").search(queries, k)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_the_order_of_the_rows_moves_the_hits_along(clusters):
    vectors, queries = clusters
    order = np.random.default_rng(2).permutation(len(vectors))
    one = build_index(vectors, "flat").search(queries, 10)
    other = build_index(vectors[order], "flat").search(queries, 10)
    assert (order[other.rows] == one.rows).all()


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_flat_finds_the_rows_of_exact(clusters, metric):
    vectors, queries = clusters
    scaled = vectors * np.linspace(0.5, 2, len(vectors), dtype=np.float32)[:, None]
    flat = build_index(scaled, "flat", metric).search(queries, 10)
    slow = ExactIndex(scaled, metric).search(queries, 10)
    assert (flat.rows == slow.rows).all()
    np.testing.assert_allclose(flat.scores, slow.scores, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "floor"), [("hnsw", 0.99), ("HNSW16,SQ8", 0.9), ("IVF8,Flat", 0.99), ("SQ8", 0.9), ("IVF8,SQ8", 0.9)]
)
def test_approximate_indexes_find_most(clusters, kind, floor):
    vectors, queries = clusters
    truth = ExactIndex(vectors).search(queries, 10)
    hits = build_index(vectors, kind).search(queries, 10)
    found = [len(set(hits.of(q)[0]) & set(truth.of(q)[0])) / 10 for q in range(len(queries))]
    assert np.mean(found) >= floor


@pytest.mark.parametrize("kind", KINDS)
def test_hits_hold_rows_that_exist_in_order_of_score(clusters, kind):
    vectors, queries = clusters[0][:400], clusters[1]
    hits = build_index(vectors, kind).search(queries, 1000)
    assert hits.rows.dtype == np.int64
    assert hits.scores.dtype == np.float32
    assert hits.rows.shape == hits.scores.shape == (30, 400)
    assert hits.rows.min() >= 0
    assert hits.rows.max() < 400
    for query in range(30):
        rows, scores = hits.of(query)
        assert (np.diff(scores) <= 0).all()
        assert len(set(rows.tolist())) == len(rows) == hits.counts[query]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_answers_as_the_saved_one(clusters, kind, tmp_path):
    vectors, queries = clusters
    built = build_index(vectors, kind)
    built.write(tmp_path / "index.faiss")
    loaded = load_index(tmp_path / "index.faiss", built.kind, "cosine")
    one, other = built.search(queries, 10), loaded.search(queries, 10)
    assert (one.rows == other.rows).all()
    assert (one.scores == other.scores).all()
    assert (len(loaded), loaded.dim, loaded.kind) == (2000, 16, built.kind)


def test_a_wider_search_finds_more(clusters):
    vectors, queries = clusters
    index = build_index(vectors, "HNSW2")  # a graph with so few links that a narrow search gets lost in it
    truth = ExactIndex(vectors).search(queries, 10)
    recalls = [
        sum(len(set(hits.of(q)[0]) & set(truth.of(q)[0])) for q in range(len(queries)))
        for hits in (index.search(queries, 10, ef_search=ef) for ef in (10, 40, 400))
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.7 * recalls[2]  # of 300: about 115 and 273


def test_missing_hits_leave_as_a_count_and_never_as_minus_one():
    hits = make_hits(np.array([[5, -1, 2], [-1, -1, -1]]), np.array([[1, -3e38, 1], [0, 0, 0]], dtype=np.float32))
    assert hits.counts.tolist() == [2, 0]
    assert hits.of(0)[0].tolist() == [2, 5]
    assert hits.rows.min() >= 0
    assert len(hits.of(1)[0]) == 0


def test_an_index_may_find_less_than_was_asked(clusters):
    index = build_index(clusters[0], "IVF64,Flat")
    hits = index.search(clusters[1], 1000, nprobe=1)
    assert (hits.counts < 1000).all()
    assert hits.rows.min() >= 0


def test_no_queries_give_no_hits(clusters):
    none = np.empty((0, 16), dtype=np.float32)
    for index in (ExactIndex(clusters[0]), build_index(clusters[0], "flat")):
        assert index.search(none, 3).rows.shape == (0, 3)


def test_a_row_of_zeros_scores_zero():
    hits = ExactIndex(np.array([[0, 0], [1, 0]], dtype=np.float32)).search(np.array([[1.0, 0.0]]), 2)
    assert hits.scores.tolist() == [[1, 0]]


@pytest.mark.parametrize("make", [ExactIndex, lambda vectors: build_index(vectors, "flat")])
@pytest.mark.parametrize(
    ("query", "k", "words"),
    [
        (np.ones((1, 15)), 1, "queries have 15 dimensions, the index has 16"),
        (np.ones(16), 1, r"queries must be an array \(N, d\), got shape \(16,\)"),
        (np.full((1, 16), np.nan), 1, "queries: row 0 holds NaN"),
        (np.full((1, 16), 1e300), 1, "queries: row 0 holds NaN or infinity"),
        ([["a"] * 16], 1, "queries must be an array of numbers"),
        (np.ones((1, 16)), 0, "top_k must be a whole number of at least 1, got 0"),
        (np.ones((1, 16)), True, "top_k"),
        (np.ones((1, 16)), 1.5, "top_k"),
    ],
)
def test_unusable_searches_are_named(clusters, make, query, k, words):
    with pytest.raises(InputError, match=words) as raised:
        make(clusters[0][:20]).search(query, k)
    assert raised.value.field in ("queries", "top_k")


@pytest.mark.parametrize(
    "kind",
    ["nonsense", "IVF", "LSH", "IDMap,Flat", "PQ5x8", "IVF0,Flat", "HNSW0", "HNSW1", "IVF4_HNSW1,Flat", "PCA32,Flat"],
)
def test_unusable_kinds_are_named(clusters, kind):
    with pytest.raises(InputError, match=r"index '.*' .*use auto") as raised:
        build_index(clusters[0], kind)
    assert raised.value.field == "index"


def test_too_few_rows_to_train_on_are_an_input_error(clusters):
    with pytest.raises(InputError, match="cannot be built from 4 rows"):
        build_index(clusters[0][:4], "IVF8,Flat")


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("Flat", 0), ("HNSW8", 0), ("SQ8", 0), ("IVF8,Flat", 8), ("IVF8_HNSW4,SQ8", 8), ("PQ4x4", 16),
        ("IVF8,PQ4x5", 32), ("IVF8,PQ4x4fs", 16), ("PCA8,IVF20,Flat", 20), ("IVF9,SQ8,RFlat", 9), ("PQ4x12", 4096),
    ],
)  # fmt: skip
def test_how_many_rows_a_kind_needs_is_known_before_there_are_any(kind, needed):
    faiss = import_faiss()
    empty = new_index(faiss, 16, kind, "cosine")
    assert training_rows(faiss, empty) == needed
    if not 0 < needed < 1000:
        return
    rows = np.random.default_rng(5).normal(size=(needed, 16)).astype(np.float32)
    with pytest.raises(RuntimeError):
        new_index(faiss, 16, kind, "cosine").train(rows[:-1])
    assert len(build_index(rows, kind)) == needed


def test_what_faiss_refuses_is_told_without_its_source_code(clusters, monkeypatch):
    monkeypatch.setattr(faiss_factory, "training_rows", lambda *_: 0)
    with pytest.raises(InputError) as raised:
        build_index(clusters[0][:4], "IVF8,Flat")
    assert raised.value.message == (
        "index 'IVF8,Flat' cannot be built from 4 rows: Number of training points (4) should be at least as large as "
        "number of clusters (8); use auto, flat or hnsw"
    )


def test_unusable_vectors_are_named(clusters):
    with pytest.raises(InputError, match="N at least 1"):
        build_index(np.empty((0, 4), dtype=np.float32))
    broken = clusters[0].copy()
    broken[7, 3] = np.inf
    with pytest.raises(InputError, match="row 7 holds NaN or infinity"):
        build_index(broken, "flat")
    with pytest.raises(InputError, match="metric must be one of cosine, inner_product, got 'l2'"):
        build_index(clusters[0], "flat", "l2")


def test_auto_goes_by_size():
    found = [resolve_kind("auto", count, 64) for count in (1, 19_999, 20_000, 499_999, 500_000, 4_000_000)]
    scan, lists = "IVF1,PQ32x4fs,RFlat", "IVF{},PQ32x4fs,RFlat"
    assert found == ["Flat", "Flat", scan, scan, lists.format(2048), lists.format(4096)]
    assert resolve_kind("auto", 20_000, 33) == "IVF1,SQ8,RFlat"
    assert [resolve_kind("auto", count, 64, "cuda") for count in (20_000, 4_000_000)] == ["Flat", "IVF4096,SQ8"]
    assert resolve_kind("IVF7,SQ4", 20_000, 64) == "IVF7,SQ4"


def test_searching_from_many_threads_gives_the_same(clusters):
    vectors, queries = clusters
    for kind in ("flat", "hnsw"):
        index = build_index(vectors, kind)
        expected = index.search(queries, 5).rows
        with ThreadPoolExecutor(8) as pool:
            for hits in pool.map(lambda _, index=index: index.search(queries, 5), range(40)):
                assert (hits.rows == expected).all()


def test_without_faiss_the_error_names_what_to_install(monkeypatch, clusters):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(LoadError, match=r"pip install -e '\.\[cpu\]'"):
        build_index(clusters[0])


def test_what_is_no_index_is_refused(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(CorruptFileError, match=r"index\.faiss"):
        load_index(tmp_path / "index.faiss", "Flat", "cosine")
