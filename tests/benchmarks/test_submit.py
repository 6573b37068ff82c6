"""A submission holds what mteb can read, and names what is missing."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("mteb", reason="the harness needs mteb: pip install 'embedserve[mteb]'")

import mteb
from mteb.models.model_meta import ModelMeta, ScoringFunction

from api.cli.main import main
from benchmarks.harness.submit import is_stock, prompts_of, write_submission
from embedserve import Encoder, EncoderSpec, InputError
from embedserve.errors import CorruptFileError
from tests.benchmarks.made_up import record, words

TASKS = ("STSBenchmark", "SciFact", "Banking77Classification", "LocalTrecQAReranking", "LocalMSRPPairClassification")


def keep(made, results):
    """Write a record, and the result and the description that mteb keeps beside it."""
    made.write(results)
    local = made.task.startswith("Local")
    scores = {"main_score": made.score, "hf_subset": "default", "languages": ["eng-Latn"]}
    result = {
        "dataset_revision": "1" if local else mteb.get_task(made.task).metadata.revision,
        "task_name": made.task, "mteb_version": "2.26.24", "scores": {"test": [scores]}, "evaluation_time": 1.0,
        "kg_co2_emissions": None,
    }  # fmt: skip
    folder = results / "results" / made.model.replace("/", "__") / made.revision
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{made.task}.json").write_text(json.dumps(result))
    fields = {"name": made.model, "revision": made.revision, "languages": ["eng-Latn"], "framework": ["PyTorch"]}
    numbers = {"n_parameters": 7, "n_embedding_parameters": 3, "memory_usage_mb": 1.5, "max_tokens": 64}
    more = {"embed_dim": 8, "open_weights": True, "similarity_fn_name": ScoringFunction.COSINE, "model_type": ["dense"]}
    meta = ModelMeta.create_empty(overwrites={**fields, **numbers, **more})
    (folder / "model_meta.json").write_text(json.dumps(meta.to_dict(), default=str))
    with (folder / "run_settings.jsonl").open("a") as file:
        file.write(json.dumps({"task": made.task, "splits": ["test"]}) + "\n")


@pytest.fixture
def results(tmp_path):
    for task in TASKS:
        keep(record(task=task), tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.filterwarnings("ignore:is_cross_encoder is deprecated")  # mteb writes it, and warns of it
def test_mteb_reads_a_submission(results, tmp_path):
    fields = {"license": "apache-2.0", "release_date": "2026-01-31", "reference": "https://example.org/small"}
    fields |= {"training_datasets": {"MSMARCO", "NQ"}, "contacts": ["a'b"]}
    out = tmp_path / "out"
    made = write_submission(results, out, "mean", "acme/small-1", revision="c" * 40, fields=fields)
    folder = out / "results" / "acme__small-1" / ("c" * 40)
    official = {"STSBenchmark", "SciFact", "Banking77Classification"}
    assert {path.stem for path in folder.glob("*.json")} == {*official, "model_meta"}
    assert "Local" not in (folder / "run_settings.jsonl").read_text()
    assert not list(out.rglob("*Local*"))
    meta = ModelMeta.model_validate_json_resolved((folder / "model_meta.json").read_text())
    assert meta == made.meta
    assert (meta.name, meta.license, meta.training_datasets) == ("acme/small-1", "apache-2.0", {"MSMARCO", "NQ"})
    found = mteb.ResultCache(out).load_results(models=["acme/small-1"], tasks=["SciFact"], include_remote=False)
    assert found.model_results[0].task_results[0].get_score() == pytest.approx(record().score)
    source = (out / "acme_small_1.py").read_text()
    assert "small_1 = ModelMeta(" in source
    assert "loader=SentenceTransformerEncoderWrapper" in source
    assert (out / "CHECKLIST.md").read_text() == made.checklist


def test_what_is_missing_is_named(results, tmp_path):
    text = write_submission(results, tmp_path / "out", "mean", "acme/small").checklist
    for field in ("license", "release_date", "reference", "adapted_from"):
        assert f"- [ ] `{field}` has no value" in text
    assert "- [ ] `training_datasets` is not stated" in text
    assert "- [ ] `revision` is a digest of the settings" in text
    assert "- [ ] 2 of its 41 tasks have results" in text
    assert "ArguAna" in text.split("Not run: ")[1].splitlines()[0]
    assert "Also included, from other benchmarks: SciFact." in text
    assert "LocalTrecQAReranking" in text.split("Omitted, because they are not tasks of mteb: ")[1].splitlines()[0]
    assert "- [ ] Tasks were read from local files" in text
    assert "- [ ] The model is public" in text
    assert "- [x] No prompts." in text


def test_zero_shot_follows_from_what_was_trained_on(results, tmp_path):
    def training(datasets, place):
        fields = {"training_datasets": datasets}
        return write_submission(results, tmp_path / place, "mean", "acme/small", fields=fields).checklist

    none = training(set(), "none")
    assert "- [x] `training_datasets`: none." in none
    assert "100 % of MTEB(eng, v2) is zero-shot" in none
    some = training({"STSBenchmark", "ArguAnna"}, "some")
    assert "mteb has no set ArguAnna; did you mean 'ArguAna'" in some
    assert "trained on STSBenchmark" in some
    assert "100 %" not in some


def test_an_engine_or_modules_of_our_own_are_named(tmp_path):
    own = record("glot", spec={"strategy": "glot", "backbone": "acme/base"}, model="embedserve/glot")
    for made in (own, words("SciFact")):
        keep(made, tmp_path / "results")
    glot = write_submission(tmp_path / "results", tmp_path / "glot", "glot", "acme/glot")
    assert glot.meta.loader_kwargs == {"trust_remote_code": True}
    assert glot.meta.adapted_from == "acme/base"
    assert "needs modules of embedserve" in glot.checklist
    bm25 = write_submission(tmp_path / "results", tmp_path / "bm25", "bm25", "acme/bm25")
    assert bm25.meta.loader is None
    assert "`loader` has no value: an engine searched" in bm25.checklist


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("mean"), EncoderSpec("weighted_mean", prompts={"query": "q: "}), EncoderSpec("last_token"),
        EncoderSpec("embedfilter"), EncoderSpec("mean", post=("truncate:80",)), EncoderSpec("layer_mean"),
        EncoderSpec("mean", attention="bidirectional"), EncoderSpec("mean", template="say: {text}"),
        EncoderSpec("glot"),
    ],
    ids=lambda spec: spec.strategy,
)  # fmt: skip
def test_whose_modules_are_the_librarys_alone(spec):
    encoder = Encoder.load(spec, device="cpu")
    stock = all(type(module).__module__.startswith("sentence_transformers.") for module in encoder.model)
    assert is_stock(record(spec=encoder.spec.to_dict())) == stock


def test_results_of_prompts_by_task_come_together(tmp_path):
    tasks = {"SciFact": {"query": "claim: "}, "STSBenchmark": {"document": "sentence: "}, "LocalTrecQAReranking": {}}
    for place, (task, prompts) in enumerate(tasks.items()):
        keep(record(task=task, prompts=prompts, revision=f"r{place}", variant="v"), tmp_path / "results")
    made = write_submission(tmp_path / "results", tmp_path / "out", "mean", "acme/small")
    assert made.meta.revision == "v"
    assert made.meta.use_instructions
    assert made.meta.loader_kwargs == {"model_prompts": {"Retrieval-query": "claim: ", "STS": "sentence: "}}
    assert {path.stem for path in made.folder.glob("*.json")} == {"SciFact", "STSBenchmark", "model_meta"}
    assert '`STS`: "sentence: "' in made.checklist


def test_prompts_are_named_as_mteb_looks_for_them():
    both = {"query": "q: ", "document": "d: "}
    same = [record(task=task, prompts=both) for task in ("SciFact", "LocalTrecQAReranking")]
    assert prompts_of(same) == both
    assert prompts_of([*same, record(task="STSBenchmark", prompts=both)]) == {**both, "STS": "d: "}
    other = replace(record(), task="NFCorpus", prompts={"query": "x: "})
    assert prompts_of([record(prompts=both), other]) == {
        "SciFact-query": "q: ", "NFCorpus-query": "x: ", "SciFact-document": "d: "
    }  # fmt: skip


def test_mistakes_are_named(results, tmp_path):
    out = tmp_path / "out"
    for arguments, message in (
        (("maen", "acme/small"), "did you mean 'mean'"),
        (("mean", "small"), "ORG/MODEL"),
    ):
        with pytest.raises(InputError, match=message):
            write_submission(results, out, *arguments)
    with pytest.raises(InputError, match="did you mean"):
        write_submission(results, out, "mean", "acme/small", benchmark="MTEB(eng, v3)")
    for field, value in (("license", "apache"), ("release_date", "soon"), ("reference", "x")):
        with pytest.raises(InputError, match=f"mteb rejects {field}"):
            write_submission(results, out, "mean", "acme/small", fields={field: value})
    with pytest.raises(InputError, match="is not empty"):
        write_submission(results, results, "mean", "acme/small")
    assert not out.exists()
    next(results.glob("results/*/*/SciFact.json")).write_text("{")
    with pytest.raises(CorruptFileError, match="not a result of SciFact"):
        write_submission(results, out, "mean", "acme/small")


def test_the_command_prints_the_list(results, tmp_path, capsys):
    arguments = ["--results", str(results), "--output", str(tmp_path / "out"), "--system", "mean", "--name", "acme/x"]
    with pytest.raises(SystemExit) as end:
        main(["bench", "submit", *arguments, "--training-datasets", "none", "--license", "mit"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "`training_datasets`: none." in said
    assert "`license`" not in said
