"""Engines over token vectors: the benchmark's own arithmetic, on made-up vectors."""

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs faiss: pip install 'embedserve[cpu]'")

from benchmarks.common.eval_sets import RetrievalSet, some_queries
from benchmarks.common.ir_metrics import ndcg_of_rows
from benchmarks.indexes import late_interaction_search as multi_index
from benchmarks.indexes.late_interaction_engines import EFFORTS, ENGINES
from embedserve.errors import LoadError
from embedserve.types import TokenEmbeddings


def tokens(count, rng, of=None):
    lengths = rng.integers(3, 9, count) if of is None else np.full(count, 3)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    vectors = rng.standard_normal((offsets[-1], 16)).astype(np.float32)
    if of is not None:  # a query is the first three tokens of the document of its number
        vectors = np.concatenate([of[number][:3] for number in range(count)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.zeros(len(vectors), dtype=np.int64)
    return TokenEmbeddings(vectors, offsets, ids, lengths, np.zeros(count, dtype=bool))


def test_every_engine_is_measured_beside_exact_search(capsys):
    rng = np.random.default_rng(0)
    documents = tokens(300, rng)
    queries = tokens(8, rng, of=documents)
    names = [f"q{n}" for n in range(8)]
    data = RetrievalSet([f"d{n}" for n in range(300)], [], names, [], {f"q{n}": {f"d{n}": 1} for n in range(8)})
    engines = ["exact float16", "mean-pooled flat", "muvera SQ8"]
    multi_index.report("made up", data, documents, queries, engines)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(engines))]
    assert len(lines) == 1 + 2 * len(EFFORTS)
    exact = lines[0].split()
    assert exact[3:6] == ["1.000", "1.000", "100.00"]
    every = [line for line in lines if "1000 candidates" in line]  # more than there are documents
    assert all("1.000  1.000   100.00" in line for line in every)


def test_an_engine_that_cannot_be_built_says_why(monkeypatch, capsys):
    def missing(documents):
        raise LoadError("other is not installed")

    monkeypatch.setitem(ENGINES, "other", missing)
    documents = tokens(9, np.random.default_rng(0))
    data = RetrievalSet([f"d{n}" for n in range(9)], [], ["q"], [], {"q": {"d1": 1}})
    multi_index.report("made up", data, documents, tokens(1, np.random.default_rng(1), of=documents), ["other"])
    assert "n/a: other is not installed" in capsys.readouterr().out


def test_further_documents_are_no_answers():
    data = RetrievalSet(["d0"], [], ["q0"], [""], {"q0": {"d0": 1}})
    assert ndcg_of_rows([np.array([1, 0])], data) == pytest.approx(100 / np.log2(3))


def test_some_queries_are_spread_evenly():
    names = [f"q{n}" for n in range(10)]
    data = RetrievalSet([], [], names, [name.upper() for name in names], {})
    assert some_queries(data, 3).query_ids == ["q0", "q3", "q6"]
    assert some_queries(data, 3).queries == ["Q0", "Q3", "Q6"]
    assert some_queries(data, 99) == data
