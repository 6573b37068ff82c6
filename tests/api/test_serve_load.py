"""The load measurement: its clients against a real server, the servers that it starts, and its searches."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import pytest

from benchmarks.serving.embed_load import InProcess, check_vectors, measure, measure_model, texts_of
from benchmarks.serving.load_clients import Load, bodies_of, run_load
from benchmarks.serving.processes import PEERS, RunningServer, cpu_seconds, lacks, serving
from benchmarks.serving.search_load import QUERIES, ensure_collection, in_process, joined, measure_search, queries_of
from embedserve import Encoder
from tests.api.conftest import wait_until

CHILD = """
import subprocess, sys, time
code = "import time; end = time.process_time() + 0.6\\nwhile time.process_time() < end: pass\\n"
subprocess.run([sys.executable, "-c", code])  # ends, and its parent waits for it
child = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""


def test_clients_count_what_they_are_answered(address):
    place = urlparse(address)
    texts = texts_of(12)
    assert len(set(texts)) == 12
    load = run_load(place.hostname, place.port, "/embed", bodies_of(texts, 4), 4, clients=3, seconds=0.3)
    assert list(load.statuses) == [200]
    assert load.texts == 4 * load.statuses[200] >= 12
    assert 0 < load.percentile_ms(0.5) <= load.percentile_ms(1.0) <= 1000 * load.seconds
    refused = run_load(place.hostname, place.port, "/embed", [b"{}"], 1, clients=1, seconds=0.05)
    assert (list(refused.statuses), refused.texts) == ([422], 0)


def test_the_processor_time_of_a_server_is_that_of_all_its_processes():
    server = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with server:
        try:
            assert server.stdout.readline() == "started\n"
            end = time.monotonic() + 60
            while cpu_seconds(server.pid) < 1.2:  # of the child that ended, and of the one that works
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            os.killpg(server.pid, 9)


@pytest.fixture(scope="module")
def inside(tiny_llama):
    return InProcess(str(tiny_llama))


@pytest.fixture(scope="module")
def other_model(tiny_models):
    return InProcess(str(tiny_models["qwen2"]))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_answers_with_the_same_vectors_and_leaves_no_process(name, inside, tiny_llama):
    if package := lacks(name):
        pytest.skip(f"{package} is not installed")
    texts = texts_of(8)
    with serving(str(tiny_llama), name) as server:
        check_vectors(inside, server, texts)
        assert server.batching
        load = run_load(server.host, server.port, "/embed", bodies_of(texts, 2), 2, clients=2, seconds=0.2)
        assert list(load.statuses) == [200]
        row, statuses = measure(inside, name, server, texts, 1, 1, 0.2)
        assert row.startswith(f"| {name} | 1 | 1 | ")
        assert list(statuses) == [200]
    assert wait_until(lambda: not running(server.pid))


def running(session):
    """Return the processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of_session, *_ = stat.read_text().rsplit(") ", 1)[1].split()
            found += [stat] if state != "Z" and int(of_session) == session else []
    return found


def test_a_server_that_cannot_start_is_an_error_and_one_that_is_not_installed_is_named(tiny_llama, monkeypatch, capfd):
    with pytest.raises(RuntimeError, match="unknown exited before it listened"), serving("nano", "unknown"):
        pass
    monkeypatch.setitem(PEERS, "litserve", "no-such-package")
    measure_model(str(tiny_llama), 0.1, ["litserve"])
    assert "litserve: not measured: no-such-package is not installed" in capfd.readouterr().out


def test_other_vectors_are_an_error(address, other_model):
    place = urlparse(address)
    server = RunningServer(place.hostname, place.port, os.getpid())
    with pytest.raises(RuntimeError, match="vectors that differ from this process"):
        check_vectors(other_model, server, texts_of(2))


def test_searches_over_http_and_in_process_are_measured(tiny_llama, tmp_path, capsys):
    texts = texts_of(60 + QUERIES)
    queries = queries_of(texts[60:])
    assert len(set(queries)) == len(queries) > 1000
    measure_search(str(tiny_llama), texts, "My texts", tmp_path, "flat", 2, 0.4)
    out = capsys.readouterr().out
    assert "building" in out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [
        "| in process, threads: 1",
        "| in process, threads: 2",
        "| `/search`, clients: 1",
        "| `/search`, clients: 2",
    ]
    assert all(float(row[1]) > 0 and float(row[3]) > 0 for row in rows[1:])
    assert "by status" not in out
    encoder = Encoder.load(str(tiny_llama), device="cpu")
    with ensure_collection(tmp_path, "my-texts-60", encoder, texts[:60], "flat") as collection:
        assert "building" not in capsys.readouterr().out
        load = in_process(collection, queries, 2, 0.1)
    assert load.texts == len(load.latencies_s) >= 2
    whole = joined([load, Load({200: 3}, [0.5], 1, 2.0, 1.0), Load({200: 1, 429: 2})])
    assert (whole.texts, whole.statuses) == (load.texts + 1, {200: 4, 429: 2})
    with ensure_collection(tmp_path, "my-texts-60", encoder, texts[:60], "exact") as collection:
        assert "building" in capsys.readouterr().out
