"""The compiled kernels, compared with NumPy."""

import numpy as np
import pytest

from indexing.kernels.buffers import scratch_buffer
from indexing.kernels.fde_kernel import assign_partitions, count_sketch, nearest_tokens
from indexing.kernels.jit import compiled
from indexing.kernels.simd import LANES, add_scaled, divide, maximum_of_rows
from indexing.kernels.token_kernels import add_residuals, copy_rows, scale_rows
from indexing.late_interaction.lemur_features import maxima
from indexing.late_interaction.maxsim import sum_of_maxima

STARTS, STOPS = np.array([4, 0, 9]), np.array([9, 2, 10])
ROWS = np.concatenate([np.arange(start, stop) for start, stop in zip(STARTS, STOPS, strict=True)])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@compiled
def simd_operations(target, source, scale, divisor, stride):
    add_scaled(target, 1, source, 3, scale)
    divide(target, 9, divisor)
    maximum_of_rows(target, 17, source, 2, stride)


def test_simd_operations_are_bit_identical_to_scalar_ones(rng):
    target, source = rng.standard_normal(32, np.float32), rng.standard_normal(200, np.float32)
    scale, divisor, stride = np.float32(1 / 3), np.float32(7), 11
    expected = target.copy()
    expected[1:9] += scale * source[3:11]
    expected[9:17] /= divisor
    rows = np.stack([source[2 + row * stride :][:LANES] for row in range(LANES)])
    expected[17:25] = np.maximum(expected[17:25], rows.max(axis=0))
    simd_operations(target, source, scale, divisor, stride)
    np.testing.assert_array_equal(target, expected)


def test_rows_of_scattered_documents_are_copied_and_scaled(rng):
    values, out = rng.standard_normal((12, 5), np.float32), np.empty((len(ROWS), 5), np.float32)
    copy_rows(values, STARTS, STOPS, out)
    np.testing.assert_array_equal(out, values[ROWS])
    integers, scales = rng.integers(-127, 128, (12, 5)).astype(np.int8), rng.random(12, np.float32)
    scale_rows(integers, scales, STARTS, STOPS, out)
    np.testing.assert_array_equal(out, scales[ROWS, None] * integers[ROWS].astype(np.float32))


def test_residuals_are_added_to_centroids_and_normalised(rng):
    codes, entries = rng.integers(0, 256, (12, 4)).astype(np.uint8), rng.integers(0, 3, 12).astype(np.int32)
    centroids, table = rng.standard_normal((3, 8), np.float32), rng.standard_normal((256, 2), np.float32)
    out = np.empty((len(ROWS), 8), np.float32)
    add_residuals(codes, entries, centroids, table, STARTS, STOPS, out)
    expected = centroids[entries[ROWS]] + table[codes[ROWS]].reshape(len(ROWS), 8)
    np.testing.assert_allclose(out, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("width", [1, 8, 19])
def test_maxima_over_documents(rng, width):
    offsets, weights = np.array([7, 8, 17, 40]), rng.random(width, np.float32)
    scores = rng.standard_normal((33, width), np.float32)
    expected = np.maximum.reduceat(scores, offsets[:-1] - 7, axis=0)
    out = np.empty((3, width), np.float32)
    maxima(scores, offsets, out)
    np.testing.assert_array_equal(out, expected)
    sums = np.empty(3, np.float32)
    sum_of_maxima(scores, offsets, weights, sums)
    np.testing.assert_allclose(sums, expected @ weights, rtol=1e-5)


def test_partitions_are_the_bits_of_products_above_thresholds(rng):
    products, thresholds = rng.standard_normal((9, 12), np.float32), rng.standard_normal((4, 3), np.float32)
    codes = np.empty((9, 3), np.int32)
    assign_partitions(products, thresholds, codes)
    bits = products.reshape(9, 4, 3) > thresholds
    np.testing.assert_array_equal(codes, (bits * np.array([8, 4, 2, 1])[None, :, None]).sum(axis=1))


def test_each_partition_gets_the_first_of_its_nearest_tokens(rng):
    k, step = 4, 1 << 32
    keys = np.full(1 << k, step * (k + 1))
    occupied = rng.choice(1 << k, 5, replace=False)
    keys[occupied] = rng.permutation(5)
    distances = np.array([[int(a ^ b).bit_count() for b in range(1 << k)] for a in range(1 << k)])
    expected = (keys + step * distances).min(axis=1)
    nearest_tokens(k, keys)
    np.testing.assert_array_equal(keys, expected)


def test_count_sketch_adds_signed_coordinates(rng):
    encodings, columns = rng.standard_normal((3, 20), np.float32), rng.integers(0, 6, 20)
    signs, out = rng.choice([-1, 1], 20).astype(np.float32), np.empty((3, 6), np.float32)
    count_sketch(encodings, columns, signs, out)
    expected = np.zeros((3, 6), np.float32)
    np.add.at(expected.T, columns, (signs * encodings).T)
    np.testing.assert_array_equal(out, expected)


def test_a_buffer_is_reused_until_a_larger_one_is_needed():
    small = scratch_buffer("test", 4, 3)
    assert small.shape == (4, 3)
    assert np.shares_memory(small, scratch_buffer("test", 2, 5))
    assert not np.shares_memory(small, scratch_buffer("other", 4, 3))
    assert scratch_buffer("test", 40, 3).shape == (40, 3)
