"""The promises that every index of vectors keeps: rows, filters, removal, files; each against brute force."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.disk_records import record_digest
from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, LoadError, NotFoundError
from indexing import ExactIndex, FaissIndex, build_index, load_index
from indexing.base import unit
from indexing.engines import faiss_index
from indexing.storage.engine_files import ENGINE, save_engine

DIM = 16
# Kinds that keep vectors as they are: what they find they score exactly.
TRUE_SCORES = ["exact", "Flat", "HNSW16", "IVF8,Flat", "IVF8,PQ8x4fs,RFlat", "PQ8x4fs,RFlat"]
KINDS = [
    *TRUE_SCORES,
    "fastscan",
    "ivf",
    "SQ8",
    "PQ8x4fs",
    "RaBitQ",
    "RaBitQfs",
    "IVF8,SQ8",
    "IVF8,RaBitQfs",
    "PCA8,IVF4,SQ8",
]
FLOORS = {
    "exact": 1, "Flat": 1, "HNSW16": 0.97, "IVF8,Flat": 1, "IVF8,PQ8x4fs,RFlat": 0.97, "PQ8x4fs,RFlat": 0.97,
    "fastscan": 0.97, "ivf": 0.97, "SQ8": 0.95, "PQ8x4fs": 0.5, "RaBitQ": 0.35, "RaBitQfs": 0.35, "IVF8,SQ8": 0.95,
    "IVF8,RaBitQfs": 0.35, "PCA8,IVF4,SQ8": 0.35,
}  # fmt: skip


def make(kind, rows, vectors, metric="cosine"):
    if kind == "exact":
        return ExactIndex(vectors, metric, rows)
    return build_index(vectors, kind, metric, rows=rows)


def reload(index, directory):
    index.save(directory, "print")
    return type(index).load(directory, "print")


@pytest.fixture(scope="module")
def data():
    """700 vectors around 20 centres with row numbers in no order, and 25 queries near the centres."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(20, DIM))
    near = [centres[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, DIM)) for n in (700, 25)]
    return rng.permutation(5000)[:700], near[0].astype(np.float32), near[1].astype(np.float32)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def recall(hits, truth):
    found = [len(set(hits.of(q)[0]) & set(truth.of(q)[0])) / len(truth.of(q)[0]) for q in range(len(truth))]
    return float(np.mean(found))


def same(one, other):
    return (one.rows == other.rows).all() and (one.scores == other.scores).all() and (one.counts == other.counts).all()


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_rows_are_found_by_the_numbers_they_were_given(kind, metric, data):
    rows, vectors, queries = data
    truth = ExactIndex(vectors, metric, rows).search(queries, 10)
    hits = make(kind, rows, vectors, metric).search(queries, 10)
    assert recall(hits, truth) >= FLOORS[kind]
    if kind in TRUE_SCORES:
        by_row = dict(zip(rows.tolist(), unit(vectors) if metric == "cosine" else vectors, strict=True))
        asked = unit(queries) if metric == "cosine" else queries
        for q in range(len(queries)):
            found, scores = hits.of(q)
            np.testing.assert_allclose(scores, [asked[q] @ by_row[row] for row in found], rtol=1e-4)


def test_adding_later_is_building_at_once(kind, data):
    rows, vectors, queries = data
    if kind == "exact":
        index = ExactIndex(vectors[:600], rows=rows[:600])
    else:  # what is trained differs with the rows that were there
        index = build_index(vectors[:600], kind, rows=rows[:600])
    for part in (slice(600, 630), slice(630, 700)):
        index.add(rows[part], vectors[part])
    assert (len(index), index.dim, index.metric) == (700, DIM, "cosine")
    truth = ExactIndex(vectors, rows=rows).search(queries, 10)
    assert recall(index.search(queries, 10), truth) >= FLOORS[kind]


def test_a_removed_row_is_gone_and_may_come_back(kind, data):
    rows, vectors, queries = data
    index = make(kind, rows, vectors)
    gone = np.arange(0, 700, 3)
    left = np.setdiff1d(np.arange(700), gone)
    index.remove(rows[gone])
    assert len(index) == len(left)
    hits = index.search(queries, len(rows))
    assert hits.rows.shape[1] == len(left)
    assert not np.isin(hits.rows[hits.scores > -np.inf], rows[gone]).any()
    truth = ExactIndex(vectors[left], rows=rows[left])
    assert recall(index.search(queries, 10), truth.search(queries, 10)) >= FLOORS[kind] - 0.02
    index.add(rows[gone], vectors[gone])
    assert recall(index.search(queries, 10), ExactIndex(vectors, rows=rows).search(queries, 10)) >= FLOORS[kind] - 0.02


@pytest.mark.parametrize("scan_below", [2000, -1])
def test_a_filter_is_search_among_the_rest_alone(kind, data, scan_below):
    rows, vectors, queries = data
    index = make(kind, rows, vectors)
    options = {} if kind == "exact" else {"scan_below": scan_below}
    for share in (2, 50) if scan_below > 0 else (2,):
        chosen = np.arange(0, 700, share)
        hits = index.search(queries, 5, np.concatenate([rows[chosen], [9999, 9999]]), **options)
        assert np.isin(hits.rows[hits.scores > -np.inf], rows[chosen]).all()
        truth = ExactIndex(vectors[chosen], rows=rows[chosen]).search(queries, 5)
        exact = kind in TRUE_SCORES and (scan_below > 0 or kind in ("exact", "Flat"))
        assert recall(hits, truth) >= (1 if exact else FLOORS[kind] - 0.05)
        if exact:
            assert (hits.rows == truth.rows).all()
            np.testing.assert_allclose(hits.scores, truth.scores, atol=1e-5)


def test_a_filter_that_lets_nothing_through_finds_nothing(kind, data):
    rows, vectors, queries = data
    index = make(kind, rows, vectors)
    for nothing in (np.array([9999]), np.array([], dtype=np.int64), []):
        assert index.search(queries, 5, nothing).counts.tolist() == [0] * len(queries)


def test_a_filter_after_removal_brings_nothing_back(kind, data):
    rows, vectors, queries = data
    index = make(kind, rows, vectors)
    index.remove(rows[:350])
    hits = index.search(queries, 50, rows[300:400])
    assert set(hits.rows[hits.scores > -np.inf].tolist()) == set(rows[350:400].tolist())
    index.remove(rows[350:])
    assert len(index) == 0
    assert index.search(queries, 5).counts.tolist() == [0] * len(queries)


def test_a_restart_changes_no_answer(kind, data, tmp_path):
    rows, vectors, queries = data
    index = make(kind, rows, vectors)
    index.remove(rows[5:90])
    index.add(rows[5:9] + 6000, vectors[5:9])
    again = reload(index, tmp_path / "deep" / "index")
    assert (len(again), again.dim, again.metric, again.kind) == (len(index), DIM, "cosine", index.kind)
    for allowed in (None, rows[::4]):
        assert same(index.search(queries, 10, allowed), again.search(queries, 10, allowed))
    again.add(rows[20:30], vectors[20:30])
    again.remove(rows[100:110])
    reload(again, tmp_path / "deep" / "index")
    names = json.loads((tmp_path / "deep" / "index" / ENGINE).read_text())["files"]
    assert len(list((tmp_path / "deep" / "index").iterdir())) == len(names) + 1


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), st.lists(st.integers(0, 60), min_size=1, max_size=15, unique=True)),
    max_size=6,
)


@pytest.mark.parametrize("kind", TRUE_SCORES)
@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS, allowed=st.lists(st.integers(0, 70), max_size=40), k=st.integers(1, 80))
def test_any_history_ends_in_the_rows_that_are_left(kind, operations, allowed, k):
    """Whole numbers: every score is exact, so the best scores are those of the definition, ties or not."""
    rng = np.random.default_rng(0)
    source = rng.integers(-3, 4, size=(61, 16)).astype(np.float32)
    queries = rng.integers(-3, 4, size=(3, 16)).astype(np.float32)
    left = set(range(20, 61))
    index = make(kind, np.arange(20, 61), source[20:], "inner_product")
    for what, numbers in operations:
        chosen = [n for n in numbers if (n in left) == (what == "remove")]
        if what == "add":
            index.add(np.array(chosen, dtype=np.int64), source[chosen])
            left |= set(chosen)
        else:
            index.remove(np.array(chosen, dtype=np.int64))
            left -= set(chosen)
    assert len(index) == len(left)
    hits = index.search(queries, k, allowed)
    through = np.array(sorted(left & set(allowed)), dtype=np.int64)
    truth = ExactIndex(source[through], "inner_product", through).search(queries, k) if len(through) else None
    assert hits.counts.tolist() == [min(k, len(through))] * 3
    if truth is not None and len(through):
        assert hits.scores.tolist() == truth.scores.tolist()
        assert hits.rows.tolist() == truth.rows.tolist()
    for q in range(3):
        rows, scores = index.search(queries, k).of(q)
        assert set(rows.tolist()) <= left
        assert scores.tolist() == (source[rows] @ queries[q]).tolist()


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(30)), st.integers(1, 40))
def test_the_order_of_adding_changes_nothing(order, k):
    rng = np.random.default_rng(1)
    source, queries = rng.integers(-2, 3, size=(30, 3)), rng.integers(-2, 3, size=(4, 3))
    order = np.array(order)
    one = ExactIndex(source, "inner_product")
    other = ExactIndex(source[order[:11]], "inner_product", order[:11])
    other.add(order[11:], source[order[11:]])
    assert same(one.search(queries, k), other.search(queries, k))


@pytest.mark.parametrize(
    ("rows", "vectors", "field", "words"),
    [
        ([1], np.ones((1, 15)), "vectors", "vectors have 15 dimensions, the index has 16"),
        ([1], np.full((1, DIM), np.nan), "vectors", "vectors: row 0 holds NaN"),
        ([1, 2], np.ones((1, DIM)), "rows", "rows: 2 row numbers for 1 vectors"),
        ([1, 1], np.ones((2, DIM)), "rows", "rows: row 1 is given twice"),
        ([-4], np.ones((1, DIM)), "rows", "rows must not be negative, got -4"),
        ([1.5], np.ones((1, DIM)), "rows", "rows must be a list of whole numbers"),
        ([[1]], np.ones((1, DIM)), "rows", r"rows must be a list of whole numbers \(n,\), got shape \(1, 1\)"),
        (None, np.ones((1, DIM)), "rows", "is in the index already; remove it first"),
    ],
)
@pytest.mark.parametrize("kind", ["exact", "Flat", "HNSW16", "IVF8,Flat"])
def test_unusable_additions_are_named_and_change_nothing(kind, data, rows, vectors, field, words):
    own, stored, queries = data
    index = make(kind, own, stored)
    before = index.search(queries, 5)
    with pytest.raises(InputError, match=words) as raised:
        index.add(own[3:4] if rows is None else np.array(rows), vectors)
    assert raised.value.field == field
    assert same(before, index.search(queries, 5))
    index.add(np.empty(0, dtype=np.int64), np.empty((0, DIM)))
    assert len(index) == 700


def test_an_unknown_row_cannot_be_removed(kind, data):
    rows, vectors, _ = data
    index = make(kind, rows, vectors)
    with pytest.raises(NotFoundError, match="rows: row 7777 is not in the index") as raised:
        index.remove(np.array([rows[0], 7777]))
    assert raised.value.field == "rows"
    with pytest.raises(InputError, match="is given twice"):
        index.remove(rows[[0, 0]])
    index.remove([])
    assert len(index) == 700
    with pytest.raises(InputError, match="allowed must be a list of whole numbers") as raised:
        index.search(vectors[:1], 1, np.array([0.5]))
    assert raised.value.field == "allowed"


@pytest.fixture
def saved(data, tmp_path):
    rows, vectors, _ = data
    directory = tmp_path / "index"
    make("IVF8,SQ8", rows, vectors).save(directory, "one")
    return directory


def test_an_index_of_another_encoder_or_engine_is_refused(saved, data, tmp_path):
    with pytest.raises(IndexMismatchError, match="holds vectors of encoder one, not of two") as raised:
        FaissIndex.load(saved, "two")
    assert raised.value.field == "fingerprint"
    with pytest.raises(CorruptFileError, match=r"engine\.json is of engine 'faiss', not 'exact'"):
        ExactIndex.load(saved, "one")
    with pytest.raises(NotFoundError, match="there is no index in"):
        FaissIndex.load(tmp_path / "nothing")


def test_a_file_that_was_cut_or_flipped_is_refused_before_faiss_reads_it(saved, monkeypatch):
    faiss = faiss_index.import_faiss()
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("faiss read a damaged file"))
    whole = {path: path.read_bytes() for path in saved.iterdir()}
    assert len(whole) == 4
    for path, data in whole.items():
        for broken in (data[:-2], data + b"\0", data[:99] + bytes([data[99] ^ 4]) + data[100:], b""):
            path.write_bytes(broken)
            with pytest.raises(CorruptFileError, match=path.name.replace(".", r"\.")):
                FaissIndex.load(saved, "one")
        path.unlink()
        with pytest.raises((CorruptFileError, NotFoundError)):
            FaissIndex.load(saved, "one")
        path.write_bytes(data)


def test_another_format_is_refused(saved):
    path = saved / ENGINE
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(CorruptFileError, match="of format 9, this release reads format 1"):
        FaissIndex.load(saved)


def test_files_of_two_saves_do_not_mix(data, tmp_path):
    rows, vectors, _ = data
    one, two = tmp_path / "one", tmp_path / "two"
    make("Flat", rows, vectors).save(one)
    make("Flat", rows[:9], vectors[:9]).save(two)
    tags = [json.loads((place / ENGINE).read_text())["tag"] for place in (one, two)]
    shutil.copy(two / f"{tags[1]}.rows.npy", one / f"{tags[0]}.rows.npy")
    with pytest.raises(CorruptFileError, match=r"rows\.npy has \d+ bytes instead of"):
        FaissIndex.load(one)


def test_a_save_that_fails_leaves_the_old_one(data, tmp_path):
    rows, vectors, queries = data
    index = make("Flat", rows, vectors)
    index.save(tmp_path / "index")
    names = sorted(path.name for path in (tmp_path / "index").iterdir())

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_engine(tmp_path / "index", "faiss", {}, {"rows.npy": fail})
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == names
    assert same(FaissIndex.load(tmp_path / "index").search(queries, 5), index.search(queries, 5))


def test_a_manifest_cannot_name_files_elsewhere(saved):
    values = json.loads((saved / ENGINE).read_text())
    del values["digest"]
    values["tag"] = "../0123456789abcdef"
    (saved / ENGINE).write_text(json.dumps({**values, "digest": record_digest(values)}))
    with pytest.raises(CorruptFileError, match="naming files outside of its folder"):
        FaissIndex.load(saved, "one")


def test_a_single_file_of_an_older_release_opens(data, tmp_path):
    _, vectors, queries = data
    faiss = faiss_index.import_faiss()
    graph = faiss.index_factory(DIM, "HNSW32", faiss.METRIC_INNER_PRODUCT)
    graph.add(unit(vectors))
    faiss.write_index(graph, str(tmp_path / "index.faiss"))
    index = load_index(tmp_path / "index.faiss", "HNSW32", "cosine")
    assert recall(index.search(queries, 10), ExactIndex(vectors).search(queries, 10)) > 0.97


@pytest.mark.parametrize("kind", ["HNSW16", "IVF8,PQ8x4fs,RFlat", "Flat", "IVF8,Flat"])
def test_what_removal_leaves_behind_is_told(kind, data):
    rows, vectors, _ = data
    index = make(kind, rows, vectors)
    index.remove(rows[:10])
    assert index.num_removed == (10 if kind in ("HNSW16", "IVF8,PQ8x4fs,RFlat") else 0)


@pytest.mark.parametrize(
    ("device", "kind", "error", "words"),
    [
        ("tpu", "Flat", InputError, "device must be cpu, cuda or cuda:N, got 'tpu'"),
        ("cpu", "cagra", InputError, "index 'cagra' is built on a GPU"),
        ("cuda", "Flat", LoadError, r"'\.\[gpu\]'.*faiss-gpu.*'\.\[gpu-cuvs\]'.*faiss-gpu-cuvs"),
        ("cuda:1", "auto", LoadError, r"device 'cuda:1' needs faiss for GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_named(data, device, kind, error, words):
    if hasattr(faiss_index.import_faiss(), "StandardGpuResources") and error is LoadError:
        pytest.skip("this faiss has GPU code")
    with pytest.raises(error, match=words) as raised:
        build_index(data[1], kind, device=device)
    assert raised.value.field == "device"
    assert isinstance(raised.value, error)
