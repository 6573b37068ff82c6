"""Shards searched in parallel: the hits of brute force over all of them."""

from contextlib import closing

import numpy as np
import pytest

from embedserve.errors import InputError
from indexing import ExactIndex
from indexing.collections.catalog import collection_path
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.shard_search import LocalSearcher, merge_hits, parts_of, search_part, spread
from tests.indexing.bag import BagEncoder, make_documents


@pytest.fixture
def shards(data_dir):
    run_job(make_documents(95), BagEncoder(), collection_path(data_dir, "d"), job_path(data_dir, "d"), JobOptions(10))
    return sorted(path.parent for path in data_dir.rglob("shard.json"))


def test_processes_find_what_brute_force_finds(shards):
    everything = ExactIndex(np.concatenate([np.load(folder / "dense.npy") for folder in shards]))
    queries = BagEncoder().embed([f"text number{n} about topic{n % 7}" for n in range(20)]).vectors
    for k in (1, 7, 200):
        expected = everything.search(queries, k)
        with closing(LocalSearcher(shards, workers=2)) as searcher:
            found = searcher.search(queries, k)
        parts, _ = parts_of(shards)
        apart = merge_hits([search_part(each, queries, k) for each in spread(parts, 4)], min(k, 95))
        for hits in (found, apart):
            np.testing.assert_allclose(hits.scores, expected.scores, atol=1e-6)
            np.testing.assert_array_equal(hits.counts, expected.counts)
            assert (hits.rows == expected.rows).mean() > 0.99  # equal scores may change places by a rounding


def test_nothing_to_search_and_nobody_to_do_it_are_refused(shards):
    with pytest.raises(InputError, match="no shards with rows"):
        LocalSearcher([])
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        LocalSearcher(shards, workers=0)
