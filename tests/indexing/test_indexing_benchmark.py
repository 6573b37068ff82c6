"""The benchmark of dense indexes, on vectors that take no time."""

import gzip
import json
import sys

import numpy as np
import pytest

from benchmarks.indexes import dense_search as dense_index
from indexing import ExactIndex


def test_kinds_and_filters_are_measured_from_files(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(430, 8)).astype(np.float32))
    monkeypatch.setattr(dense_index, "QUERIES", 30)
    for part, only, kind in (("kinds", "Flat", "IVF64,PQ4x4fs,RFlat"), ("filters", "flat", "Flat")):
        command = ["dense_index", "--vectors", str(tmp_path / "vectors.npy"), "--part", part, "--only", only]
        monkeypatch.setattr(sys, "argv", command)
        dense_index.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("400 vectors of 8, 30 queries; faiss 1.15")
        assert any(line.startswith(kind) for line in lines)
        exact = [line.split() for line in lines if line.startswith("Flat ")]
        assert {line[1 if part == "kinds" else 3] for line in exact} == {"1.0000"}


def test_narrower_vectors_are_judged(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 320)).astype(np.float32)
    np.save(tmp_path / "documents.npy", vectors)
    np.save(tmp_path / "queries.npy", vectors[:4])
    (tmp_path / "qrels").mkdir()
    texts = {"corpus": [f"d{n}" for n in range(30)], "queries": [f"q{n}" for n in range(4)]}
    for name, ids in texts.items():
        lines = [json.dumps({"_id": one, "text": one}) for one in ids]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query\tcorpus\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(4))
    )
    files = ["--vectors", str(tmp_path / "documents.npy"), "--queries", str(tmp_path / "queries.npy")]
    command = ["dense_index", *files, "--judged", str(tmp_path), "--part", "dimensions", "--only", "flat"]
    monkeypatch.setattr(sys, "argv", command)
    dense_index.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("Flat ")]
    assert [line[1] for line in lines] == ["320", "160", "80", "40"]
    assert {line[5] for line in lines} == {"100.00"}  # every query is a document itself, at any width
    assert lines[0][4] == "1.0000" and float(lines[-1][4]) < 1


def test_recall_is_the_share_of_the_true_ten(tmp_path):
    vectors = np.eye(20, dtype=np.float32)
    truth = ExactIndex(vectors).search(np.arange(20, 0, -1, dtype=np.float32)[None], 10)
    assert dense_index.recall([np.array([0, 1, 2, 3, 4, 15, 16, 17, 18, 19])], truth) == 0.5
    assert dense_index.recall([np.array([3])], truth) == 0.1


def test_passages_are_runs_of_words_and_too_few_are_named(tmp_path):
    words = [f"w{n}" for n in range(130)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"title": "t", "text": " ".join(words)}) + "\n")
    passages = dense_index.read_passages(tmp_path, 3)
    assert sorted(passages, key=lambda text: int(text[1:3].strip())) == [
        " ".join(words[start : start + 40]) for start in (0, 40, 80)
    ]
    with pytest.raises(SystemExit, match="has 3 passages of 40 words, fewer than 4"):
        dense_index.read_passages(tmp_path, 4)
