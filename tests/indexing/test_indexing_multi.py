"""The multi-vector engines against exact MaxSim: answers, filters, removal, files, feedback, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import indexing
from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, NotFoundError
from embedserve.scoring import maxsim
from indexing.late_interaction.ball_carving import carve
from indexing.late_interaction.colbert_prf import document_frequencies, nearest_tokens, search_with_feedback
from indexing.late_interaction.exact_multi import ExactMultiIndex
from indexing.late_interaction.fde_config import FdeConfig
from indexing.late_interaction.multi_index import Feedback
from indexing.late_interaction.muvera import MuveraIndex
from tests.indexing.ragged_tokens import random_texts, recall, stories, take, tokens_of, unit

SMALL = FdeConfig(32, 10, 4, 8, centred=True)
# First stage, whether encodings are kept, and the floor of recall@10 with 60 of 400 documents compared; mean tokens
# have 0.29 of the best ten among 60.
VARIANTS = {
    "Flat": ("Flat", True, 0.58),
    "RaBitQ": ("RaBitQ", True, 0.58),
    "RaBitQ alone": ("RaBitQ", False, 0.52),
    "SQ8": ("SQ8", True, 0.58),
    "HNSW16": ("HNSW16", True, 0.5),
    "PQ160x4fs": ("PQ160x4fs", True, 0.58),
    "IVF8,SQ8": ("IVF8,SQ8", True, 0.58),
}


@pytest.fixture(scope="module")
def corpus():
    return stories(400)


@pytest.fixture(scope="module")
def exact(corpus):
    index = ExactMultiIndex(32, codec="float32")
    index.add(np.arange(400), corpus[0])
    return index


def muvera(documents, config=SMALL, rows=None, **options):
    index = MuveraIndex(config.dim, config, **{"exact_below": 100, **options})
    index.add(np.arange(len(documents)) if rows is None else rows, documents)
    return index


def same(one, other, atol=0.0):
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.scores, other.scores, atol=atol)


def test_exact_is_the_definition(corpus, exact):
    _, queries, scores = corpus
    hits = exact.search(queries, 400)
    assert (hits.counts == 400).all()
    for place, line in enumerate(scores):
        rows, found = hits.of(place)
        np.testing.assert_allclose(found, line[rows], atol=1e-4)
        assert (np.diff(found) <= 0).all()
        assert sorted(rows.tolist()) == list(range(400))


@pytest.mark.parametrize("codec", ["float16", "int8", "residual4", "residual2"])
def test_codecs_find_what_exact_finds(corpus, codec):
    documents, queries, scores = corpus
    index = ExactMultiIndex(32, codec=codec)
    index.add(np.arange(400), documents)
    floor = {"float16": 0.99, "int8": 0.97, "residual4": 0.9, "residual2": 0.7}[codec]
    assert recall(index.search(queries, 10), scores, 10) >= floor


@pytest.mark.parametrize("name", VARIANTS)
def test_muvera_finds_most_of_what_exact_finds(corpus, name):
    documents, queries, scores = corpus
    codes, keeps, floor = VARIANTS[name]
    index = muvera(documents, codes=codes, keeps_encodings=keeps)
    hits = index.search(queries, 10, candidates=60)
    assert recall(hits, scores, 10) >= floor
    for place in range(len(queries)):
        rows, found = hits.of(place)
        np.testing.assert_allclose(found, scores[place][rows], atol=0.02)  # exact MaxSim over float16
    more = recall(index.search(queries, 10, candidates=200), scores, 10)
    assert more >= recall(hits, scores, 10)
    assert recall(index.search(queries, 10, candidates=400, scanned=400), scores, 10) >= (
        0.8 if name == "HNSW16" else 0.99  # by inner product a graph does not reach every document
    )


def test_whole_encodings_find_more_than_codes_alone(corpus):
    documents, queries, scores = corpus
    found = [
        recall(muvera(documents, codes="RaBitQ", keeps_encodings=keeps).search(queries, 10, candidates=30), scores, 10)
        for keeps in (True, False)
    ]
    assert found[0] > found[1]


@pytest.mark.parametrize(("least", "codes"), [(700, "IVF1,PQ320x4fs"), (600, "SQ8")])
def test_the_default_codes_are_small_where_there_is_enough_to_learn_from(capfd, least, codes):
    documents, queries, scores = stories(700)
    index = muvera(documents, exact_below=least)
    assert (index.codes, index._encoded is None, index.keeps_encodings) == (codes, False, False)
    assert recall(index.search(queries, 10, candidates=105), scores, 10) >= 0.58
    assert "WARNING" not in "".join(capfd.readouterr())


def test_few_documents_are_all_compared(corpus, exact):
    documents, queries, _ = corpus
    index = muvera(documents, exact_below=401, codec="float32")
    assert index._encoded is None
    same(index.search(queries, 7, candidates=1), exact.search(queries, 7))
    index.add(np.array([400]), take(documents, [3]))
    assert index._encoded is not None
    assert len(index) == 401


def test_added_in_parts_it_finds_as_much(corpus):
    documents, queries, scores = corpus
    index = MuveraIndex(32, SMALL, exact_below=100)
    for start in range(0, 400, 50):
        index.add(np.arange(start, start + 50), take(documents, range(start, start + 50)))
    assert recall(index.search(queries, 10, candidates=60), scores, 10) >= 0.58


@pytest.mark.parametrize("codes", ["RaBitQ", "Flat", "HNSW16", "PQ160x4fs"])
@pytest.mark.parametrize("keeps", [True, False])
def test_saved_and_loaded_it_answers_the_same(corpus, tmp_path, codes, keeps):
    documents, queries, _ = corpus
    index = muvera(documents, codes=codes, keeps_encodings=keeps, rows=np.arange(400) * 7)
    index.remove(np.arange(0, 700, 7))
    index.save(tmp_path, "model")
    loaded = MuveraIndex.load(tmp_path, "model", config=SMALL)
    assert len(loaded) == len(index) == 300
    same(loaded.search(queries, 10, candidates=50), index.search(queries, 10, candidates=50))
    for each in (index, loaded):
        each.add(np.array([5, 0]), take(documents, [1, 2]))
        each.remove(np.array([707]))
    same(loaded.search(queries, 10, candidates=50), index.search(queries, 10, candidates=50))
    loaded.save(tmp_path / "again")
    again = MuveraIndex.load(tmp_path / "again")
    same(again.search(queries, 10, candidates=50), index.search(queries, 10, candidates=50))


def test_exact_is_saved_and_loaded(corpus, exact, tmp_path):
    exact.save(tmp_path, "model")
    loaded = ExactMultiIndex.load(tmp_path, "model")
    same(loaded.search(corpus[1], 10), exact.search(corpus[1], 10))
    with pytest.raises(IndexMismatchError):
        ExactMultiIndex.load(tmp_path, "another")
    with pytest.raises(CorruptFileError, match="exact-multi"):
        MuveraIndex.load(tmp_path)
    assert (loaded.dim, len(loaded)) == (32, 400)


def test_small_muvera_is_saved_without_encodings(corpus, tmp_path):
    documents, queries, _ = corpus
    index = muvera(documents, exact_below=600)
    index.save(tmp_path)
    loaded = MuveraIndex.load(tmp_path)
    same(loaded.search(queries, 10), index.search(queries, 10))
    loaded.add(np.arange(1000, 1400), documents)
    assert loaded._encoded is not None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 30))
def test_filters_and_removals_leave_the_best_of_the_rest(seed, count, k):
    rng = np.random.default_rng(seed)
    documents, queries = tokens_of(random_texts(count, seed=seed)), tokens_of(random_texts(3, seed=seed + 1))
    rows = rng.permutation(10 * count)[:count]
    engines = [
        ExactMultiIndex(16, codec="float32"),
        MuveraIndex(16, FdeConfig(16, 2, 2, 4), codes="Flat", exact_below=1, codec="float32"),
    ]
    gone = rows[rng.random(count) < 0.3]
    allowed = np.concatenate([rows[rng.random(count) < 0.5], [10 * count + 5]])
    left = np.setdiff1d(rows, gone)
    scores = np.array([maxsim(queries[place], documents) for place in range(3)])
    for engine in engines:
        engine.add(rows, documents)
        engine.remove(gone)
        for wanted, keep in ((None, left), (allowed, np.intersect1d(left, allowed))):
            hits = engine.search(queries, k, wanted)  # 400 candidates: all of them
            for place in range(3):
                by_row = dict(zip(rows.tolist(), scores[place].tolist(), strict=True))
                found, points = hits.of(place)
                assert len(found) == min(k, len(keep))
                assert set(found.tolist()) <= set(keep.tolist())
                expected = sorted((by_row[row] for row in keep.tolist()), reverse=True)[: len(found)]
                np.testing.assert_allclose(points, expected, atol=1e-5)
                np.testing.assert_allclose(points, [by_row[row] for row in found.tolist()], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_the_order_of_documents_and_the_batch_of_queries_do_not_matter(seed, count):
    documents, queries = tokens_of(random_texts(count, seed=seed)), tokens_of(random_texts(4, seed=seed + 1))
    order = np.random.default_rng(seed).permutation(count)
    for make in (
        lambda: ExactMultiIndex(16),
        lambda: MuveraIndex(16, FdeConfig(16, 2, 2, 4), codes="Flat", exact_below=1),
    ):
        one, other = make(), make()
        one.add(np.arange(count), documents)
        other.add(order, take(documents, order))
        together = one.search(queries, 5)
        same(other.search(queries, 5), together, atol=1e-5)
        for place in range(4):
            alone = one.search(take(queries, [place]), 5)
            np.testing.assert_array_equal(alone.rows[0], together.rows[place])
            np.testing.assert_allclose(alone.scores[0], together.scores[place], atol=1e-6)


def test_equal_scores_come_by_row():
    rows = np.array([9, 2, 5])
    index = ExactMultiIndex(16)
    index.add(rows, tokens_of(random_texts(1) * 3))
    assert index.search(tokens_of(random_texts(1)), 3).rows.tolist() == [[2, 5, 9]]


def test_a_filter_that_leaves_few_is_exact_and_one_that_leaves_many_is_kept(corpus, exact):
    documents, queries, _ = corpus
    index = muvera(documents, codec="float32")
    few, many = np.arange(0, 400, 7), np.arange(0, 400, 2)
    same(index.search(queries, 10, few, candidates=10), exact.search(queries, 10, few), atol=1e-5)
    hits = index.search(queries, 10, many, candidates=60)
    assert (hits.rows % 2 == 0).all()
    expected = exact.search(queries, 10, many)
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(hits.rows, expected.rows, strict=True)]
    assert np.mean(shared) > 7


def test_feedback_is_the_published_method(exact, corpus):
    rng = np.random.default_rng(0)
    words = unit(rng.standard_normal((60, 32)))
    ids = [rng.integers(0, 60, 12) for _ in range(80)]
    documents = tokens_of([unit(words[line] + 0.05 * rng.standard_normal((12, 32))) for line in ids], ids)
    index = ExactMultiIndex(32, codec="float32")
    index.add(np.arange(80), documents)
    query = words[[3, 4, 5]]
    order, scores = search_with_feedback(
        query,
        documents,
        nearest_tokens(documents),
        document_frequencies(documents, 60),
        clusters=10,
        rows=4,
        beta=0.5,
        skips=(3,),
    )
    feedback = Feedback(clusters=10, rows=4, beta=0.5, skips=(3,))
    hits = index.search(tokens_of([query]), 80, feedback=feedback)
    assert hits.rows[0].tolist() == order.tolist()
    np.testing.assert_allclose(hits.scores[0], scores, atol=1e-5)
    assert index.search(tokens_of([query]), 80).scores[0].max() < scores.max()
    near = muvera(documents, exact_below=10, codec="float32", codes="Flat")
    found = near.search(tokens_of([query]), 10, candidates=40, feedback=feedback)
    assert len(set(found.rows[0].tolist()) & set(order[:10].tolist())) >= 7


def test_carving_joins_like_rows():
    query = unit(np.array([[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1], [0.1, 1, 0]]))
    np.testing.assert_allclose(carve(query, None, 0.9), [query[0] + query[2], query[1] + query[4], query[3]], atol=1e-6)
    weighted = carve(query, np.array([1, 2, 3, 4, 5]), 0.9)
    np.testing.assert_allclose(weighted[0], query[0] + 3 * query[2], atol=1e-6)
    np.testing.assert_allclose(carve(query, None, -1), [query.sum(axis=0)], atol=1e-6)
    assert len(carve(query, None, 1)) == 5
    with pytest.raises(InputError, match="tau"):
        carve(query, None, 1.5)


def test_carving_never_scores_higher_and_with_tau_1_the_same(corpus, exact):
    queries = corpus[1]
    plain = exact.search(queries, 400)
    same(exact.search(queries, 400, tau=1.0), plain, atol=1e-4)
    carved = exact.search(queries, 400, tau=0.6)
    for place in range(len(queries)):
        full, low = np.empty(400), np.empty(400)
        full[plain.rows[place]], low[carved.rows[place]] = plain.scores[place], carved.scores[place]
        assert (low <= full + 1e-4).all()
    assert (carved.scores[:, 0] < plain.scores[:, 0] - 1e-3).any()
    assert recall(carved, corpus[2], 400) == 1
    assert recall(muvera(corpus[0]).search(queries, 10, candidates=200, tau=0.9), corpus[2], 10) > 0.7


def test_pooled_documents_are_found(corpus):
    documents, queries, scores = corpus
    index = muvera(documents, pooling=2)
    assert index.store.num_tokens < len(documents.vectors) * 0.55
    assert recall(index.search(queries, 10, candidates=200), scores, 10) > 0.3


def test_another_encoding_is_refused_with_what_differs(corpus, tmp_path):
    muvera(corpus[0]).save(tmp_path, "one")
    with pytest.raises(IndexMismatchError, match=r"bits \(index 4, requested 5\), centred \(index True"):
        MuveraIndex.load(tmp_path, config=FdeConfig(32, 10, 5, 8))
    with pytest.raises(IndexMismatchError, match="one"):
        MuveraIndex.load(tmp_path, "two")


@pytest.mark.parametrize("name", ["codes.faiss", "encodings.npy", "simhash.npy", "coderows.npy", "values.npy"])
def test_a_damaged_file_is_refused(corpus, tmp_path, name):
    muvera(corpus[0], keeps_encodings=True).save(tmp_path)
    (path,) = tmp_path.glob(f"*.{name}")
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=name):
        MuveraIndex.load(tmp_path)
    path.write_bytes(data[:-10])
    with pytest.raises(CorruptFileError, match=name):
        MuveraIndex.load(tmp_path)


def test_encodings_of_other_documents_are_refused(corpus, tmp_path):
    index = muvera(corpus[0])
    index.store.remove(np.array([3]))  # behind the index's back
    index.save(tmp_path)
    with pytest.raises(CorruptFileError, match="other documents"):
        MuveraIndex.load(tmp_path)


def test_what_makes_no_sense_is_refused(corpus, exact):
    documents, queries, _ = corpus
    index = muvera(documents)
    for engine in (exact, index):
        with pytest.raises(InputError, match="16 dimensions"):
            engine.search(tokens_of(random_texts(1)), 3)
        with pytest.raises(InputError, match="top_k"):
            engine.search(queries, 0)
        with pytest.raises(InputError, match=r"queries\[1\] is empty"):
            engine.search(tokens_of([np.ones((2, 32)), np.empty((0, 32))]), 3)
        with pytest.raises(InputError, match="queries: row 1 holds NaN"):
            engine.search(tokens_of([np.array([[1.0] * 32, [np.nan] * 32])]), 3)
        with pytest.raises(InputError, match="row 3 is in the index"):
            engine.add(np.array([3]), take(documents, [0]))
        with pytest.raises(NotFoundError, match="row 777"):
            engine.remove(np.array([777]))
        with pytest.raises(InputError, match="tau"):
            engine.search(queries, 3, tau=2.0)
        assert engine.search(queries, 3, np.array([], dtype=np.int64)).counts.tolist() == [0] * len(queries)
        assert len(engine) == 400
    for options in ({"candidates": 0}, {"scanned": -1}, {"candidates": 2.5}):
        with pytest.raises(InputError) as error:
            index.search(queries, 3, **options)
        assert error.value.field == next(iter(options))
    for options in ({"documents": 0}, {"rows": -1}, {"clusters": 1.0}, {"nearest": 0}):
        with pytest.raises(InputError) as error:
            Feedback(**options)
        assert error.value.field == f"feedback.{next(iter(options))}"
    for options, field in (
        ({"config": FdeConfig(16)}, "config"),
        ({"exact_below": 0}, "exact_below"),
        ({"codes": "PQ7x3"}, "index"),
        ({"codes": "IVF2000,Flat"}, "index"),
        ({"codec": "zip"}, "codec"),
    ):
        with pytest.raises(InputError) as error:
            MuveraIndex(32, **{"config": SMALL, "exact_below": 100, **options})
        assert error.value.field == field


def test_empty_engines_answer_nothing_and_refuse_nothing():
    for engine in (ExactMultiIndex(16), MuveraIndex(16, exact_below=1)):
        engine.add(np.empty(0, dtype=np.int64), take(tokens_of(random_texts(1)), []))
        assert len(engine) == 0
        assert engine.search(tokens_of(random_texts(2)), 5).rows.shape == (2, 0)


def test_the_package_names_the_engines_and_imports_them_late():
    code = (
        "import sys, indexing; assert 'torch' not in sys.modules; found = [getattr(indexing, n) for n in "
        "indexing.__all__]; assert indexing.MuveraIndex in found and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="module 'indexing' has no attribute 'Other'"):
        getattr(indexing, "Other")  # noqa: B009
