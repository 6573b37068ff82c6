"""Fusion of rankings, and exact search by sparse vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

from embedserve.errors import InputError
from embedserve.types import SparseEmbeddings
from indexing.fusion import as_impacts, min_max_fusion, sparse_scores

GOLDEN = Path(__file__).parent.parent / "golden" / "promptreps" / "index.json"


def test_fusion_is_the_published_one():
    run = next(run for run in json.loads(GOLDEN.read_text()) if run["name"] == "fusion")
    dense, sparse = (ranking["q"]["docs"] for ranking in run["runs"])
    assert min_max_fusion(dense, sparse, run["weights"][0]) == pytest.approx(run["fused"]["q"])


def test_best_is_1_worst_is_0_and_the_order_is_by_score():
    fused = min_max_fusion({"a": 3.0, "b": 2.0, "c": -1.0}, {"b": 5.0, "d": 4.0}, alpha=1)
    assert list(fused) == ["a", "b", "c", "d"]
    assert (fused["a"], fused["c"]) == (1, 0)
    assert min_max_fusion({}, {"only": 7.0}) == {"only": 0.0}
    mixed = min_max_fusion({"a": 3.0, "b": 2.0, "c": -1.0}, {"b": 5.0, "d": 4.0}, alpha=0.3)
    assert all(0 <= score <= 1 for score in mixed.values())
    assert list(mixed.values()) == sorted(mixed.values(), reverse=True)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(InputError) as caught:
        min_max_fusion({}, {}, alpha)
    assert caught.value.field == "alpha"


def test_sparse_scores_are_dot_products():
    rng = np.random.default_rng(0)

    def random(count):
        counts = rng.integers(0, 6, count)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        indices = np.concatenate([np.sort(rng.choice(20, size, replace=False)) for size in counts]).astype(np.int64)
        values = rng.random(offsets[-1]).astype(np.float32)
        return SparseEmbeddings(indices, values, offsets, counts, counts > 99)

    queries, documents = random(4), random(9)
    expected = [
        [sum(w * documents[d].get(entry, 0) for entry, w in queries[q].items()) for d in range(9)] for q in range(4)
    ]
    np.testing.assert_allclose(sparse_scores(queries, documents), expected, rtol=1e-5)


def test_impacts_round_half_to_even():
    assert as_impacts(np.array([0.005, 0.015, 1.234])).tolist() == [0, 2, 123]
