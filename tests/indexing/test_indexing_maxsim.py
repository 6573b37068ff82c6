"""The MaxSim kernel: a slow twin, other number types, invariants, and torch's form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import InputError
from embedserve.scoring import maxsim
from indexing.kernels.float16 import HAS_INSTRUCTION, widen_by_bits, widen_by_instruction, widen_rows
from indexing.late_interaction.maxsim import BLOCK, maxsim_flat, maxsim_torch
from tests.indexing.ragged_tokens import random_texts, take, tokens_of, unit


def slow(query, texts, weights=None):
    """MaxSim in three loops."""
    scores = []
    for rows in texts:
        total = 0.0
        for place, token in enumerate(query):
            best = max(float(np.dot(token.astype(np.float64), other)) for other in rows)
            total += best * (1.0 if weights is None else float(weights[place]))
        scores.append(total)
    return np.array(scores)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([1, 3, 8, 16, 33]))
def test_scores_are_the_definition(seed, count, dim):
    *texts, query = random_texts(count + 1, dim, seed=seed)
    weights = np.random.default_rng(seed).standard_normal(len(query)).astype(np.float32)
    documents = tokens_of(texts)
    np.testing.assert_allclose(maxsim_flat(query, documents.vectors, documents.offsets), slow(query, texts), atol=1e-5)
    found = maxsim_flat(query, documents.vectors, documents.offsets, weights)
    np.testing.assert_allclose(found, slow(query, texts, weights), atol=1e-5)
    np.testing.assert_allclose(found, maxsim(query, documents, weights), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_documents_and_tokens_may_come_in_any_order(seed, count):
    *texts, query = random_texts(count + 1, seed=seed)
    rng, documents = np.random.default_rng(seed), tokens_of(texts)
    order = rng.permutation(count)
    scores = maxsim_flat(query, documents.vectors, documents.offsets)
    moved = take(documents, order)
    np.testing.assert_allclose(maxsim_flat(query, moved.vectors, moved.offsets), scores[order], atol=1e-6)
    shuffled = tokens_of([rows[rng.permutation(len(rows))] for rows in texts])
    again = maxsim_flat(query[rng.permutation(len(query))], shuffled.vectors, shuffled.offsets)
    np.testing.assert_allclose(again, scores, atol=1e-5)


def test_documents_of_many_blocks_and_longer_than_one():
    rng = np.random.default_rng(0)
    texts = [unit(rng.standard_normal((size, 4))) for size in (5, BLOCK + 3, 1, BLOCK, 7, 2 * BLOCK, 2)]
    query, documents = unit(rng.standard_normal((3, 4))), tokens_of(texts)
    expected = [(query @ rows.T).max(axis=1).sum() for rows in texts]
    np.testing.assert_allclose(maxsim_flat(query, documents.vectors, documents.offsets), expected, atol=1e-5)


def test_maxima_below_zero_are_kept():
    query = np.array([[1, 0]], dtype=np.float32)
    rows = np.array([[-0.5, 0.5], [-1, 0], [-0.25, 1]], dtype=np.float32)
    assert maxsim_flat(query, rows, np.array([0, 2, 3])).tolist() == [-0.5, -0.25]


@pytest.mark.parametrize("widen", [widen_rows, widen_by_bits, widen_by_instruction])
def test_half_precision_is_widened_exactly(widen):
    if widen is widen_by_instruction and not HAS_INSTRUCTION:
        pytest.skip("this processor has no instruction for it")
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))].reshape(-1, 64)  # every finite float16, subnormals too
    out = np.empty(finite.shape, dtype=np.float32)
    widen(finite, np.array([0, 100]), np.array([100, len(finite)]), out)
    np.testing.assert_array_equal(out, finite.view(np.float16).astype(np.float32))


def test_half_precision_scores_are_those_of_the_rounded_rows():
    *texts, query = random_texts(40, 32)
    documents = tokens_of(texts)
    halves = documents.vectors.astype(np.float16)
    expected = maxsim_flat(query, halves.astype(np.float32), documents.offsets)
    np.testing.assert_array_equal(maxsim_flat(query, halves, documents.offsets), expected)


def agree(device):
    *texts, query = random_texts(40, 32)
    weights = np.linspace(0, 1, len(query), dtype=np.float32)
    documents = tokens_of(texts)
    given = [torch.from_numpy(values).to(device) for values in (query, documents.vectors, documents.offsets, weights)]
    found = maxsim_torch(*given[:3]).cpu().numpy()
    np.testing.assert_allclose(found, maxsim_flat(query, documents.vectors, documents.offsets), atol=1e-4)
    found = maxsim_torch(*given).cpu().numpy()
    np.testing.assert_allclose(found, maxsim_flat(query, documents.vectors, documents.offsets, weights), atol=1e-4)
    halves = maxsim_torch(given[0].half(), given[1].half(), given[2]).cpu().numpy()
    np.testing.assert_allclose(halves, maxsim_flat(query, documents.vectors, documents.offsets), atol=2e-2)


def test_torch_agrees():
    agree("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees():
    agree("cuda")


def test_what_makes_no_sense_is_refused():
    rows, query = np.ones((4, 8), dtype=np.float32), np.ones((2, 8), dtype=np.float32)
    with pytest.raises(InputError, match=r"documents\[1\] is empty"):
        maxsim_flat(query, rows, np.array([0, 2, 2, 4]))
    with pytest.raises(InputError, match="6 dimensions"):
        maxsim_flat(query[:, :6], rows, np.array([0, 4]))
    with pytest.raises(InputError, match="NaN"):
        maxsim_flat(query * np.nan, rows, np.array([0, 4]))
    with pytest.raises(InputError, match="float32 or float16"):
        maxsim_flat(query, rows.astype(np.int32), np.array([0, 4]))
    with pytest.raises(InputError, match="weights"):
        maxsim_flat(query, rows, np.array([0, 4]), np.ones(3))
