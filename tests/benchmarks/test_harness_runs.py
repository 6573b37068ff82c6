"""The harness as a researcher runs it: prompts, engines, the command line, a run that is killed."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import Dataset

pytest.importorskip("mteb", reason="the harness needs mteb: pip install 'embedserve[mteb]'")

from benchmarks.harness.bench_command import public
from benchmarks.harness.evaluation import evaluate
from benchmarks.harness.index_search import engine_of, take
from benchmarks.harness.local_sets import local_tasks
from benchmarks.harness.mteb_models import SearchModel
from benchmarks.harness.score_records import ScoreRecord, read_records
from benchmarks.harness.systems import load_system, meta_of, revision_of
from benchmarks.harness.table import names_of
from benchmarks.harness.task_prompts import load_prompts, prompts_for
from benchmarks.harness.tasks import choose_tasks, known_names
from embedserve import Encoder, EncoderSpec, InputError
from embedserve.compat import LIBRARY_VERSION
from embedserve.errors import CorruptFileError
from tests.benchmarks.local_sets import write_sets

needs_tokens = pytest.mark.skipif(LIBRARY_VERSION < 6, reason="late interaction needs sentence-transformers 6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("eval"))


def run(folder, results, names, tasks=("SciFact", "LocalTrecQAReranking"), **options):
    chosen, _ = choose_tasks(folder, tasks)
    records = evaluate([load_system(name, "cpu") for name in names], chosen, results, lambda _: None, **options)
    return {(record.system, record.task): record for record in records}


def test_a_set_of_ones_own_is_a_task(folder, tmp_path):
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval" / "my-own_notes").symlink_to(folder / "retrieval" / "scifact")
    (task,) = local_tasks(tmp_path)
    assert task.metadata.name == "LocalMyOwnNotesRetrieval"
    with pytest.raises(InputError, match="holds no evaluation set"):
        local_tasks(tmp_path / "retrieval")
    with pytest.raises(InputError, match="did you mean 'LocalMyOwnNotesRetrieval'"):
        choose_tasks(tmp_path, ["LocalMyOwnNotes"])
    (tmp_path / "sts" / "broken").mkdir(parents=True)
    with pytest.raises(InputError, match="broken does not have the layout of sts sets"):
        local_tasks(tmp_path)


def test_tasks_of_mteb_are_named_or_belong_to_a_benchmark():
    assert {task.metadata.name for task in choose_tasks(None, ["SciFact"])[0]} == {"SciFact"}
    assert len(choose_tasks(None, [], "NanoBEIR")[0]) == 13
    assert [task.metadata.name for task in choose_tasks(None, ["STS13"], "MTEB(eng, v2)")[0]] == ["STS13"]
    for names, benchmark, said in (
        (["SciFacts"], None, "did you mean 'SciFact'"), ([], "NanoBIER", "did you mean 'NanoBEIR'"),
        (["SciFact"], "MTEB(eng, v2)", "has no task 'SciFact'"), ([], None, "no task selected"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said.replace("(", r"\(")):
            choose_tasks(None, names, benchmark)


def test_the_most_specific_prompt_counts(folder, tmp_path):
    tasks = {task.metadata.name: task.metadata for task in local_tasks(folder)}
    prompts = {"query": "a: ", "Retrieval-query": "b: ", "SciFact-query": "c: ", "STS": "d: ", "document": "e: "}
    assert prompts_for(prompts, tasks["SciFact"], {}) == {"query": "c: ", "document": "e: "}
    assert prompts_for(prompts, tasks["LocalCranfieldRetrieval"], {}) == {"query": "b: ", "document": "e: "}
    assert prompts_for(prompts, tasks["LocalTrecQAReranking"], {}) == {"query": "a: ", "document": "e: "}
    assert prompts_for(prompts, tasks["STSBenchmark"], {"query": "own"}) == {"query": "d: ", "document": "d: "}
    assert prompts_for({}, tasks["SciFact"], {"query": "own"}) == {"query": "own"}
    assert prompts_for({"query": ""}, tasks["SciFact"], {"query": "own"}) == {}
    asked = prompts_for({"instruction": "Instruct: {instruction}\nQuery: "}, tasks["SciFact"], {})
    assert asked == {
        "query": "Instruct: Given a scientific claim, retrieve documents that support or refute the claim\nQuery: "
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SciFakt = 'x'", "did you mean 'SciFact'"),
        ("query = 3", "must be a string"),
        ("query", "no TOML|not TOML"),
        ("instruction = 'x'", "must contain"),
    ],
)
def test_prompts_that_belong_to_nothing_are_refused(folder, tmp_path, text, said):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        load_prompts(tmp_path / "p.toml", known_names(local_tasks(folder)))
    with pytest.raises(InputError, match="No such file"):
        load_prompts(tmp_path / "none.toml", set())


def test_another_prompt_is_another_entry_and_stands_in_the_record(folder, tmp_path):
    plain = run(folder, tmp_path, ["mean"])["mean", "SciFact"]
    found = run(folder, tmp_path, ["mean"], prompts={"Retrieval-query": "the moon and the stars: "})
    asked = found["mean", "SciFact"]
    assert (plain.prompts, asked.prompts) == ({}, {"query": "the moon and the stars: "})
    assert plain.revision != asked.revision
    assert plain.score != asked.score
    assert len({record.revision for record in found.values()}) == 2  # one task has no such prompt
    assert set(names_of(list(found.values()))) == {"mean"}
    encoder = Encoder.load(EncoderSpec("mean", prompts={"query": "the moon and the stars: "}), device="cpu")
    assert asked.fingerprint == encoder.fingerprint


@needs_tokens
def test_engines_find_what_the_exact_comparison_finds(folder, tmp_path):
    names = ["mean", "mean#flat", "mean#Flat", "mean#hnsw", "colbert", "colbert#muvera", "colbert#lemur", "bm25"]
    names += ["promptreps#sparse", "promptreps#hybrid", "mean#hybrid-bm25"]
    found = run(folder, tmp_path, names)
    for name in ("mean#flat", "mean#Flat", "mean#hnsw", "colbert#muvera", "colbert#lemur"):
        exact = name.partition("#")[0]  # fewer than 1,000 documents are all compared
        assert found[name, "SciFact"].score == pytest.approx(found[exact, "SciFact"].score, abs=0.02), name
        assert (name, "LocalTrecQAReranking") not in found
    assert found["colbert", "SciFact"].token_vectors > 5 * found["colbert", "SciFact"].documents
    assert found["colbert#muvera", "SciFact"].token_vectors == found["mean", "SciFact"].token_vectors == 0
    record = found["colbert#muvera", "SciFact"]
    assert record.index_bytes > 41 * 128 * 2
    assert (record.documents, record.queries, record.engine["name"]) == (41, 15, "muvera")
    assert {(one.documents, one.queries) for (_, task), one in found.items() if task == "SciFact"} == {(41, 15)}
    assert found["bm25", "SciFact"].score > 0.5  # a query is the first words of its answer
    assert found["bm25", "LocalTrecQAReranking"].spec is None
    assert found["mean#hybrid-bm25", "LocalTrecQAReranking"].score > 0
    assert len({record.revision for record in found.values()}) == len(names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean#muvera", "searches multi vectors, but mean returns dense"),
        ("mean#moovera", "did you mean 'muvera'"),
        ("mean#Moovera", "index 'Moovera' is unknown"),
        ("bm25#flat", "does not search vectors"),
    ],
)
def test_an_engine_that_cannot_search_an_encoder_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        load_system(name, "cpu")


def test_a_spec_in_json_may_have_an_engine_and_hold_its_mark():
    assert load_system('{"strategy": "mean"}#hnsw', "cpu").engine.name == "hnsw"
    assert load_system('{"strategy": "mean", "template": "# {text}"}', "cpu").engine is None


def test_a_name_of_the_matrix_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glot").mkdir()
    assert load_system("glot", "cpu").encoder.spec.strategy == "glot"


@needs_tokens
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mean", "dense"), ("mean#flat", "dense"), ("promptreps", "dense"), ("promptreps#sparse", "sparse"),
        ("promptreps#hybrid", "hybrid"), ("mean#hybrid-bm25", "hybrid"), ("colbert", "late-interaction"),
        ("colbert#muvera", "late-interaction"), ("bm25", "sparse"),
    ],
)  # fmt: skip
def test_mteb_is_told_what_is_searched(name, kind):
    assert meta_of(load_system(name, "cpu"), "r").model_type == [kind]


def test_a_faiss_factory_string_is_an_engine():
    assert engine_of("IVF64,SQ8").needs == ("dense",)


def test_other_texts_of_a_set_are_measured_again(tmp_path):
    folder, results = write_sets(tmp_path / "sets"), tmp_path / "results"
    first = run(folder, results, ["bm25"])["bm25", "SciFact"]
    queries = folder / "retrieval" / "scifact" / "queries.jsonl"
    before = queries.read_text()
    queries.write_text(re.sub(r'"text": "[^"]*"', '"text": "zebra"', before))
    other = run(folder, results, ["bm25"])["bm25", "SciFact"]
    assert other.data != first.data
    assert other.score < first.score
    queries.write_text(before)
    again = run(folder, results, ["bm25"])["bm25", "SciFact"]
    assert (again.data, again.score) == (first.data, first.score)


def test_what_cannot_do_a_task_is_named(folder, tmp_path):
    said = []
    tasks, _ = choose_tasks(folder, ["STSBenchmark", "SciFact"])
    evaluate([load_system("bm25", "cpu")], tasks, tmp_path, said.append)
    assert said[0] == "bm25 skips STSBenchmark: these tasks need one vector per text"
    with pytest.raises(InputError, match="nothing to measure: bm25 cannot do STS"):
        evaluate([load_system("bm25", "cpu")], tasks[:1], tmp_path, said.append)


def test_a_query_without_words_and_an_instruction_are_read_as_mteb_gives_them(tmp_path):
    corpus = Dataset.from_dict({"id": ["a", "b"], "title": ["", ""], "text": ["dogs bark", "cats purr"]})
    queries = Dataset.from_dict({"id": ["q", "r"], "text": ["what", " "], "instruction": ["only cats", ""]})
    for name in ("mean#flat", "bm25"):
        model = SearchModel(load_system(name, "cpu"), None)
        model.index(corpus)
        found = model.search(queries, top_k=2)
        assert max(found["q"], key=found["q"].get) == "b"


def test_a_command_line_names_no_folder_of_this_machine(tmp_path):
    given = ["bench", "--data=/a/b", "--results", "/c", "-e", str(tmp_path), "-e", "mean", f"--encoder={tmp_path}#flat"]
    name = tmp_path.name
    expected = ["bench", "--data=EVAL_DIR", "--results", "DIR", "-e", name, "-e", "mean", f"--encoder={name}#flat"]
    assert public(given) == expected


@pytest.mark.parametrize(
    ("name", "setting"),
    [("mean#hnsw", "EF_SEARCH"), ("mean#flat", "DEPTH"), ("mean#hybrid-bm25", "FUSED"), ("bm25", "K1")],
)
def test_settings_of_an_engine_are_in_the_revision(monkeypatch, name, setting):
    system = load_system(name, "cpu")
    before = revision_of(system)
    monkeypatch.setattr(f"benchmarks.harness.index_search.{setting}", 7)
    assert revision_of(system) != before


def test_an_engine_is_asked_for_as_many_hits_as_where_it_serves(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.harness.index_search.DEPTH", 3)
    tasks, _ = choose_tasks(folder, ["SciFact"])
    corpus = tasks[0].dataset["default"]["test"]["corpus"]
    model = SearchModel(load_system("mean#flat", "cpu"), None)
    model.index(corpus)
    found = model.search(tasks[0].dataset["default"]["test"]["queries"], top_k=1000)
    assert {len(hits) for hits in found.values()} == {3}


@needs_tokens
@pytest.mark.parametrize("strategy", ["colbert", "promptreps"])
def test_one_of_many_texts_is_what_it_is_alone(strategy):
    texts = ["a cat on the bridge", "rain", "seven letters of an honest judge"]
    encoded = Encoder.load(EncoderSpec(strategy), device="cpu").encode(texts)
    for place in range(len(texts)):
        one = take(encoded, place)
        assert len(one) == 1
        for name in ("dense", "multi"):
            if getattr(encoded, name) is not None:
                whole = getattr(encoded, name)
                expected = whole[place] if name == "multi" else whole.vectors[place : place + 1]
                np.testing.assert_array_equal(getattr(one, name).vectors, expected)
        if encoded.sparse is not None:
            assert one.sparse[0] == encoded.sparse[place]


def test_a_record_says_what_the_score_is_made_of(folder, tmp_path):
    found = {record.task: record for record in run(folder, tmp_path, ["mean"], ()).values()}
    queries = found["SciFact"].items
    assert (queries["kind"], len(queries["groups"][0]["values"])) == ("query", 15)
    assert np.mean(queries["groups"][0]["values"]) == pytest.approx(found["SciFact"].score, abs=1e-4)
    pairs = found["STSBenchmark"].items["groups"][0]
    from scipy.stats import spearmanr

    assert spearmanr(pairs["predicted"], pairs["gold"]).statistic == pytest.approx(
        found["STSBenchmark"].score, abs=1e-3
    )
    assert set(found["LocalMSRPPairClassification"].items["groups"][0]["gold"]) == {0, 1}
    for task, count in (("LocalSST2Classification", 10), ("LocalBBCClustering", 10)):
        values = found[task].items["groups"][0]["values"]
        assert len(values) == count
        assert np.mean(values) == pytest.approx(found[task].score, abs=1e-3)
    for record in found.values():
        assert record.seconds["encode"] > 0
        assert record.tokens_per_s > 0
        assert record.run["seed"] == 42
        assert record.run["versions"]["mteb"]
        assert record.peak_memory_mb["process"] > 100


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "records" / "m" / "r" / "T.json"
    path.parent.mkdir(parents=True)
    for text in ("", "[]", '{"format": 99}', '{"format": 1, "what": 2}'):
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=r"T\.json is not an evaluation record"):
            read_records(tmp_path)
    with pytest.raises(CorruptFileError):
        ScoreRecord.read(path)


def command(folder, results, *more):
    arguments = ["bench", "mteb", "--data", str(folder), "--results", str(results), "--device", "cpu", *more]
    return [sys.executable, "-m", "api.cli", *arguments]


def scores(results):
    return {(record.system, record.task): (record.score, record.items) for record in read_records(results)}


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(folder, tmp_path):
    systems = ["-e", "mean", "-e", "bm25", "-e", "last_token"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        command(folder, tmp_path / "whole", *systems), capture_output=True, text=True, env=environment
    )
    assert whole.returncode == 0, whole.stderr
    assert "| mean | 320 |" in whole.stdout
    assert str(folder) not in whole.stdout
    killed = subprocess.Popen(
        command(folder, tmp_path / "killed", *systems), stderr=subprocess.DEVNULL, env=environment
    )
    records = tmp_path / "killed" / "records"
    while len(list(records.glob("*/*/*.json"))) < 4 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    began = len(scores(tmp_path / "killed"))
    assert 4 <= began < len(scores(tmp_path / "whole"))
    for more in (["--processes", "2"], []):
        again = subprocess.run(
            command(folder, tmp_path / "killed", *systems, *more), capture_output=True, text=True, env=environment
        )
        assert again.returncode == 0, again.stderr
        assert again.stdout == whole.stdout
    assert again.stderr.count("(") == 0  # nothing was left to measure
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")


def test_wrong_usage_is_told_on_one_line(folder, tmp_path):
    for more, said in (
        (["-e", "meen"], "--encoder meen: "),
        (["-e", "./nope"], "--encoder ./nope: "),
        (["-e", "mean", "-t", "SciFakt"], "did you mean 'SciFact'"),
        (["-e", "mean", "--prompts", "none.toml"], "No such file"),
        (["-e", "bm25", "-t", "STSBenchmark"], "nothing to measure"),
    ):
        found = subprocess.run(command(folder, tmp_path, *more), capture_output=True, text=True)
        assert found.returncode == (3 if "nope" in said else 2), found.stderr
        assert said in found.stderr
        assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())
