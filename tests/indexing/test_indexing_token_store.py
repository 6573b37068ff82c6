"""The token store: every codec, adding and removing, files, and what is refused."""

import json
from mmap import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import CorruptFileError, IndexMismatchError, InputError, NotFoundError
from embedserve.scoring import maxsim
from indexing.late_interaction.token_codecs import CODECS
from indexing.late_interaction.token_residuals import ResidualCodec, byte_table, nearest, spherical_kmeans
from indexing.late_interaction.token_store import TokenStore
from indexing.storage.growing_array import GrowingArray
from tests.indexing.ragged_tokens import random_texts, take, tokens_of, unit

# The largest error of a number of unit vectors in 16 dimensions, and bytes for each vector.
LIMITS = {"float32": (0, 64), "float16": (3e-4, 32), "int8": (4e-3, 20), "residual4": (0.2, 12), "residual2": (0.5, 8)}


def clustered(count, dim=16, seed=0):
    """Texts whose tokens lie around 30 directions, as real ones lie around words."""
    rng = np.random.default_rng(seed)
    words = unit(rng.standard_normal((30, dim)))
    return [
        unit(words[rng.integers(0, 30, size)] + 0.1 * rng.standard_normal((size, dim)))
        for size in rng.integers(3, 20, count)
    ]


@pytest.fixture
def documents():
    return tokens_of(clustered(200))


@pytest.fixture
def query():
    return random_texts(1, seed=9)[0]


@pytest.mark.parametrize("codec", CODECS)
def test_documents_come_back_in_any_order(codec, documents):
    store = TokenStore(16, codec)
    store.add(np.arange(200) * 3, documents)
    error, size = LIMITS[codec]
    assert len(store) == 200
    assert store.num_bytes == size * store.num_tokens == size * len(documents.vectors)
    order = np.random.default_rng(0).permutation(200)[:70]
    found, expected = store.read(order), take(documents, order)
    assert np.abs(found.vectors - expected.vectors).max() <= error
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)


@pytest.mark.parametrize("codec", CODECS)
def test_scores_are_maxsim_with_what_is_kept(codec, documents, query):
    store = TokenStore(16, codec)
    store.add(np.arange(200), documents)
    places, weights = np.array([5, 199, 0, 5, 17]), np.linspace(0.5, 2, len(query))
    kept = store.read(places)
    np.testing.assert_allclose(store.score(query, places), maxsim(query, kept), atol=1e-5)
    np.testing.assert_allclose(store.score(query, places, weights), maxsim(query, kept, weights), atol=1e-5)
    exact = maxsim(query, documents)
    assert np.corrcoef(store.score(query, store.positions), exact)[0, 1] > 0.98
    assert store.score(query, np.empty(0, dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("codec", CODECS)
def test_saved_and_loaded_it_is_the_same_and_grows_on(codec, documents, query, tmp_path):
    store = TokenStore(16, codec)
    store.add(np.arange(150), take(documents, range(150)))
    store.remove(np.array([3, 77]))
    store.save(tmp_path / "saved", "abc")
    loaded = TokenStore.load(tmp_path / "saved", "abc")
    np.testing.assert_array_equal(loaded.positions, store.positions)
    np.testing.assert_array_equal(loaded.score(query, loaded.positions), store.score(query, store.positions))
    for each in (store, loaded):
        each.add(np.arange(150, 200), take(documents, range(150, 200)))
    np.testing.assert_array_equal(loaded.score(query, loaded.positions), store.score(query, store.positions))
    assert len(loaded) == 198


def test_what_is_loaded_is_mapped_and_not_read(documents, tmp_path):
    store = TokenStore(16)
    store.add(np.arange(200), documents)
    store.save(tmp_path)
    owner = TokenStore.load(tmp_path)._arrays["values"].values
    assert not owner.flags.writeable
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap)


def test_in_files_without_names_it_is_the_same(documents, query, tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    stores = [TokenStore(16), TokenStore(16, folder=folder)]
    for store in stores:
        for start in range(0, 200, 40):
            store.add(np.arange(start, start + 40), take(documents, range(start, start + 40)))
            store.score(query, store.positions)
    np.testing.assert_array_equal(*[store.score(query, store.positions) for store in stores])
    assert list(folder.iterdir()) == []
    stores[1].save(tmp_path / "saved")
    loaded = TokenStore.load(tmp_path / "saved", folder=folder)
    loaded.add(np.array([900]), take(documents, [4]))
    assert loaded.score(query, np.array([200]))[0] == stores[0].score(query, np.array([4]))[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.sampled_from(["add", "remove"]), min_size=1, max_size=12))
def test_it_holds_what_was_added_and_not_removed(seed, steps):
    rng, store, expected = np.random.default_rng(seed), TokenStore(16, "float32"), {}
    for step in steps:
        if step == "add":
            texts = random_texts(int(rng.integers(0, 5)), seed=int(rng.integers(1 << 30)))
            rows = rng.permutation(1000)[: len(texts)]
            rows = np.array([row for row in rows if row not in expected], dtype=np.int64)
            texts = texts[: len(rows)]
            if texts:
                store.add(rows, tokens_of(texts))
                expected.update(zip(rows.tolist(), texts, strict=True))
        elif expected:
            gone = rng.permutation(sorted(expected))[: rng.integers(1, len(expected) + 1)]
            store.remove(gone)
            for row in gone.tolist():
                del expected[row]
        assert len(store) == len(expected)
        assert store.table.rows[store.positions].tolist() == sorted(expected)
        for place in store.positions:
            found = store.read(np.array([place]))[0]
            np.testing.assert_array_equal(found, expected[int(store.table.rows[place])])


def test_a_row_that_was_removed_may_come_again(documents, query):
    store = TokenStore(16)
    store.add(np.arange(10), take(documents, range(10)))
    store.remove(np.array([4]))
    store.add(np.array([4]), take(documents, [50]))
    place = store.find(np.array([4]))
    assert store.score(query, place)[0] == pytest.approx(maxsim(query, take(documents, [50]))[0], abs=1e-3)


def test_like_tokens_are_pooled(query):
    rng = np.random.default_rng(0)
    words = [unit(rng.standard_normal((size, 16))) for size in rng.integers(2, 9, 60)]
    likes = [unit(np.repeat(rows, 3, axis=0) + 0.02 * rng.standard_normal((3 * len(rows), 16))) for rows in words]
    documents = tokens_of([np.concatenate([rows[:1], like]) for rows, like in zip(words, likes, strict=True)])
    store = TokenStore(16, "float32", pooling=3)
    store.add(np.arange(60), documents)
    kept = store.read(store.positions)
    assert np.diff(kept.offsets).tolist() == [len(rows) + 1 for rows in words]
    np.testing.assert_allclose(np.linalg.norm(kept.vectors, axis=1), 1, atol=1e-5)
    first = kept.vectors[kept.offsets[:-1]]
    np.testing.assert_allclose(first, documents.vectors[documents.offsets[:-1]], atol=1e-6)
    np.testing.assert_array_equal(kept.token_ids[kept.offsets[:-1]], documents.token_ids[documents.offsets[:-1]])
    assert np.count_nonzero(kept.token_ids >= 0) == 60
    np.testing.assert_allclose(store.score(query, store.positions), maxsim(query, documents), atol=0.08 * len(query))


def test_residuals_are_nearer_with_more_bits_and_centroids_nearer_than_none():
    rows = np.concatenate(clustered(300))
    errors = []
    for bits in (2, 4):
        codec = ResidualCodec(16, bits)
        codec.train(rows)
        out = np.empty_like(rows)
        codec.decode(codec.encode(rows), np.array([0]), np.array([len(rows)]), out)
        errors.append(np.square(out - rows).sum(axis=1).mean())
    centroids = spherical_kmeans(rows, 30)
    coarse = np.square(centroids[nearest(rows, centroids)] - rows).sum(axis=1).mean()
    assert errors[1] < errors[0] / 4 < coarse / 8


def test_codes_are_read_as_they_are_written():
    for bits in (2, 4):
        levels = np.arange(1 << bits, dtype=np.float32)
        table = byte_table(levels, bits)
        shifts = np.arange(0, 8, bits)
        np.testing.assert_array_equal((table.astype(np.int64) << shifts).sum(axis=1), np.arange(256))


def test_few_tokens_train_a_residual_codec():
    store, rows = TokenStore(16, "residual4"), random_texts(1, seed=3)[0]
    store.add(np.array([0]), tokens_of([rows]))
    assert np.abs(store.read(np.array([0])).vectors - rows).max() < 1e-6


@pytest.mark.parametrize("name", ["values", "offsets", "ids", "rows", "alive", "scales"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "gone"])
def test_a_damaged_file_is_refused_by_name(documents, tmp_path, name, damage):
    store = TokenStore(16, "int8")
    store.add(np.arange(200), documents)
    store.save(tmp_path)
    (path,) = tmp_path.glob(f"*.{name}.npy")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-1], "longer": data + b"0", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    with pytest.raises(CorruptFileError, match=rf"{name}\.npy .*(build|rebuild|restore)"):
        TokenStore.load(tmp_path)


def test_files_that_do_not_fit_each_other_are_refused(documents, tmp_path):
    store = TokenStore(16)
    store.add(np.arange(200), documents)
    store._ids.append(np.zeros(1, dtype=np.int32))
    store.save(tmp_path)
    with pytest.raises(CorruptFileError, match="contradict"):
        TokenStore.load(tmp_path)


def test_another_encoder_and_nothing_at_all_are_refused(documents, tmp_path):
    store = TokenStore(16)
    store.add(np.arange(200), documents)
    store.save(tmp_path, "one")
    with pytest.raises(IndexMismatchError, match=r"one.*other"):
        TokenStore.load(tmp_path, "other")
    with pytest.raises(NotFoundError):
        TokenStore.load(tmp_path / "nowhere")
    assert json.loads((tmp_path / "engine.json").read_text())["fields"]["codec"] == "float16"


def test_what_cannot_be_kept_is_refused_and_changes_nothing(documents):
    store = TokenStore(16)
    store.add(np.arange(5), take(documents, range(5)))
    one = take(documents, [7])
    broken = take(documents, [7])
    broken.vectors[1, 2] = np.inf
    large = tokens_of([np.full((2, 16), 1e5)])
    empty = tokens_of([one.vectors, np.empty((0, 16))])
    narrow = tokens_of([np.ones((2, 8))])
    short_ids = take(documents, [7])
    object.__setattr__(short_ids, "token_ids", np.zeros(1))
    for rows, tokens, message, field in (
        ([2], one, "row 2 is in the index already", "rows"),
        ([8, 8], take(documents, [7, 8]), "row 8 is given twice", "rows"),
        ([8, 9], one, "2 row numbers for 1", "rows"),
        ([-1], one, "negative", "rows"),
        ([8], broken, "row 1 holds NaN or infinity", "documents"),
        ([8], large, "65,504", "documents"),
        ([8, 9], empty, r"documents\[1\] is empty", "documents[1]"),
        ([8], narrow, "8 dimensions", "documents"),
        ([8], short_ids, "token_ids", "token_ids"),
    ):
        with pytest.raises(InputError, match=message) as error:
            store.add(np.array(rows), tokens)
        assert error.value.field == field
    with pytest.raises(NotFoundError, match="row 9"):
        store.remove(np.array([1, 9]))
    assert len(store) == 5
    with pytest.raises(InputError, match="unit length"):
        TokenStore(16, "residual2").add(np.array([0]), tokens_of([np.ones((2, 16))]))


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="did you mean 'float16'"):
        TokenStore(16, "float61")
    with pytest.raises(InputError, match="width"):
        TokenStore(15, "residual2")
    for pooling in (0, 1.5, True):
        with pytest.raises(InputError, match="pooling"):
            TokenStore(16, pooling=pooling)


def test_growing_arrays_keep_what_they_held(tmp_path):
    for folder in (None, tmp_path):
        array = GrowingArray(np.arange(6, dtype=np.int32).reshape(3, 2), folder)
        before = array.values
        for _ in range(5):
            array.append(np.full((4, 2), 7))
        array.append(np.empty((0, 2)))
        assert len(array) == 23
        np.testing.assert_array_equal(array.values[:3], before)
        assert (array.values[3:] == 7).all()
