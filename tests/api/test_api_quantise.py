"""Quantised vectors: formulas, and the same bits as sentence-transformers."""

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from api.inference.quantise import VECTOR_TYPES, quantise


@pytest.fixture(scope="module")
def vectors():
    made = np.random.default_rng(0).standard_normal((7, 24)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["binary", "ubinary"])
def test_bits_equal_those_of_sentence_transformers(vectors, kind):
    found = quantise(vectors, kind)
    wanted = quantize_embeddings(vectors, precision=kind)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_bits_are_signs_from_the_highest_bit_padded_with_zeros():
    row = np.array([[1, -1, 0, 1, -1, -1, -1, 1, 1, -1]], dtype=np.float32)
    assert quantise(row, "ubinary").tolist() == [[0b10010001, 0b10000000]]
    assert quantise(row, "binary").tolist() == [[0b10010001 - 128, 0]]


def test_int8_approximates_vectors_and_cosines(vectors):
    found = quantise(vectors, "int8")
    assert found.dtype == np.int8
    np.testing.assert_allclose(found / 127, vectors, atol=1 / 254 + 1e-6)
    wide = found.astype(np.int32)
    np.testing.assert_allclose(wide @ wide.T / 127**2, vectors @ vectors.T, atol=0.02)
    np.testing.assert_array_equal(quantise(vectors, "uint8"), wide + 128)
    assert quantise(vectors, "uint8").dtype == np.uint8


def test_the_bounds_of_the_range():
    ends = np.array([[1, -1, 0, 1.0000001]], dtype=np.float32)
    assert quantise(ends, "int8").tolist() == [[127, -127, 0, 127]]
    assert quantise(ends, "uint8").tolist() == [[255, 1, 128, 255]]


@pytest.mark.parametrize("kind", VECTOR_TYPES)
def test_rows_are_independent_and_no_rows_give_no_rows(vectors, kind):
    together = quantise(vectors, kind)
    assert together.flags.c_contiguous
    np.testing.assert_array_equal(np.vstack([quantise(vectors[[row]], kind) for row in range(7)]), together)
    assert quantise(vectors[:0], kind).shape == (0, together.shape[1])
