"""Diagnostic tasks: the texts are what the task says, mteb measures them, and no mean holds them."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("mteb", reason="the harness needs mteb: pip install 'embedserve[mteb]'")

from api.cli.main import main
from benchmarks.common.eval_sets import read_retrieval
from benchmarks.harness import diagnostic_sets
from benchmarks.harness.diagnostic_blocks import CHANGES
from benchmarks.harness.diagnostic_sets import length_pairs, padded_sets, pseudo_query_set
from benchmarks.harness.diagnostics import NAMES, choose_diagnostics
from benchmarks.harness.evaluation import evaluate
from benchmarks.harness.report import write_report
from benchmarks.harness.score_records import read_records
from benchmarks.harness.systems import System, load_system
from benchmarks.harness.table import DIAGNOSTIC, is_diagnostic, tables
from benchmarks.harness.tasks import data_digest
from embedserve import Encoder, EncoderSpec, InputError
from tests.benchmarks.made_up import record

DOCUMENTS = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of 20 words that stand in no other one, each the answer to the query of its first words."""
    root = tmp_path_factory.mktemp("eval")
    path = root / "retrieval" / "squad-dev"
    (path / "qrels").mkdir(parents=True)
    texts = [" ".join(f"word{chr(97 + n // 26)}{chr(97 + n % 26)}x{chr(97 + k)}" for k in range(20)) for n in range(80)]
    corpus = [{"_id": f"n{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    queries = [{"_id": f"a{n}", "text": " ".join(text.split()[:3])} for n, text in enumerate(texts)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"a{n}\tn{n}\t1\n" for n in range(DOCUMENTS))
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return root


@pytest.fixture(scope="module")
def data(folder):
    return read_retrieval(folder / "retrieval" / "squad-dev")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.diagnostics.NEEDLE_SPLITS", {"train": 40, "test": 20})
    monkeypatch.setattr("benchmarks.harness.diagnostics.NEEDLE_SAMPLES", 8)
    monkeypatch.setattr("benchmarks.harness.diagnostics.RATIOS", (20, 90))
    monkeypatch.setattr("benchmarks.harness.evaluation.tokens_per_second", lambda _: 1.0)
    for name, count in (("PAIRS", 30), ("RUN_WORDS", 5), ("LENGTHS", (4, 30))):
        monkeypatch.setattr(diagnostic_sets, name, count)


def test_the_same_set_gives_the_same_tasks(folder, data, small):
    first, sizes = choose_diagnostics(["all"], folder)
    again, _ = choose_diagnostics(NAMES, folder / "retrieval" / "squad-dev")
    assert [(t.metadata.name, data_digest(t)) for t in first] == [(t.metadata.name, data_digest(t)) for t in again]
    assert len({data_digest(task) for task in first}) == len(first) == len(sizes)
    assert all(is_diagnostic(task.metadata.name) for task in first)
    named = {f"{DIAGNOSTIC}{name}" for pair in CHANGES.values() for name in pair}
    assert named <= {task.metadata.name for task in first}
    for make in (padded_sets, length_pairs, lambda *given: pseudo_query_set(given[0], "part", *given[1:])):
        assert make(data) == make(data)
        assert make(data, 1) != make(data)


def test_both_labels_of_a_needle_are_as_many(small):
    for task in choose_diagnostics(["needle"], None)[0]:
        splits = task.dataset
        assert {name: Counter(splits[name]["label"]) for name in ("train", "test")} == {
            "train": {0: 20, 1: 20},
            "test": {0: 10, 1: 10},
        }
        assert not set(splits["train"]["text"]) & set(splits["test"]["text"])


def test_answers_stand_where_they_are_said_to_and_only_padding_is_added(data, small):
    made = padded_sets(data)
    alone, count = made["short"].documents, len(made["short"].queries)
    assert count == DOCUMENTS // 4 < len(alone) == DOCUMENTS // 2
    padding = diagnostic_sets.RUNS * 5
    for name, before in (("start", 0), ("middle", padding // 2), ("end", padding)):
        version = made[name]
        assert (version.queries, version.qrels) == (made["short"].queries, made["short"].qrels)
        for passage, text, middle in zip(alone, version.documents, made["middle"].documents, strict=True):
            words = text.split()
            own = len(passage.split())
            assert words[before : before + own] == passage.split()
            around = words[:before] + words[before + own :]
            assert around == middle.split()[: padding // 2] + middle.split()[padding // 2 + own :]
            assert len(around) == padding
            assert not set(around) & set(" ".join(alone).split())
    assert made["long"].documents == made["middle"].documents[:count] + alone[count:]
    for query, text in zip(made["short"].queries, alone, strict=False):
        assert text.startswith(query)  # the query's own answer


def test_pseudo_queries_are_of_their_answers(data):
    for kind, words in (("keywords", 4), ("part", 16)):
        made = pseudo_query_set(data, kind)
        for name, query in zip(made.query_ids, made.queries, strict=True):
            ((answer, gain),) = made.qrels[name].items()
            text = made.documents[made.document_ids.index(answer)]
            assert gain == 1
            assert len(query.split()) == words
            assert set(query.split()) <= set(text.split())


def test_texts_of_a_length_are_that_long_and_unrelated(data, small):
    lengths, first, second = length_pairs(data)
    assert [len(text.split()) for text in second] == lengths
    assert min(lengths) >= 4
    assert max(lengths) <= 30
    assert max(lengths) > 2 * min(lengths)
    assert not set(" ".join(first).split()) & set(" ".join(second).split())


def test_diagnostics_run_resume_and_are_reported_apart(folder, small, tmp_path):
    tasks, sizes = choose_diagnostics(["all"], folder)
    encoder = Encoder.load(EncoderSpec("mean", max_tokens=64), device="cpu")
    systems = [System("mean", encoder), load_system("bm25", "cpu")]
    found = evaluate(systems, tasks, tmp_path, lambda _: None, sizes=sizes)
    records = {(one.system, one.task.removeprefix(DIAGNOSTIC)): one for one in found}
    assert len(records) == len(tasks) + 7  # words cannot do three of the tasks
    for system in ("mean", "bm25"):
        one = records[system, "LengthShortRetrieval"]
        assert (one.documents, one.queries) == (DOCUMENTS // 2, DOCUMENTS // 4)
    assert records["mean", "Needle90Classification"].documents == 0
    assert records["bm25", "KeywordsRetrieval"].score == records["bm25", "PositionEndRetrieval"].score == 1
    pairs = records["mean", "LengthCosineSTS"].items["groups"][0]
    assert len(pairs["gold"]) == 30
    said = []
    again = evaluate(systems, tasks, tmp_path, said.append, sizes=sizes)
    assert {one.task: one.score for one in again} == {one.task: one.score for one in found}
    assert [text for text in said if " skips " not in text] == []
    for more in ([], [record(task=task) for task in ("SciFact", "STSBenchmark")]):
        for one in more:
            one.write(tmp_path)
        write_report(tmp_path, tmp_path / "report")
        text = (tmp_path / "report" / "report.md").read_text()
        assert ("## Means" in text) == bool(more)
        usual, diagnostic = text.split("## Diagnostics")
        assert "PositionEnd" not in usual
        assert "SciFact" not in diagnostic.split("## What was run")[0]
        columns = ["Keywords", "LengthShort", "LengthLong", "PositionStart", "PositionEnd"]
        table = next(line for line in diagnostic.splitlines() if "| Keywords |" in line)
        assert sorted(columns, key=table.index) == columns
        heads = next(line for line in diagnostic.splitlines() if "answers made longer" in line)
        assert heads.count("|") == 2 + 1 + 5 - 1
    assert "2 tasks of mteb and 10 diagnostic tasks" in text
    printed = tables(read_records(tmp_path)).split("\n\n")
    assert len(printed) == 5
    assert printed[2].startswith("| system | d | mean Retrieval | mean STS | mean of kinds |")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--diagnostics", "needles"], "did you mean 'needle'"),
        (["--diagnostics", "all"], "give its folder with --data"),
        (["--diagnostics", "needle", "-t", "SciFact"], "cannot be combined with --tasks"),
        (["--diagnostics", "length", "--data", "."], "is not a retrieval set"),
    ],
)
def test_wrong_usage_is_told(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["bench", "mteb", "-e", "bm25", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_set_that_has_too_little_is_refused(data, monkeypatch):
    monkeypatch.setattr(diagnostic_sets, "SHORT", 5)
    with pytest.raises(InputError, match="at most 5 words"):
        padded_sets(data)
    monkeypatch.setattr(diagnostic_sets, "PART_WORDS", 50)
    with pytest.raises(InputError, match="more than 50 words"):
        pseudo_query_set(data, "part")


def test_spread_takes_what_there_is():
    assert diagnostic_sets.spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert diagnostic_sets.spread([1, 2], 5) == [1, 2]
    assert diagnostic_sets.spread([], 5) == []
    assert np.diff(diagnostic_sets.spread(range(1000), 7)).min() >= 142
