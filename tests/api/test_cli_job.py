"""embedserve index build as a job: what it leaves out, how it goes on, what it says."""

import json
import os
import signal
import subprocess
import sys

import pytest

from api.cli.index_build import name_from
from tests import tiny


@pytest.fixture
def model(tiny_llama, monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_MODEL", str(tiny_llama))
    return tiny_llama


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": f"d{n}", "text": f"{tiny.SENTENCES[n % 9]} {n}"}) for n in range(60)]
    lines[7] = "{oops"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bad_records_are_counted_and_written_down(shell, model, corpus, tmp_path):
    letters = tmp_path / "letters.jsonl"
    built = shell("index", "build", corpus, "--shard-size", "20", "--dead-letters", letters, "--json")
    assert built.code == 0, built.err
    assert (built.json["count"], built.json["report"]["dead_letters"], built.json["report"]["shards"]) == (59, 1, 3)
    assert f"skipped 1 invalid record; see {letters}" in built.err
    assert json.loads(letters.read_text())["line"] == 8
    again = shell("index", "build", corpus, "--shard-size", "20")
    assert again.out.startswith("built texts: 59 documents")
    assert "3 shards: 0 encoded, 3 reused" in again.err
    stopped = shell("index", "build", corpus, "--shard-size", "20", "--on-error", "stop")
    assert stopped.code == 2
    assert "line 8: not valid JSON" in stopped.err


def test_passages_replicas_and_a_job_folder(shell, model, corpus, tmp_path):
    job = tmp_path / "job"
    options = ["--passage-tokens", "16", "--overlap", "4", "--replicas", "2", "--memory", "128", "--job-dir", job]
    built = shell("index", "build", corpus, "-c", "split", *options, "--drop-shards", "--encoder", model, "--json")
    assert built.code == 0, built.err
    report = built.json["report"]
    assert (report["documents"], report["rows"]) == (59, built.json["count"])
    assert report["rows"] > 80
    assert json.loads((job / "report.json").read_text()) == report
    assert not list(job.rglob("shard.json"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--overlap", "4"], "set passage_tokens as well"),
        (["--passage-tokens", "4"], "passage_tokens must be at least 8"),
        (["--passage-tokens", "4000"], "use at most 255"),
        (["--passage-tokens", "20", "--overlap", "10"], "overlap must be at least 0"),
        (["--memory", "1"], "memory must be at least 64 MB"),
        (["--shard-size", "0"], "shard_size must be at least 1"),
        (["--replicas", "0"], "replicas must be at least 1"),
        (["--ray-address", "auto"], "needs --engine ray"),
        (["--on-error", "ignore"], "--on-error"),
        (["--engine", "spark"], "--engine"),
    ],
)
def test_options_that_make_no_sense_are_refused(shell, model, corpus, options, says):
    result = shell("index", "build", corpus, *options)
    assert result.code == 2
    assert says in result.err


def test_without_ray_the_engine_says_how_to_install_it(shell, model, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = shell("index", "build", corpus, "--engine", "ray")
    assert result.code == 2
    assert "pip install 'embedserve[ray]'" in result.err


def test_ctrl_c_says_how_to_go_on(model, corpus, tmp_path):
    corpus.write_text("".join(json.dumps({"text": f"{tiny.SENTENCES[7]} {n}"}) + "\n" for n in range(20_000)))
    command = [sys.executable, "-m", "api.cli", "index", "build", str(corpus), "--shard-size", "100"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    next(line for line in child.stderr if line.startswith("embedding"))
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "stopping after the current batch" in errors
    assert "are kept; run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.rglob("shard.json"))


@pytest.mark.parametrize(
    ("source", "name"), [("hf:owner/Some_set:train", "owner-some_set-train"), ("x.jsonl.zst", "x"), ("a.csv.gz", "a")]
)
def test_a_collection_takes_its_name_from_the_source(source, name):
    assert name_from(source) == name
