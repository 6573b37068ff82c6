"""embedserve serve as a user runs it: a process, a port, signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from api.cli_console import load_encoder
from api.cli_serve import ensure_sample
from api.server import address_of, bind, run
from api.settings import Settings
from embedserve import EmbedserveError, Encoder, EncoderSpec, InputError, NotFoundError
from indexing import Document, read_manifest
from tests.api.conftest import DOCUMENTS


def test_a_port_in_use_is_said():
    with contextlib.closing(bind("127.0.0.1", 0)) as sock:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname())
        sock.listen()
        with pytest.raises(EmbedserveError, match="in use") as refusal:
            bind("127.0.0.1", sock.getsockname()[1])
        assert "--port" in refusal.value.message


def test_two_servers_that_bind_a_port_at_the_same_time_are_told_apart(tmp_path, encoder):
    settings = Settings(data_dir=tmp_path)
    with contextlib.closing(bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with contextlib.closing(bind("127.0.0.1", port)) as second:  # neither listens yet
            first.listen()
            with pytest.raises(EmbedserveError, match=f"port {port} on 127.0.0.1 is in use"):
                run(settings, encoder, second)


def test_a_host_that_is_none_is_said():
    with pytest.raises(InputError, match="no address"):
        bind("no.such.host.invalid", 0)


@pytest.mark.parametrize("name", ["~no-such-user/model", "x" * 300])
def test_a_model_whose_name_no_folder_can_have_is_not_found(name):
    with pytest.raises(NotFoundError, match="no model"):
        load_encoder(name)


@pytest.mark.parametrize(("host", "begins"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")])
def test_the_address_can_be_opened(host, begins):
    with contextlib.closing(bind(host, 0)) as sock:
        assert address_of(sock) == f"{begins}{sock.getsockname()[1]}"


def test_the_address_of_version_six_has_brackets():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        sock = bind("::1", 0)
    except EmbedserveError:
        pytest.skip("no IPv6 here")
    with contextlib.closing(sock):
        assert address_of(sock).startswith("http://[::1]:")


def test_the_sample_is_built_once_and_again_for_another_encoder(tmp_path, encoder, other_encoder, monkeypatch, capsys):
    monkeypatch.setattr("indexing.python_documents", lambda: iter([Document("os.walk", "walk a tree")]))
    settings = Settings(data_dir=tmp_path)
    manifest = settings.collections_dir / "python-docs"
    ensure_sample(settings, encoder)
    assert "100%" in capsys.readouterr().err
    first = read_manifest(manifest)
    ensure_sample(settings, encoder)
    assert read_manifest(manifest) == first
    assert capsys.readouterr().err == ""
    ensure_sample(settings, other_encoder)
    assert "built anew" in capsys.readouterr().err
    assert read_manifest(manifest).fingerprint == other_encoder.fingerprint
    ensure_sample(Settings(data_dir=tmp_path / "other", log_format="json"), encoder)
    assert capsys.readouterr().err == ""  # a bar would be no line of a log for programs


@pytest.fixture(scope="module")
def server(tiny_llama, data_dir):
    """A server in a process of its own; the test that ends it comes last."""
    command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--model", str(tiny_llama), "--device", "cpu"]
    environment = {**os.environ, "EMBEDSERVE_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_a_strategy_may_be_served_and_the_address_read_by_a_program(tiny_llama, data_dir):
    command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--json", "--device", "cpu"]
    command += ["--model", str(tiny_llama), "--strategy", "last_token"]
    environment = {**os.environ, "EMBEDSERVE_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        ready = json.loads(process.stdout.readline())
        spec = EncoderSpec("last_token", str(tiny_llama))
        assert ready["fingerprint"] == Encoder.load(spec, device="cpu").fingerprint
        assert post(ready["address"], "/embed", {"input": "rain"})["fingerprint"] == ready["fingerprint"]
    finally:
        process.kill()
        process.communicate()


def post(address, path, body):
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def get(address, path):
    with urllib.request.urlopen(address + path, timeout=30) as response:
        return json.load(response)


def test_a_server_announces_itself_answers_and_finishes_its_work(server):
    process, line = server
    assert line.startswith("embedserve is ready: http://127.0.0.1:"), process.stderr.read()
    address = line.split()[3]
    assert get(address, "/readyz")["status"] == "ready"
    hits = post(address, "/search", {"query": DOCUMENTS[0].content, "top_k": 1})["results"][0]["hits"]
    assert hits[0]["id"] == "numpy.stack"

    answers = []
    texts = ["a long text to be embedded " * 40] * 400
    caller = threading.Thread(target=lambda: answers.append(post(address, "/embed", {"input": texts})))
    caller.start()
    while caller.is_alive() and not get(address, "/info")["pending"]:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    caller.join(60)
    assert len(answers[0]["data"]) == 400
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
