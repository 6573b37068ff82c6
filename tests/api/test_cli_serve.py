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

from api.cli.console import load_encoder
from api.cli.serve import ensure_sample
from api.cli.server import address_of, bind, run
from api.settings import Settings
from embedserve import EmbedserveError, Encoder, EncoderSpec, InputError, NotFoundError
from embedserve.errors import BusyError
from indexing import Collection, Document, build_collection
from indexing.collections.manifest import read_manifest
from indexing.collections.reembed import reembed
from indexing.collections.removal import drop_collection
from indexing.collections.snapshots import restore
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
    with pytest.raises(InputError, match="not an address"):
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


@pytest.fixture
def sample(tmp_path, encoder, monkeypatch, capsys):
    """The settings of a data folder whose sample collection, of one document, was built on a first start."""
    monkeypatch.setattr(
        "indexing.sources.python_docs.python_documents", lambda: iter([Document("os.walk", "walk a tree")])
    )
    settings = Settings(data_dir=tmp_path)
    ensure_sample(settings, encoder)
    assert "100%" in capsys.readouterr().err
    return settings


def ids(folder):
    with Collection.open(folder) as collection:
        return {document.id for document in collection.documents()}


def write(folder, encoder, *names):
    with Collection.open(folder, encoder, writable=True) as collection:
        for name in names:
            collection.upsert([Document(name, "a text of the user")])


def contents(folder):
    """The bytes of every file of a collection but the lock, which every writer opens."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def flip_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_sample_is_built_once_and_again_for_another_encoder(sample, encoder, other_encoder, capsys):
    folder = sample.collections_dir / "python-docs"
    first = read_manifest(folder)
    ensure_sample(sample, encoder)
    assert read_manifest(folder) == first
    assert capsys.readouterr().err == ""
    for builder in (other_encoder, encoder):
        ensure_sample(sample, builder)
        assert "rebuilding the sample collection, which was never written to" in capsys.readouterr().err
        assert read_manifest(folder).fingerprint == builder.fingerprint
    assert [path.name for path in sample.collections_dir.iterdir()] == ["python-docs"]
    ensure_sample(Settings(data_dir=sample.data_dir / "other", log_format="json"), encoder)
    assert capsys.readouterr().err == ""  # a bar would be no line of a log for programs


@pytest.mark.parametrize("change", ["upsert", "delete", "compact", "build", "restore", "no record"])
def test_a_collection_that_a_user_changed_is_left_to_its_encoder(sample, encoder, other_encoder, capsys, change):
    folder = sample.collections_dir / "python-docs"
    with Collection.open(folder, encoder, writable=True) as collection:
        taken = collection.snapshot() if change == "restore" else ""
        if change in ("upsert", "compact"):
            collection.upsert([Document("mine", "a text of the user")])
        if change == "compact":
            collection.compact(full=True)
        if change == "delete":
            collection.delete(["os.walk"])
    if change == "build":
        build_collection([Document("mine", "a text of the user")], encoder, folder)
    if change == "restore":
        restore(sample.data_dir, "python-docs", taken)
    if change == "no record":  # a release without the record of the sample's version may have built it
        (folder / "sample-version").unlink()
    before = contents(folder)
    ensure_sample(sample, other_encoder)
    assert contents(folder) == before
    said = capsys.readouterr().err
    assert "may hold your documents and is not changed" in said
    assert "which differs from" in said
    assert "embedserve collection reembed python-docs --model" in said
    assert [path.name for path in sample.collections_dir.iterdir()] == ["python-docs"]


@pytest.mark.parametrize("damage", ["log", "manifest", "manifest is missing", "segment"])
def test_a_collection_that_cannot_be_read_is_moved_aside_before_the_sample_is_built(sample, encoder, capsys, damage):
    folder = sample.collections_dir / "python-docs"
    for number in (1, 2):  # what was moved aside is not written over by the next
        write(folder, encoder, "mine", "mine too")
        path = folder / (read_manifest(folder).wal if damage == "log" else "manifest.json")
        if damage == "segment":
            path = next(folder.glob("segments/*/dense.npy"))
        if damage == "manifest is missing":
            path.unlink()
        else:
            flip_bit(path, 60 if damage == "log" else -5)
        before = contents(folder)
        ensure_sample(sample, encoder)
        aside = sample.collections_dir / f"python-docs-unreadable-{number}"
        said = capsys.readouterr().err
        assert f"cannot be read and was moved to {aside}" in said
        assert damage != "manifest is missing" or "manifest.json is missing" in said
        assert contents(aside) == before
        assert ids(folder) == {"os.walk"}


def test_a_build_that_was_killed_is_not_moved_aside(sample, encoder, capsys):
    folder = sample.collections_dir / "python-docs"
    drop_collection(sample.data_dir, "python-docs")
    (folder / "segments" / "0123456789abcdef").mkdir(parents=True)
    (folder / "segments" / "0123456789abcdef" / "dense.npy").write_bytes(b"half")
    ensure_sample(sample, encoder)
    assert "moved" not in capsys.readouterr().err
    assert ids(folder) == {"os.walk"}
    assert [path.name for path in sample.collections_dir.iterdir()] == ["python-docs"]


def test_a_document_that_is_written_while_the_sample_is_prepared_stays(sample, encoder, other_encoder, monkeypatch):
    folder = sample.collections_dir / "python-docs"

    def documents():
        write(folder, encoder, "mine")
        yield Document("os.walk", "walk a tree")

    monkeypatch.setattr("indexing.sources.python_docs.python_documents", documents)
    with pytest.raises(BusyError, match="start the server again"):
        ensure_sample(sample, other_encoder)
    assert ids(folder) == {"os.walk", "mine"}


def test_what_an_alias_hides_is_not_rebuilt(sample, encoder, other_encoder, capsys):
    folder = sample.collections_dir / "python-docs"
    reembed(sample.data_dir, "python-docs", other_encoder)
    before = contents(folder)
    ensure_sample(sample, other_encoder)
    assert capsys.readouterr().err == ""
    ensure_sample(sample, encoder)
    assert "the alias python-docs and its collection python-docs-2 are not changed" in capsys.readouterr().err
    flip_bit(sample.data_dir / "aliases.json", 20)
    ensure_sample(sample, other_encoder)
    assert "the sample collection is not built" in capsys.readouterr().err
    assert contents(folder) == before
    assert ids(sample.collections_dir / "python-docs-2") == {"os.walk"}


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
