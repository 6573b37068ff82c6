"""The measures and readers behind every quality figure, and nano's figures where the evaluation sets are at hand."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.eval_sets import read_retrieval, read_sts
from benchmarks.common.ir_metrics import ndcg, spearman
from benchmarks.encoding.nano_quality import next_token_loss, retrieval_score, sts_score
from embedserve import Encoder

EVAL_DIR = os.environ.get("EMBEDSERVE_EVAL_DIR")
needs_data = pytest.mark.skipif(not EVAL_DIR, reason="EMBEDSERVE_EVAL_DIR names no folder of evaluation sets")


def test_ndcg_equals_its_formula():
    qrels = {"q": {"a": 3, "b": 1}, "r": {"x": 1}}
    found = ndcg({"q": ["b", "z", "a"], "r": ["y", "z"]}, qrels)
    ideal = 3 + 1 / np.log2(3)
    assert found == pytest.approx(100 * ((1 + 3 / np.log2(4)) / ideal + 0) / 2)
    assert ndcg({"q": ["a", "b"]}, qrels) == pytest.approx(100)
    assert ndcg({"q": ["z"] * 10 + ["a"]}, qrels) == 0  # rank 11 does not count


def test_spearman_is_about_ranks():
    assert spearman(np.array([1.0, 10.0, 100.0]), [0.1, 0.2, 0.3]) == pytest.approx(100)
    assert spearman(np.array([3.0, 2.0, 1.0]), [0.1, 0.2, 0.3]) == pytest.approx(-100)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": "d1", "title": "Rain", "text": "falls"}, {"_id": "d2", "text": "arrays joined along an axis"}]
    queries = [{"_id": "q1", "text": "rain"}, {"_id": "q2", "text": "join arrays"}, {"_id": "q3", "text": "not judged"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n")
    (tmp_path / "test.tsv").write_text("score\tsentence1\tsentence2\n5.0\ta cat\ta cat\n0\ta cat\tthe moon\n")
    return tmp_path


def test_readers(folder):
    found = read_retrieval(folder)
    assert found.documents == ["Rain falls", "arrays joined along an axis"]
    assert found.query_ids == ["q1", "q2"]
    assert found.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert read_sts(folder) == ([5.0, 0.0], ["a cat", "a cat"], ["a cat", "the moon"])


def test_scores_of_nano_on_a_toy_set(folder):
    encoder = Encoder.load("nano", device="cpu")
    assert retrieval_score(encoder, folder) == pytest.approx(100)
    assert sts_score(encoder, folder) == pytest.approx(100)


def test_documents_longer_than_the_model_reads_are_cut_into_windows_without_a_warning(folder, caplog, monkeypatch):
    library = logging.getLogger("transformers")
    monkeypatch.setattr(library, "handlers", [caplog.handler])
    caplog.set_level(logging.WARNING, "transformers")
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d1", "text": "join arrays along an axis " * 400}) + "\n")
    found = next_token_loss("nano", folder)
    assert np.isfinite(found["nats per token"])
    assert caplog.text == ""


@needs_data
@pytest.mark.timeout(900)  # SciFact has more than a million tokens
@pytest.mark.parametrize(("name", "least"), [("scifact", 46), ("squad-dev", 72), ("cranfield", 26)])
def test_nano_retrieves_as_its_model_card_says(name, least):
    encoder = Encoder.load("nano", device="cpu")
    assert retrieval_score(encoder, Path(EVAL_DIR) / "retrieval" / name) >= least


@needs_data
def test_nano_orders_sentences_as_its_model_card_says():
    assert sts_score(Encoder.load("nano", device="cpu"), Path(EVAL_DIR) / "sts" / "stsb") >= 72


@needs_data
@pytest.mark.timeout(900)
def test_nano_is_a_language_model():
    found = next_token_loss("nano", Path(EVAL_DIR) / "retrieval" / "squad-dev")
    assert found["nats per token"] < found["unigram nats per token"] - 0.5
