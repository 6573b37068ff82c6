"""LEMUR against exact MaxSim, its least squares against numpy's, and the engine's promises."""

import numpy as np
import pytest
import torch

from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, NotFoundError
from indexing.late_interaction.exact_multi import ExactMultiIndex
from indexing.late_interaction.lemur import LemurIndex
from indexing.late_interaction.lemur_encoder import LemurEncoder
from indexing.late_interaction.lemur_features import LemurConfig, hidden_layer, learn_features, token_maxima, whitener
from indexing.late_interaction.multi_index import Feedback
from tests.indexing.ragged_tokens import random_texts, recall, stories, take, tokens_of

CONFIG = LemurConfig(32, features=256, targets=400, tokens=4_096, fitted=2_048)
SMALL = LemurConfig(32, features=64, targets=50, tokens=500, fitted=500, epochs=1)


@pytest.fixture(scope="module")
def corpus():
    return stories(400, queries=40)


@pytest.fixture(scope="module")
def trained(corpus):
    """An index that no test changes."""
    return lemur(corpus[0], CONFIG)


def lemur(documents, config=SMALL, rows=None, **options):
    index = LemurIndex(config.dim, config, **{"exact_below": 100, **options})
    index.add(np.arange(len(documents)) if rows is None else rows, documents)
    return index


def same(one, other, atol=0.0):
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.scores, other.scores, atol=atol)


def test_maxima_are_the_definition():
    rng = np.random.default_rng(0)
    documents = tokens_of([*random_texts(30), *random_texts(2, longest=1), rng.standard_normal((1_500, 16))])
    tokens = rng.standard_normal((700, 16)).astype(np.float32)  # more than are compared at a time
    expected = [(documents[place] @ tokens.T).max(axis=0) for place in range(len(documents))]
    np.testing.assert_allclose(token_maxima(tokens, documents.vectors, documents.offsets), expected, atol=1e-5)
    assert token_maxima(tokens, documents.vectors[:0], np.array([0])).shape == (0, 700)


def test_the_whitener_gives_what_lstsq_gives():
    rng = np.random.default_rng(1)
    features, wanted = rng.standard_normal((300, 40)), rng.standard_normal((300, 7))
    for ridge in (1e-1, 1e-12):
        penalty = np.sqrt(ridge * (features**2).sum(axis=0).mean()) * np.eye(40)  # rows that stand for the ridge
        padded = np.concatenate([wanted, np.zeros((40, 7))])
        expected = np.linalg.lstsq(np.concatenate([features, penalty]), padded, rcond=None)[0]
        matrix = whitener(torch.from_numpy(features), ridge).numpy()
        np.testing.assert_allclose(matrix @ ((features @ matrix).T @ wanted), expected, atol=1e-9)
    np.testing.assert_allclose((features @ matrix).T @ (features @ matrix), np.eye(40), atol=1e-8)


def test_documents_are_least_squares_fits_of_their_maxima(corpus, trained):
    encoder = trained._encoder
    layer = {name: torch.from_numpy(encoder.matrices[name]) for name in ("hidden", "bias", "gain", "shift")}
    features = hidden_layer(torch.from_numpy(encoder.matrices["fitted"]), layer).numpy().astype(np.float64)
    few, query = take(corpus[0], [5, 0, 77]), corpus[1][0]
    maxima = np.array([(encoder.matrices["fitted"] @ few[place].T).max(axis=1) for place in range(3)], np.float64)
    penalty = np.sqrt(CONFIG.ridge * (features**2).sum(axis=0).mean()) * np.eye(256)
    padded = np.concatenate([(maxima - encoder.matrices["mean"]).T, np.zeros((256, 3))])
    expected = np.linalg.lstsq(np.concatenate([features, penalty]), padded, rcond=None)[0]  # (h, 3), the w
    found = encoder.encode_documents(few.vectors, few.offsets)
    np.testing.assert_allclose(found @ encoder.matrices["whitener"].T, expected.T, atol=1e-3)
    summed = hidden_layer(torch.from_numpy(query), layer).numpy().sum(axis=0)
    np.testing.assert_allclose(found @ encoder.encode_query(query), summed @ expected, atol=1e-3)


def test_the_hidden_layer_is_the_definition():
    rng = np.random.default_rng(2)
    parts = {"hidden": rng.standard_normal((8, 6)), **{n: rng.standard_normal(6) for n in ("bias", "gain", "shift")}}
    tokens = rng.standard_normal((5, 8))
    raw = tokens @ parts["hidden"] + parts["bias"]
    normed = (raw - raw.mean(axis=1, keepdims=True)) / np.sqrt(raw.var(axis=1, keepdims=True) + 1e-5)
    scaled = normed * parts["gain"] + parts["shift"]
    expected = 0.5 * scaled * (1 + torch.erf(torch.from_numpy(scaled / np.sqrt(2))).numpy())
    found = hidden_layer(torch.from_numpy(tokens), {name: torch.from_numpy(part) for name, part in parts.items()})
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_learnt_features_fit_better_than_random_ones(corpus):
    documents = corpus[0]
    rng = np.random.default_rng(3)
    order = rng.permutation(len(documents.vectors))
    seen, fitted, held = (documents.vectors[order[part]] for part in np.split(np.arange(4_500), [2_500, 3_500]))
    targets = [token_maxima(part, documents.vectors, documents.offsets) for part in (seen, fitted, held)]
    errors = []
    for epochs in (0, 6):
        layer = learn_features(LemurConfig(32, features=64, epochs=epochs), seen, targets[0])
        features = hidden_layer(torch.from_numpy(fitted), layer).double()
        matrix = whitener(features, 1e-4)
        vectors = (features @ matrix).numpy().T @ (targets[1] - targets[1].mean()).T
        guessed = hidden_layer(torch.from_numpy(held), layer).double().numpy() @ matrix.numpy() @ vectors
        guessed += targets[1].mean()
        errors.append(float(((guessed.T - targets[2]) ** 2).mean()))
    assert errors[1] < 0.95 * errors[0]


def test_it_finds_most_of_what_exact_finds(corpus, trained):
    _, queries, scores = corpus
    hits = trained.search(queries, 10, candidates=60)
    assert recall(hits, scores, 10) >= 0.58  # mean tokens have 0.29
    for place in range(len(queries)):
        rows, found = hits.of(place)
        np.testing.assert_allclose(found, scores[place][rows], atol=0.02)  # exact MaxSim over float16
    assert recall(trained.search(queries, 10, candidates=200), scores, 10) >= 0.88
    assert recall(trained.search(queries, 10, candidates=400), scores, 10) >= 0.99


def test_a_querys_vector_times_a_documents_is_near_maxsim(corpus, trained):
    documents, queries, scores = corpus
    encoder = trained._encoder
    vectors = encoder.encode_documents(documents.vectors, documents.offsets)
    near = []
    for place, query in enumerate(queries[place] for place in range(len(queries))):
        guessed = vectors @ encoder.encode_query(query) + len(query) * encoder.matrices["mean"]
        near.append(float(np.corrcoef(guessed, scores[place])[0, 1]))
        assert abs(guessed.mean() - scores[place].mean()) < 0.5
        twice = encoder.encode_query(query, np.full(len(query), 2))
        np.testing.assert_allclose(twice, 2 * encoder.encode_query(query), rtol=1e-5, atol=1e-4)
    assert np.mean(near) > 0.55


@pytest.mark.parametrize("codes", ["Flat", "SQ8", "SQ4", "HNSW16"])
def test_codes_of_all_kinds_are_searched(corpus, codes):
    documents, queries, scores = corpus
    index = lemur(documents, codes=codes)
    assert recall(index.search(queries, 10, candidates=200), scores, 10) >= 0.58  # any 200 of 400 have 0.5
    if codes != "HNSW16":  # by inner product a graph does not reach every document
        assert recall(index.search(queries, 10, candidates=400), scores, 10) >= 0.99


def test_training_is_the_same_each_time_and_another_with_another_seed(corpus):
    documents, queries, _ = corpus
    one, other = lemur(documents), lemur(documents)
    assert one._encoder.describe() == other._encoder.describe()
    same(one.search(queries, 10, candidates=40), other.search(queries, 10, candidates=40))
    torch.manual_seed(7)  # nothing is drawn from the shared generators
    np.random.seed(7)  # noqa: NPY002
    state = torch.random.get_rng_state()
    assert lemur(documents)._encoder.describe() == one._encoder.describe()
    assert torch.equal(torch.random.get_rng_state(), state)
    changed = LemurConfig(32, features=64, targets=50, tokens=500, fitted=500, epochs=1, seed=1)
    assert lemur(documents, changed)._encoder.describe()["sha256"] != one._encoder.describe()["sha256"]


def test_few_documents_are_all_compared(corpus):
    documents, queries, _ = corpus
    exact = ExactMultiIndex(32, codec="float32")
    exact.add(np.arange(400), documents)
    index = lemur(documents, exact_below=401, codec="float32")
    assert index._encoder is None
    same(index.search(queries, 7, candidates=1), exact.search(queries, 7))
    index.add(np.array([400]), take(documents, [3]))
    assert index._encoder is not None
    index.remove(np.array([400]))
    same(index.search(queries, 7, candidates=1), exact.search(queries, 7), atol=1e-5)
    same(index.search(queries, 7, np.arange(50), candidates=1), exact.search(queries, 7, np.arange(50)), atol=1e-5)


def test_added_later_a_document_is_found_by_the_same_features(corpus):
    documents, queries, scores = corpus
    index = lemur(take(documents, range(200)), CONFIG)
    before = index._encoder.describe()
    for start in (200, 300):
        index.add(np.arange(start, start + 100), take(documents, range(start, start + 100)))
    assert index._encoder.describe() == before
    assert len(index) == 400
    assert recall(index.search(queries, 10, candidates=60), scores, 10) >= 0.5
    own = index.search(take(documents, [350, 399]), 1, candidates=10)
    assert own.rows[:, 0].tolist() == [350, 399]


def test_what_was_removed_or_filtered_out_is_not_found(corpus):
    documents, queries, scores = corpus
    rows = np.arange(400) * 3
    index = lemur(documents, rows=rows)
    gone = rows[::4]
    index.remove(gone)
    even = rows[rows % 2 == 0]
    for allowed, keep in ((None, np.setdiff1d(rows, gone)), (even, np.setdiff1d(even, gone))):
        hits = index.search(queries, 10, allowed, candidates=400)
        for place in range(len(queries)):
            best = keep[np.argsort(-scores[place][keep // 3], kind="stable")[:10]]
            assert len(set(hits.of(place)[0].tolist()) & set(best.tolist())) >= 9  # float16
        assert set(index.search(queries, 10, allowed, candidates=20).rows.ravel().tolist()) <= set(keep.tolist())
    index.add(gone[:1], take(documents, [0]))
    assert index.search(take(documents, [0]), 1, candidates=20).rows.tolist() == [[0]]


def test_feedback_and_carving_reach_the_stages(corpus):
    documents, queries, scores = corpus
    queries, scores = take(queries, range(8)), scores[:8]
    index = lemur(documents)
    plain = index.search(queries, 10, candidates=100)
    expanded = index.search(queries, 10, candidates=100, feedback=Feedback(clusters=8, rows=4))
    assert (expanded.scores[:, 0] > plain.scores[:, 0]).all()  # more rows
    carved = index.search(queries, 10, candidates=400, tau=0.9)
    assert recall(carved, scores, 10) > 0.7
    same(index.search(queries, 10, candidates=100, tau=1.0), plain, atol=1e-4)


@pytest.mark.parametrize("codes", ["SQ8", "HNSW16"])
def test_saved_and_loaded_it_answers_the_same(corpus, tmp_path, codes):
    documents, queries, _ = corpus
    index = lemur(documents, codes=codes, rows=np.arange(400) * 7)
    index.remove(np.arange(0, 700, 7))
    index.save(tmp_path, "model")
    loaded = LemurIndex.load(tmp_path, "model", config=SMALL)
    assert len(loaded) == len(index) == 300
    same(loaded.search(queries, 10, candidates=50), index.search(queries, 10, candidates=50))
    for each in (index, loaded):
        each.add(np.array([5, 0]), take(documents, [1, 2]))
        each.remove(np.array([707]))
    same(loaded.search(queries, 10, candidates=50), index.search(queries, 10, candidates=50))
    loaded.save(tmp_path / "again")
    again = LemurIndex.load(tmp_path / "again")
    same(again.search(queries, 10, candidates=50), index.search(queries, 10, candidates=50))


def test_small_it_is_saved_without_vectors_and_learns_later(corpus, tmp_path):
    documents, queries, _ = corpus
    index = lemur(documents, exact_below=600)
    index.save(tmp_path)
    loaded = LemurIndex.load(tmp_path)
    same(loaded.search(queries, 10), index.search(queries, 10))
    loaded.add(np.arange(1_000, 1_400), documents)
    assert loaded._encoder is not None


def test_other_features_and_another_encoder_are_refused(corpus, tmp_path):
    lemur(corpus[0]).save(tmp_path, "one")
    with pytest.raises(IndexMismatchError, match=r"features \(index 64, requested 256\)"):
        LemurIndex.load(tmp_path, config=CONFIG)
    with pytest.raises(IndexMismatchError, match="one"):
        LemurIndex.load(tmp_path, "two")
    with pytest.raises(CorruptFileError, match="lemur"):
        ExactMultiIndex.load(tmp_path)
    encoder = LemurIndex.load(tmp_path)._encoder
    with pytest.raises(IndexMismatchError, match="gain"):
        LemurEncoder.from_saved(encoder.describe(), {**encoder.matrices, "gain": encoder.matrices["gain"] + 1})


def test_damaged_files_and_vectors_of_other_documents_are_refused(corpus, tmp_path):
    index = lemur(corpus[0])
    index.save(tmp_path)
    for name in ("codes.faiss", "whitener.npy", "fitted.npy", "coderows.npy"):
        (path,) = tmp_path.glob(f"*.{name}")
        data = path.read_bytes()
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
        with pytest.raises(CorruptFileError, match=name):
            LemurIndex.load(tmp_path)
        path.write_bytes(data)
    index.store.remove(np.array([3]))  # behind the index's back
    index.save(tmp_path)
    with pytest.raises(CorruptFileError, match="other documents"):
        LemurIndex.load(tmp_path)


def test_what_makes_no_sense_is_refused(corpus, trained):
    queries = corpus[1]
    with pytest.raises(InputError, match="16 dimensions"):
        trained.search(tokens_of(random_texts(1)), 3)
    with pytest.raises(InputError, match="top_k"):
        trained.search(queries, 0)
    with pytest.raises(InputError, match=r"queries\[1\] is empty"):
        trained.search(tokens_of([np.ones((2, 32)), np.empty((0, 32))]), 3)
    with pytest.raises(InputError, match="row 1 holds NaN"):
        trained.search(tokens_of([np.array([[1.0] * 32, [np.nan] * 32])]), 3)
    with pytest.raises(InputError, match="row 3 is in the index"):
        trained.add(np.array([3]), take(corpus[0], [0]))
    with pytest.raises(NotFoundError, match="row 777"):
        trained.remove(np.array([777]))
    with pytest.raises(InputError, match="tau"):
        trained.search(queries, 3, tau=2.0)
    for candidates in (0, 2.5):
        with pytest.raises(InputError, match="candidates"):
            trained.search(queries, 3, candidates=candidates)
    assert trained.search(queries, 3, np.array([], dtype=np.int64)).counts.tolist() == [0] * len(queries)
    for options, field in (
        ({"features": 1}, "features"),
        ({"epochs": -1}, "epochs"),
        ({"tokens": 2.5}, "tokens"),
        ({"ridge": 0.0}, "ridge"),
        ({"ridge": float("nan")}, "ridge"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(InputError) as error:
            LemurConfig(32, **options)
        assert error.value.field == field
    for options, field in (
        ({"config": LemurConfig(16)}, "config"),
        ({"exact_below": 0}, "exact_below"),
        ({"codes": "PQ7x3"}, "index"),
        ({"codes": "IVF2000,Flat"}, "index"),
        ({"codec": "zip"}, "codec"),
    ):
        with pytest.raises(InputError) as error:
            LemurIndex(32, **{"config": SMALL, "exact_below": 100, **options})
        assert error.value.field == field


def test_tiny_corpora_are_learnt_without_complaint():
    config = LemurConfig(16, features=8, epochs=2)
    index = LemurIndex(16, config, codes="Flat", exact_below=1)
    index.add(np.empty(0, dtype=np.int64), take(tokens_of(random_texts(1)), []))
    assert index.search(tokens_of(random_texts(2)), 5).rows.shape == (2, 0)
    index.add(np.array([4]), tokens_of([random_texts(1)[0][:1]]))
    assert index.search(tokens_of(random_texts(2)), 5).rows.tolist() == [[4], [4]]
    index.add(np.array([9, 2]), tokens_of(random_texts(2, seed=5)))
    assert sorted(index.search(tokens_of(random_texts(1)), 5).rows[0].tolist()) == [2, 4, 9]
