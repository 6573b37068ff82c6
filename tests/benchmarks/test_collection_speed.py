"""Collections: each part of the benchmark at a tiny size, what it counts and never how long that takes."""

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs faiss: pip install 'embedserve[cpu]'")

from benchmarks.indexes import collection_speed as speed
from benchmarks.indexes.collection_stores import collection_store
from indexing import Collection
from indexing.collections.catalog import collection_path

COUNT = 400
VECTORS, RANKS = speed.directions(COUNT), np.random.default_rng(2).permutation(COUNT)
QUERIES = speed.directions(10, seed=1)


def table(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def test_every_store_is_written_or_is_not_installed(monkeypatch, capsys):
    def missing(folder, vectors):
        raise ImportError("no such store")

    own = ("append + fsync", "embedserve")
    monkeypatch.setattr(speed, "STORES", {name: speed.STORES[name] for name in own} | {"other": missing})
    speed.measure_writes(VECTORS, seconds=0.05, rounds=2, batches=(1, 32))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:29].strip() for line in lines[:3]] == ["1 append + fsync", "1 embedserve", "1 other"]
    assert [line.endswith("n/a: no such store") for line in lines] == [False, False, True] * 2
    assert all(float(line.split()[-2]) > 0 for line in lines if "n/a" not in line)


def test_what_is_written_is_new_and_is_there(tmp_path):
    store = collection_store(tmp_path, VECTORS)
    speed.time_writes(store, number=96, batch=32, seconds=60)
    store.close()
    with Collection.open(collection_path(tmp_path, "bench")) as collection:
        assert [document.id for document in collection.documents()] == [f"d{number}" for number in range(96)]
        assert collection.search_vectors(VECTORS[70][None], 1)[0][0].id == "d70"


def test_searches_run_beside_a_writer_that_loses_nothing(capsys):
    speed.measure_reads(VECTORS, RANKS, QUERIES, seconds=0.05, rounds=2, batches=(1, 32))  # counts the documents itself
    lines = table(capsys)
    assert [line[0] for line in lines] == ["1", "32"]
    assert all(float(line[-1]) > 0 for line in lines)


def test_filters_let_through_their_share_and_find_all_there_is(capsys):
    speed.measure_filters(VECTORS, RANKS, QUERIES, ["flat"])
    lines = table(capsys)
    assert [line[1:4] for line in lines] == [
        ["0.1%", "1", "1.0000"],
        ["1.0%", "4", "1.0000"],
        ["10.0%", "40", "1.0000"],
        ["90.0%", "360", "1.0000"],
    ]


def test_recall_is_lower_where_the_filter_lets_others_through(tmp_path):
    with speed.filled(tmp_path, "flat", VECTORS, RANKS) as collection:
        assert collection.manifest.count == COUNT  # nothing is in the log alone
        assert collection.count(speed.rank_range(0, 40)) == 40
        other_ranks = np.roll(RANKS, 1)
        line = speed.filter_line(collection, VECTORS, other_ranks, QUERIES, 0.1)
    assert float(line.split()[1]) < 0.9
