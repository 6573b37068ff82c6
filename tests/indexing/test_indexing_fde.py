"""Fixed dimensional encodings: the published code's numbers, a slow twin, their invariants, what is refused."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import IndexMismatchError, InputError
from indexing.kernels.fde_kernel import partition_order
from indexing.late_interaction.fde import FdeEncoder
from indexing.late_interaction.fde_config import FdeConfig, check_same, draw_matrices
from tests.indexing.published_fde import count_sketch, normals, published_config, published_matrices
from tests.indexing.ragged_tokens import random_texts, stories, take, tokens_of, unit

GOLDEN = Path(__file__).parent.parent / "golden" / "muvera"
RUNS = {run["name"]: run for run in json.loads((GOLDEN / "index.json").read_text())}
PROJECTIONS = [("orthonormal", 6), ("sketch", 5), ("signs", 4), ("identity", 16)]


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def reference(name):
    run = RUNS[name]
    config = published_config(
        run["d"],
        repetitions=run["num_repetitions"],
        bits=run["num_simhash_projections"],
        inner_dim=run.get("p"),
        final_dim=256 if "final" in name else None,
        seed=run["seed"],
    )
    return FdeEncoder(config, matrices=published_matrices(config))


@pytest.mark.parametrize("name", RUNS)
def test_encodings_are_the_published_ones(name):
    numbers, encoder = golden(name), reference(name)
    found = encoder.encode_documents(numbers["doc_tokens"], numbers["doc_offsets"])
    np.testing.assert_allclose(found, numbers["doc_fde"], rtol=0, atol=5e-7)
    found = encoder.encode_queries(numbers["query_tokens"], numbers["query_offsets"])
    np.testing.assert_allclose(found, numbers["query_fde"], rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", RUNS)
def test_random_matrices_are_the_published_ones_bit_for_bit(name):
    numbers, matrices = golden(name), reference(name).matrices
    np.testing.assert_array_equal(matrices["simhash"], numbers["simhash"])
    assert ("inner" in matrices) == ("inner_projection" in numbers)
    if "inner" in matrices:
        np.testing.assert_array_equal(matrices["inner"], numbers["inner_projection"])


def test_streams_differ_by_seed_and_stay_in_range():
    assert abs(normals(3, 4000).mean()) < 0.05
    assert abs(normals(3, 4000).std() - 1) < 0.05
    assert not np.array_equal(normals(3, 8), normals(4, 8))
    columns, signs = count_sketch(5, 3000, 7)
    assert np.bincount(columns, minlength=7).min() > 350
    assert abs(signs.mean()) < 0.1
    assert set(signs) == {-1.0, 1.0}


def slow(encoder, texts, *, is_document, weights=None):
    """Fixed dimensional encodings by the definition, in float64, one partition after the other."""
    config, matrices = encoder.config, encoder.matrices
    out = []
    for number, tokens in enumerate(texts):
        tokens = tokens.astype(np.float64)
        line = []
        for r in range(config.repetitions):
            centre = matrices["centre"] if config.centred else 0
            bits = (tokens - centre) @ matrices["simhash"][r] > 0  # (t, k)
            projected = tokens @ matrices["inner"][r] if "inner" in matrices else tokens
            if weights is not None:
                projected = projected * weights[number][:, None]
            blocks = {}
            for partition in range(1 << config.bits):
                gray = partition ^ partition >> 1
                wanted = np.array([gray >> (config.bits - 1 - j) & 1 for j in range(config.bits)], dtype=bool)
                distance = (bits != wanted).sum(axis=1)
                inside = distance == 0
                if is_document and not inside.any() and config.fill:
                    blocks[partition] = projected[np.argmin(distance)]
                elif is_document and inside.any():
                    blocks[partition] = projected[inside].mean(axis=0)
                else:
                    blocks[partition] = projected[inside].sum(axis=0)
            line.extend(blocks[partition] for partition in range(1 << config.bits))
        full = np.concatenate(line)
        if config.final_dim is not None:
            final = np.zeros(config.final_dim)
            np.add.at(final, matrices["columns"], full * matrices["signs"])
            full = final
        out.append(full)
    return np.array(out)


@pytest.mark.parametrize(("projection", "inner_dim"), PROJECTIONS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("bits", "fill", "final_dim"), [(3, True, None), (0, True, None), (4, False, None), (2, True, 20)]
)
def test_the_kernel_is_the_definition(projection, inner_dim, centred, bits, fill, final_dim):
    texts = random_texts(23, longest=30)
    config = FdeConfig(16, 3, bits, inner_dim, projection, final_dim, centred, fill)
    encoder = FdeEncoder(config, np.concatenate(texts).mean(axis=0) if centred else None)
    tokens, rng = tokens_of(texts), np.random.default_rng(1)
    found = encoder.encode_documents(tokens.vectors, tokens.offsets)
    assert found.shape == (23, encoder.size)
    np.testing.assert_allclose(found, slow(encoder, texts, is_document=True), atol=2e-6)
    weights = [rng.random(len(rows)).astype(np.float32) for rows in texts]
    found = encoder.encode_queries(tokens.vectors, tokens.offsets, np.concatenate(weights))
    np.testing.assert_allclose(found, slow(encoder, texts, is_document=False, weights=weights), atol=5e-6)


def test_long_documents_and_batches_of_many_blocks_are_the_definition():
    texts = [
        unit(np.random.default_rng(place).standard_normal((size, 8))) for place, size in enumerate((1, 2500, 700, 3))
    ]
    encoder, tokens = FdeEncoder(FdeConfig(8, 2, 3, 4)), tokens_of(texts)
    found = encoder.encode_documents(tokens.vectors, tokens.offsets)
    np.testing.assert_allclose(found, slow(encoder, texts, is_document=True), atol=5e-6)


@pytest.mark.parametrize("bits", [0, 1, 2, 5, 8])
def test_partition_order_is_a_gray_code(bits):
    places = partition_order(bits)
    codes = np.argsort(places)
    assert sorted(places) == list(range(1 << bits))
    np.testing.assert_array_equal(codes, np.arange(1 << bits) ^ np.arange(1 << bits) >> 1)
    assert all(int(a ^ b).bit_count() == 1 for a, b in pairwise(codes))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_a_document_alone_is_a_document_in_a_batch_in_any_order(seed, count):
    texts = random_texts(count, longest=20, seed=seed)
    encoder, tokens = FdeEncoder(FdeConfig(16, 3, 3, 5)), tokens_of(texts)
    order = np.random.default_rng(seed).permutation(count)
    together = encoder.encode_documents(tokens.vectors, tokens.offsets)
    moved = take(tokens, order)
    np.testing.assert_allclose(encoder.encode_documents(moved.vectors, moved.offsets), together[order], atol=1e-6)
    for place, rows in enumerate(texts):
        alone = encoder.encode_documents(rows, np.array([0, len(rows)]))
        np.testing.assert_allclose(alone[0], together[place], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_the_order_of_tokens_matters_only_where_ties_are_filled(seed, count):
    rows = random_texts(1, longest=count, seed=seed)[0]
    moved = rows[np.random.default_rng(seed).permutation(len(rows))]
    whole = np.array([0, len(rows)])
    sums = FdeEncoder(FdeConfig(16, 3, 3, 5))
    np.testing.assert_allclose(sums.encode_queries(moved, whole), sums.encode_queries(rows, whole), atol=1e-5)
    means = FdeEncoder(FdeConfig(16, 3, 3, 5, fill=False))
    np.testing.assert_allclose(means.encode_documents(moved, whole), means.encode_documents(rows, whole), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_with_all_dimensions_a_filled_partition_is_a_token_so_the_score_is_at_most_maxsim(seed):
    query, document = random_texts(2, longest=12, seed=seed)
    encoder = FdeEncoder(FdeConfig(16, 2, 2, 16, "identity"))
    score = (
        encoder.encode_queries(query, np.array([0, len(query)]))[0]
        @ (encoder.encode_documents(document, np.array([0, len(document)]))[0])
    )
    assert score <= 2 * (query @ document.T).max(axis=1).sum() + 1e-4


@pytest.mark.parametrize(
    ("projection", "inner_dim"), [("orthonormal", 8), ("sketch", 8), ("signs", 8), ("identity", 32)]
)
@pytest.mark.parametrize("centred", [False, True])
def test_scores_rank_as_maxsim_does(projection, inner_dim, centred):
    documents, queries, scores = stories(300)
    config = FdeConfig(32, 20, 4, inner_dim, projection, centred=centred)
    encoder = FdeEncoder(config, documents.vectors.mean(axis=0) if centred else None)
    found = encoder.encode_queries(queries.vectors, queries.offsets) @ (
        encoder.encode_documents(documents.vectors, documents.offsets).T
    )
    best = np.argsort(-scores, axis=1)[:, :5]
    near = np.argsort(-found, axis=1)[:, :50]  # by chance 0.17, by mean tokens 0.33
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(best, near, strict=True)]) > 0.6


def test_the_projections_keep_dot_products_on_average():
    rng = np.random.default_rng(0)
    x, y = unit(rng.standard_normal((2, 64)))
    for projection in ("orthonormal", "sketch", "signs"):
        inner = draw_matrices(FdeConfig(64, 1000, 0, 8, projection))["inner"]
        products = np.einsum("rdp,d,rep,e->r", inner, x, inner, y, optimize=True)
        assert abs(products.mean() - x @ y) < 4 * products.std() / 1000**0.5


def test_an_encoder_comes_back_from_what_it_tells():
    tokens = tokens_of(random_texts(4))
    encoder = FdeEncoder(FdeConfig(16, 3, 3, 5, "sketch", 30, centred=True), tokens.vectors.mean(axis=0))
    again = FdeEncoder.from_saved(json.loads(json.dumps(encoder.describe())), encoder.matrices)
    assert again.config == encoder.config
    np.testing.assert_array_equal(
        again.encode_documents(tokens.vectors, tokens.offsets), encoder.encode_documents(tokens.vectors, tokens.offsets)
    )


def test_another_encoder_is_refused_with_what_differs():
    encoder, other = FdeEncoder(FdeConfig(16, 3, 3, 5)), FdeEncoder(FdeConfig(16, 3, 4, 5, seed=7))
    with pytest.raises(IndexMismatchError, match=r"bits \(index 3, requested 4\), seed \(index 42, requested 7\)"):
        check_same(encoder.describe()["config"], other.describe()["config"], "encoding")
    changed = {name: matrix.copy() for name, matrix in encoder.matrices.items()}
    changed["inner"][0, 0, 0] += 1e-3
    with pytest.raises(IndexMismatchError, match=r": inner \(index"):
        FdeEncoder.from_saved(encoder.describe(), changed)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dim": 0}, "dim"),
        ({"repetitions": 0}, "repetitions"),
        ({"repetitions": 2.0}, "repetitions"),
        ({"bits": -1}, "bits"),
        ({"bits": 16, "repetitions": 1000}, "bits"),
        ({"inner_dim": 17}, "inner_dim"),
        ({"projection": "identity"}, "inner_dim"),
        ({"projection": "fourier"}, "projection"),
        ({"final_dim": 0}, "final_dim"),
        ({"final_dim": 10_000}, "final_dim"),
        ({"seed": True}, "seed"),
    ],
)
def test_configs_that_make_no_sense_are_refused(change, field):
    with pytest.raises(InputError) as error:
        FdeConfig(**{"dim": 16, "repetitions": 2, "bits": 3, "inner_dim": 8, **change})
    assert error.value.field == field


def test_a_centred_encoder_needs_its_centre():
    for centre in (None, np.zeros(3), np.full(16, np.nan)):
        with pytest.raises(InputError, match="mean token"):
            FdeEncoder(FdeConfig(16, centred=True), centre)


def test_unusable_tokens_are_refused():
    encoder, rows = FdeEncoder(FdeConfig(16, 2, 2, 4)), np.ones((4, 16), dtype=np.float32)
    for offsets, message in (
        ([0, 2, 2, 4], r"documents\[1\] is empty"),
        ([0, 3, 2, 4], "descend"),
        ([0, 3], "go from 0"),
        ([1, 4], "go from 0"),
        ([], "go from 0"),
    ):
        with pytest.raises(InputError, match=message):
            encoder.encode_documents(rows, np.array(offsets))
    with pytest.raises(InputError, match="8 dimensions"):
        encoder.encode_documents(rows[:, :8], np.array([0, 4]))
    rows[2, 3] = np.nan
    with pytest.raises(InputError, match="row 2 holds NaN"):
        encoder.encode_queries(rows, np.array([0, 4]))
    with pytest.raises(InputError, match="weights"):
        encoder.encode_queries(np.ones((4, 16)), np.array([0, 4]), np.ones(3))
    assert encoder.encode_documents(np.empty((0, 16)), np.array([0])).shape == (0, 32)


def test_arrays_that_cannot_be_written_are_read():
    rows = np.ones((4, 16), dtype=np.float32)
    rows.flags.writeable = False
    assert FdeEncoder(FdeConfig(16, 2, 2, 4)).encode_documents(rows, np.array([0, 4])).shape == (1, 32)
