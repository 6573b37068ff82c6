"""PLAID against exact MaxSim, and the engine's promises. Needs fast-plaid: `make test-plaid`."""

import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, LoadError, NotFoundError
from indexing.late_interaction import plaid_codes
from indexing.late_interaction.exact_multi import ExactMultiIndex
from indexing.late_interaction.multi_index import Feedback
from indexing.late_interaction.plaid import PlaidIndex
from indexing.late_interaction.plaid_codes import PlaidCodes, as_tensors
from tests.indexing.ragged_tokens import random_texts, recall, stories, take, tokens_of

NEEDS = pytest.mark.skipif(find_spec("fast_plaid") is None, reason="needs embedserve[pylate]: make test-plaid")


@pytest.fixture(scope="module")
def corpus():
    return stories(400, queries=20)


@pytest.fixture(scope="module")
def built(corpus):
    """An index that no test changes."""
    return plaid(corpus[0])


def plaid(documents, rows=None, **options):
    index = PlaidIndex(documents.vectors.shape[1], **{"exact_below": 100, **options})
    index.add(np.arange(len(documents)) if rows is None else rows, documents)
    return index


def same(one, other, atol=0.0):
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.scores, other.scores, atol=atol)


@pytest.mark.skipif(find_spec("fast_plaid") is not None, reason="fast-plaid is installed")
def test_without_the_package_the_error_names_the_extra():
    with pytest.raises(LoadError, match=r"embedserve\[pylate\]"):
        PlaidIndex(32)


@NEEDS
def test_another_torch_than_it_was_compiled_for_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")  # with it the compiled code ends the process
    with pytest.raises(LoadError, match=r"compiled for torch 2\.11\.0 .* 2\.13\.0"):
        PlaidIndex(32)


@NEEDS
def test_it_finds_most_of_what_exact_finds(corpus, built):
    _, queries, scores = corpus
    hits = built.search(queries, 10, candidates=10, scanned=1_600)
    assert recall(hits, scores, 10) >= 0.9  # by four bits alone; mean tokens have 0.29 of them among 60
    for place in range(len(queries)):
        rows, found = hits.of(place)
        np.testing.assert_allclose(found, scores[place][rows], atol=0.02)  # exact MaxSim over float16
    assert recall(built.search(queries, 10, candidates=60), scores, 10) >= 0.95


@NEEDS
def test_more_bits_scans_and_probes_find_more(corpus, built):
    documents, queries, scores = corpus
    whole = recall(built.search(queries, 10, candidates=10, scanned=1_600), scores, 10)
    assert recall(plaid(documents, bits=1).search(queries, 10, candidates=10, scanned=1_600), scores, 10) < whole
    assert recall(built.search(queries, 10, candidates=10), scores, 10) < whole
    few = [built.search(queries, 400, candidates=400, probes=probes).counts.mean() for probes in (1, 4, 10_000)]
    assert few[0] < few[1] <= few[2] == 400


@NEEDS
def test_few_documents_are_all_compared(corpus):
    documents, queries, _ = corpus
    exact = ExactMultiIndex(32, codec="float32")
    exact.add(np.arange(400), documents)
    index = plaid(documents, exact_below=401, codec="float32")
    assert index._codes is None
    same(index.search(queries, 7, candidates=1), exact.search(queries, 7))
    index.add(np.array([400]), take(documents, [3]))
    assert index._codes is not None
    index.remove(np.array([400]))
    same(index.search(queries, 7, candidates=1), exact.search(queries, 7), atol=1e-5)
    same(index.search(queries, 7, np.arange(50), candidates=1), exact.search(queries, 7, np.arange(50)), atol=1e-5)


@NEEDS
def test_building_is_the_same_each_time_and_leaves_the_shared_generators_alone(corpus, built):
    documents, queries, _ = corpus
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    same(plaid(documents).search(queries, 10, candidates=12), built.search(queries, 10, candidates=12))
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@NEEDS
def test_added_later_a_document_is_found(corpus):
    documents, queries, scores = corpus
    index = plaid(take(documents, range(200)))
    for start in (200, 300):
        index.add(np.arange(start, start + 100), take(documents, range(start, start + 100)))
    assert len(index) == 400
    assert recall(index.search(queries, 10, candidates=10, scanned=1_600), scores, 10) >= 0.85
    own = index.search(take(documents, [0, 350, 399]), 1, candidates=10)
    assert own.rows[:, 0].tolist() == [0, 350, 399]


@NEEDS
def test_what_was_removed_or_filtered_out_is_not_found(corpus):
    documents, queries, scores = corpus
    rows = np.arange(400) * 3
    index = plaid(documents, rows=rows)
    gone = rows[::4]
    index.remove(gone[::-1])
    even = rows[rows % 2 == 0]
    for allowed, keep in ((None, np.setdiff1d(rows, gone)), (even, np.setdiff1d(even, gone))):
        hits = index.search(queries, 10, allowed, candidates=100)
        found = [len(set(hits.of(place)[0].tolist()) & set(keep[best].tolist())) for place, best in enumerate(
            np.argsort(-scores[:, keep // 3], axis=1, kind="stable")[:, :10]
        )]  # fmt: skip
        assert np.mean(found) >= 9.8
        assert set(hits.rows.ravel().tolist()) <= set(keep.tolist())
    index.add(gone[:1], take(documents, [0]))
    assert index.search(take(documents, [0]), 1, candidates=20).rows.tolist() == [[0]]
    assert index.search(queries, 3, np.array([1, 2])).counts.tolist() == [0] * len(queries)


@NEEDS
def test_emptied_it_learns_again(corpus):
    documents, queries, scores = corpus
    index = plaid(take(documents, range(120)))
    index.remove(np.arange(120))
    assert index.search(queries, 5).rows.shape == (20, 0)
    index.add(np.arange(400), documents)
    assert index._codes is not None
    assert recall(index.search(queries, 10, candidates=60), scores, 10) >= 0.95


@NEEDS
def test_feedback_and_carving_reach_the_stages(corpus, built):
    _, queries, scores = corpus
    queries, scores = take(queries, range(8)), scores[:8]
    plain = built.search(queries, 10, candidates=100)
    expanded = built.search(queries, 10, candidates=100, feedback=Feedback(clusters=8, rows=4))
    assert (expanded.scores[:, 0] > plain.scores[:, 0]).all()  # more rows
    assert recall(built.search(queries, 10, candidates=400, tau=0.9), scores, 10) > 0.7
    same(built.search(queries, 10, candidates=100, tau=1.0), plain, atol=1e-4)


@NEEDS
def test_saved_and_loaded_it_answers_the_same(corpus, tmp_path):
    documents, queries, _ = corpus
    index = plaid(documents, rows=np.arange(400) * 7)
    index.remove(np.arange(0, 700, 7))
    index.save(tmp_path / "one", "model")
    (tmp_path / "work").mkdir()
    loaded = PlaidIndex.load(tmp_path / "one", "model", folder=tmp_path / "work")
    assert len(loaded) == len(index) == 300
    same(loaded.search(queries, 10, candidates=20), index.search(queries, 10, candidates=20))
    for each in (index, loaded):
        each.add(np.array([5, 0]), take(documents, [1, 2]))
        each.remove(np.array([707]))
    same(loaded.search(queries, 10, candidates=20), index.search(queries, 10, candidates=20))
    loaded.save(tmp_path / "one")
    again = PlaidIndex.load(tmp_path / "one")
    same(again.search(queries, 10, candidates=20), index.search(queries, 10, candidates=20))
    assert any((tmp_path / "work").iterdir())
    del loaded, each
    assert not any((tmp_path / "work").iterdir())


@NEEDS
def test_small_it_is_saved_without_codes_and_learns_later(corpus, tmp_path):
    documents, queries, _ = corpus
    index = plaid(documents, exact_below=600)
    index.save(tmp_path)
    loaded = PlaidIndex.load(tmp_path)
    same(loaded.search(queries, 10), index.search(queries, 10))
    loaded.add(np.arange(1_000, 1_400), documents)
    assert loaded._codes is not None


@NEEDS
def test_another_encoder_and_another_engine_are_refused(corpus, tmp_path):
    plaid(corpus[0]).save(tmp_path, "one")
    with pytest.raises(IndexMismatchError, match="one"):
        PlaidIndex.load(tmp_path, "two")
    with pytest.raises(CorruptFileError, match="plaid"):
        ExactMultiIndex.load(tmp_path)


@NEEDS
def test_damaged_files_and_codes_of_other_documents_are_refused(corpus, tmp_path):
    index = plaid(corpus[0])
    index.save(tmp_path)
    for name in ("plaid.zip", "coderows.npy"):
        (path,) = tmp_path.glob(f"*.{name}")
        data = path.read_bytes()
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
        with pytest.raises(CorruptFileError, match=name):
            PlaidIndex.load(tmp_path)
        path.write_bytes(data)
    index.store.remove(np.array([3]))  # behind the index's back
    index.save(tmp_path)
    with pytest.raises(CorruptFileError, match="other documents"):
        PlaidIndex.load(tmp_path)


@NEEDS
def test_an_archive_of_other_files_is_refused(corpus, tmp_path):
    codes = PlaidCodes(4)
    few = take(corpus[0], range(100))
    codes.add(np.arange(100), as_tensors(few.vectors, few.offsets))
    codes.write(tmp_path / "good.zip")
    assert len(PlaidCodes(4, archive=tmp_path / "good.zip", rows=np.arange(100)).table) == 100
    with pytest.raises(CorruptFileError, match="99 documents"):
        PlaidCodes(4, archive=tmp_path / "good.zip", rows=np.arange(99))
    for name in ("buffer.npy", "embeddings.npy", "../centroids.npy", "notes.txt"):  # the first two would be unpickled
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
            archive.writestr(name, b"")
        with pytest.raises(CorruptFileError, match="no file of such an index"):
            plaid_codes.unpack(tmp_path / "bad.zip", tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(CorruptFileError, match="not readable"):
        PlaidCodes(4, archive=tmp_path / "bad.zip", rows=np.arange(1))


@NEEDS
def test_what_makes_no_sense_is_refused(corpus, built):
    queries = corpus[1]
    with pytest.raises(InputError, match="16 dimensions"):
        built.search(tokens_of(random_texts(1)), 3)
    with pytest.raises(InputError, match="16 dimensions"):
        built.add(np.array([900]), tokens_of(random_texts(1)))
    with pytest.raises(InputError, match="top_k"):
        built.search(queries, 0)
    with pytest.raises(InputError, match=r"queries\[1\] is empty"):
        built.search(tokens_of([np.ones((2, 32)), np.empty((0, 32))]), 3)
    with pytest.raises(InputError, match=r"documents\[0\] is empty"):
        built.add(np.array([900, 901]), tokens_of([np.empty((0, 32)), np.ones((2, 32))]))
    with pytest.raises(InputError, match="row 1 holds NaN"):
        built.search(tokens_of([np.array([[1.0] * 32, [np.nan] * 32])]), 3)
    with pytest.raises(InputError, match="row 0 holds NaN"):
        built.add(np.array([900]), tokens_of([np.full((1, 32), np.nan)]))
    with pytest.raises(InputError, match="row 3 is in the index"):
        built.add(np.array([3]), take(corpus[0], [0]))
    with pytest.raises(NotFoundError, match="row 777"):
        built.remove(np.array([777]))
    assert len(built) == len(built._codes.table) == 400
    for options in ({"candidates": 0}, {"probes": 0}, {"probes": 2.5}, {"scanned": 0}, {"tau": 2.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            built.search(queries, 3, **options)
    assert built.search(queries, 3, np.array([], dtype=np.int64)).counts.tolist() == [0] * len(queries)
    for options, field in (
        ({"dim": 12}, "dim"),
        ({"bits": 3}, "bits"),
        ({"exact_below": 63}, "exact_below"),
        ({"exact_below": 0}, "exact_below"),
        ({"codec": "zip"}, "codec"),
    ):
        with pytest.raises(InputError) as error:
            PlaidIndex(**{"dim": 32, **options})
        assert error.value.field == field


@NEEDS
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_fewest_and_shortest_documents_are_learnt_from(bits):
    documents = tokens_of([rows[:1] for rows in random_texts(64, dim=8)])
    index = plaid(documents, exact_below=64, bits=bits)
    index.add(np.empty(0, dtype=np.int64), take(documents, []))
    assert index._codes is not None
    assert (index.search(documents, 1, probes=64).rows[:, 0] == np.arange(64)).mean() > 0.95
