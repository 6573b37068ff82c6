"""mteb's own small tasks of every kind: each strategy runs through them, and its scores are those of plain mteb."""

import pytest

pytest.importorskip("mteb", reason="the harness needs mteb: pip install 'embedserve[mteb]'")

import mteb
from mteb.mocks import (
    MockBitextMiningTask,
    MockClassificationTask,
    MockClusteringTask,
    MockInstructionRetrieval,
    MockMultilabelClassification,
    MockMultilingualRetrievalTask,
    MockPairClassificationTask,
    MockRegressionTask,
    MockRerankingTask,
    MockRetrievalTask,
    MockSTSTask,
    MockSummarizationTask,
)
from sentence_transformers import SentenceTransformer

from benchmarks.harness.evaluation import evaluate
from benchmarks.harness.systems import MATRIX, MINILM, System, load_system
from embedserve import Encoder, EncoderSpec
from embedserve.compat import LIBRARY_VERSION

USUAL = (
    MockClusteringTask, MockInstructionRetrieval, MockPairClassificationTask, MockRerankingTask, MockRetrievalTask,
    MockSTSTask,
)  # fmt: skip
OTHERS = (
    MockBitextMiningTask, MockClassificationTask, MockMultilabelClassification, MockMultilingualRetrievalTask,
    MockRegressionTask, MockSummarizationTask,
)  # fmt: skip
RETRIEVAL = {"MockInstructionRetrieval", "MockRetrievalTask"}
TOKENS = ("colbert",)  # one vector a token: for retrieval and reranking alone


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Leave out what takes longest: the speed that a record holds."""
    monkeypatch.setattr("benchmarks.harness.evaluation.tokens_per_second", lambda _: 1.0)


def scores_of(system, kinds, folder):
    """Return the recorded score of each task."""
    records = evaluate([system], [kind() for kind in kinds], folder, lambda _: None)
    return {record.task: record.score for record in records}


@pytest.mark.parametrize("name", [name for name in MATRIX if name != MINILM])
def test_every_system_runs_on_the_kinds_of_tasks_that_it_fits(name, tmp_path):
    if name in TOKENS and LIBRARY_VERSION < 6:
        pytest.skip("late interaction needs sentence-transformers 6")
    system = load_system(name, "cpu")
    found = scores_of(system, USUAL, tmp_path)
    assert set(found) >= RETRIEVAL
    assert ("MockSTSTask" in found) == (system.engine is None and name not in TOKENS)
    assert ("MockSTSTask" in found) == (len(found) == len(USUAL))
    assert all(-1 <= score <= 1 for score in found.values())


def test_one_vector_a_text_does_every_kind_of_task(tmp_path):
    found = scores_of(load_system("mean", "cpu"), OTHERS, tmp_path)
    assert set(found) == {kind.metadata.name for kind in OTHERS}


@pytest.mark.filterwarnings("ignore")  # mteb and sentence-transformers warn of one another
@pytest.mark.parametrize("name", ["mean", "embedfilter"])
def test_scores_are_those_of_plain_mteb(name, tmp_path):
    """The saved encoder, loaded by sentence-transformers alone and evaluated by mteb alone."""
    encoder = Encoder.load(EncoderSpec(name), device="cpu")
    encoder.save(tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    kinds = (MockClassificationTask, MockClusteringTask, MockPairClassificationTask, MockRetrievalTask, MockSTSTask)
    found = scores_of(System(name, encoder), kinds, tmp_path / "results")
    for kind in kinds:
        results = mteb.evaluate(plain, kind(), cache=None, show_progress_bar=False, co2_tracker=False)
        assert found[kind.metadata.name] == pytest.approx(results.task_results[0].get_score(), abs=1e-5)
