"""Jobs that are killed, interrupted or lose a process: run again, they end with the bytes of an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from embedserve.errors import EmbedserveError
from indexing import list_collections, verify
from indexing.collections.catalog import collection_path
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.local_engine import ProcessEngine
from indexing.sources.corpus import read_all
from indexing.sources.python_docs import python_documents
from tests.indexing.bag import BagEncoder, make_documents
from tests.indexing.job_child import load_bag, load_dying_bag

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The docstrings of some modules, a bad record and an id that comes again among them."""
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    documents = list(islice(python_documents("os re json shutil math random socket email.message csv", ""), 400))
    lines = [json.dumps({"id": d.id, "title": d.title, "text": d.text, **d.metadata}) for d in documents]
    lines[100:100] = ["{oops", lines[3]]
    path.write_text("\n".join(lines) + "\n")
    return path


def everything(data):
    """Return the shards, the dead letters and the segments of a collection, by their path; no name is by chance."""
    job = job_path(data, "docs")
    found = {path.relative_to(job): path.read_bytes() for path in (job / "shards").rglob("*") if path.is_file()}
    found["letters"] = (job / "dead-letters.jsonl").read_bytes()
    for number, segment in enumerate(sorted((collection_path(data, "docs") / "segments").iterdir())):
        for path in segment.rglob("*"):
            if path.is_file():
                found[f"segment {number}", path.relative_to(segment)] = path.read_bytes()
    return found


def start(source, data, rest):
    command = [sys.executable, "-m", "tests.indexing.job_child", str(source), str(data), str(rest)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_job_killed_five_times_ends_with_the_same_bytes(corpus, tmp_path):
    options = JobOptions(shard_size=50)
    whole = tmp_path / "whole"
    run_job(read_all(corpus), BagEncoder(), collection_path(whole, "docs"), job_path(whole, "docs"), options)
    expected = everything(whole)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    killed, data = 0, tmp_path / "killed"
    for _ in range(20):
        child = start(corpus, data, 0.05)
        for _ in islice(child.stdout, rng.randrange(1, 4)):
            pass
        time.sleep(rng.uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
        output, errors = child.communicate()
        if "end" not in output:
            assert child.returncode == -signal.SIGKILL, errors
            killed += 1
        else:  # it finished before it was killed: start again and kill it earlier
            subprocess.run(["rm", "-rf", str(data)], check=True)
        if killed >= 5:
            break
    assert killed >= 5, f"seed {seed}"
    before = len(list(data.rglob("shard.json")))
    report = run_job(read_all(corpus), BagEncoder(), collection_path(data, "docs"), job_path(data, "docs"), options)
    assert report.resumed == before, f"seed {seed}"
    assert report.damaged == 0
    assert everything(data) == expected, f"seed {seed}"
    assert all(check.ok for check in verify(collection_path(data, "docs")))
    leftovers = {path.name for path in job_path(data, "docs").iterdir()}
    assert leftovers == {".lock", "shards", "report.json", "dead-letters.jsonl"}


def test_ctrl_c_keeps_what_is_made(corpus, tmp_path):
    child = start(corpus, tmp_path, 0.2)
    next(child.stdout)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert 0 < len(list(tmp_path.rglob("shard.json"))) < 9
    assert list_collections(tmp_path) == []


def test_two_processes_cannot_run_one_job(corpus, tmp_path):
    child = start(corpus, tmp_path, 0.5)
    next(child.stdout)
    with pytest.raises(EmbedserveError, match="collection 'docs' is being written to by another"):
        run_job(make_documents(4), BagEncoder(), collection_path(tmp_path, "docs"), job_path(tmp_path, "docs"))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    run_job(make_documents(4), BagEncoder(), collection_path(tmp_path, "docs"), job_path(tmp_path, "docs"))


def test_a_process_that_dies_is_an_error_and_the_next_run_goes_on(tmp_path):
    place = collection_path(tmp_path, "docs"), job_path(tmp_path, "docs"), JobOptions(shard_size=10)
    with pytest.raises(EmbedserveError, match="a worker process died"):
        run_job(make_documents(95), BagEncoder(), *place, engine=ProcessEngine(load_dying_bag, ["cpu"]))
    done = len(list(tmp_path.rglob("shard.json")))
    assert 7 <= done < 10
    report = run_job(make_documents(95), BagEncoder(), *place, engine=ProcessEngine(load_bag, ["cpu"]))
    assert (report.documents, report.resumed) == (95, done)


def test_a_full_disk_is_named_and_the_shards_stay(tmp_path):
    import resource

    place = collection_path(tmp_path, "docs"), job_path(tmp_path, "docs"), JobOptions(shard_size=10)
    run_job(make_documents(40), BagEncoder(), *place)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with pytest.raises(EmbedserveError, match="cannot write to"):
            run_job(make_documents(95), BagEncoder(), *place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    report = run_job(make_documents(95), BagEncoder(), *place)
    assert (report.documents, report.resumed) == (95, 4)
