"""Searches on a GPU against the CPU's; with faiss-gpu or faiss-gpu-cuvs and a CUDA device alone."""

import numpy as np
import pytest

from embedserve.errors import InputError
from indexing import ExactIndex, FaissIndex, build_index
from indexing.engines.faiss_index import import_faiss

TOLERANCE = 1e-3  # what `indexing.engines.faiss_gpu.GpuCopy` states, for unit vectors

faiss = import_faiss()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0, reason="faiss sees no GPU"
    ),
]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(6)
    centres = rng.normal(size=(50, 64))
    near = [centres[rng.integers(0, 50, n)] + 0.5 * rng.normal(size=(n, 64)) for n in (20_000, 100)]
    return near[0].astype(np.float32), near[1].astype(np.float32)


def recall(hits, truth):
    return np.mean([len(set(hits.of(q)[0]) & set(truth.of(q)[0])) / 10 for q in range(len(truth))])


@pytest.mark.parametrize("kind", ["auto", "flat", "IVF64,Flat", "IVF64,SQ8", "PCA32,IVF64,Flat"])
def test_a_gpu_finds_what_the_cpu_finds(data, kind, tmp_path):
    vectors, queries = data
    index = build_index(vectors, kind, device="cuda")
    index.save(tmp_path)
    one, other = index.search(queries, 10), FaissIndex.load(tmp_path).search(queries, 10)
    assert recall(one, other) >= 0.99
    np.testing.assert_allclose(one.scores, other.scores, atol=TOLERANCE)
    again = FaissIndex.load(tmp_path, device="cuda").search(queries, 10)
    np.testing.assert_allclose(again.scores, one.scores, atol=TOLERANCE)


def test_filters_removal_and_many_hits_keep_their_answers(data):
    vectors, queries = data
    index, truth = build_index(vectors, "flat", device="cuda"), ExactIndex(vectors)
    for part in (index, truth):
        part.remove(np.arange(0, 20_000, 7))
        part.add(np.array([7]), vectors[7:8])
    for k, allowed in ((10, None), (10, np.arange(0, 20_000, 3)), (3000, None)):
        one, other = index.search(queries, k, allowed), truth.search(queries, k, allowed)
        assert one.counts.tolist() == other.counts.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["hnsw", "IVF64,PQ32x4fs,RFlat", "RaBitQ"])
def test_what_has_no_gpu_form_is_named(data, kind):
    with pytest.raises(InputError, match="cannot be moved to a GPU"):
        build_index(data[0], kind, device="cuda")


@pytest.mark.skipif(not hasattr(faiss, "GpuIndexCagra"), reason="this faiss has no cuVS")
def test_cagra_finds_most_on_the_gpu_and_as_a_graph_on_the_cpu(data, tmp_path):
    vectors, queries = data
    index = build_index(vectors, "cagra", device="cuda")
    index.save(tmp_path)
    truth = ExactIndex(vectors).search(queries, 10)
    assert recall(index.search(queries, 10), truth) >= 0.95
    assert recall(FaissIndex.load(tmp_path).search(queries, 10), truth) >= 0.95
