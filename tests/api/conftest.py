"""A running application over a tiny real model, and a slow fake encoder for what needs control over time."""

import hashlib
import io
import json
import logging
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from embedserve import Embeddings, Encoded, Encoder, EncoderSpec, TokenRows
from indexing import Document, build_collection
from indexing.collections.catalog import collection_path

DOCUMENTS = [
    Document("numpy.stack", "Join a sequence of arrays along a new axis.", "numpy.stack", {"kind": "function"}),
    Document("shutil.copy", "Copy data and mode bits of a file.", "shutil.copy", {"kind": "function"}),
    Document("tag", "<script>alert('x')</script> & more", "", {"nested": {"list": [1, None, True]}}),
    Document("größe/東京", "Größe, naïveté and 東京 are words too.", "größe", {}),
    *(Document(f"number-{n}", f"This is the text number {n}.", f"title {n}", {"n": n}) for n in range(8)),
]


@pytest.fixture(autouse=True)
def own_log_lines():
    """A server that a test starts in this process gives the log's lines its own form; the next test has the old one."""
    before = {handler: handler.formatter for handler in logging.getLogger().handlers}
    yield
    for handler, formatter in before.items():
        handler.setFormatter(formatter)


@pytest.fixture(scope="session")
def encoder(tiny_llama):
    return Encoder.load(tiny_llama, device="cpu")


@pytest.fixture(scope="session")
def other_encoder(tiny_llama):
    return Encoder.load(EncoderSpec(strategy="last_token", backbone=str(tiny_llama)), device="cpu")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, encoder, other_encoder):
    """Holds python-docs, strange (built by another encoder) and damaged (one byte flipped)."""
    root = tmp_path_factory.mktemp("data")
    for name, builder in (("python-docs", encoder), ("strange", other_encoder), ("damaged", encoder)):
        build_collection(DOCUMENTS, builder, collection_path(root, name), index="flat")
    file = next(collection_path(root, "damaged").glob("segments/*/dense.npy"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    return root


@pytest.fixture(scope="session")
def settings(tiny_llama, data_dir):
    return Settings(model=str(tiny_llama), data_dir=data_dir, device="cpu", max_body_bytes=4 * 1024 * 1024)


@pytest.fixture(scope="session")
def app(settings, encoder):
    return create_app(settings, encoder)


@pytest.fixture(scope="session")
def client(app):
    with TestClient(app) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def address(app, client):
    """The application of ``client`` behind a real server."""
    with served(app) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def served(app, port=0):
    """Serve an application that is started already; give the port. Connections that are open at the end are cut."""
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


def wait_until(condition, seconds=30.0):
    """Return whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def error_of(response, status, code, param=None):
    """Check the one error shape and return the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "request_id", "type"]
    assert (error["code"], error["param"]) == (code, param), error
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["message"]
    assert error["type"].endswith("_error")
    return error["message"]


def post_scope(path, headers):
    """A POST as a server describes it to an application."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "state": {},
    }


def text_vector(text):
    """The fake encoder's vector of a text: any mix-up of callers shows."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    vector = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
    return vector / np.linalg.norm(vector)


class FakeEncoder:
    """Vectors that name their text, a token for each character; "wait" waits for ``gate``, "boom" fails."""

    name, dim, max_tokens, fingerprint, device = "fake", 8, 512, "0" * 32, "cpu"
    spec = EncoderSpec()
    outputs, reference, text_tokenizer, lean_reason = ("dense",), None, None, ""
    batch_tokens, workers = 1024, 1

    def __init__(self):
        self.gate = threading.Event()
        self.waiting = threading.Event()
        self.calls = []

    def tokenize(self, texts, task="document", first=0, *, prompt=None, max_tokens=None):
        limit = max_tokens or self.max_tokens
        ids = [np.array([ord(letter) for letter in text[:limit]]) for text in texts]
        cut = np.array([len(text) > limit for text in texts])
        return TokenRows(ids, np.zeros(len(texts), dtype=np.int64), cut, task)

    def token_spans(self, texts):
        return [np.stack([np.arange(len(text)), np.arange(1, len(text) + 1)], axis=1) for text in texts]

    def encode_rows(self, rows):
        texts = ["".join(map(chr, row)) for row in rows.ids]
        self.calls.append(texts)
        if any("wait" in text for text in texts):
            self.waiting.set()
            assert self.gate.wait(30)
        if any("boom" in text for text in texts):
            raise RuntimeError("boom")
        vectors = np.stack([text_vector(text) for text in texts])
        return Encoded(Embeddings(vectors, rows.tokens, rows.truncated))

    def encode(self, texts, task="document", *, dimensions=None):
        return self.encode_rows(self.tokenize(texts, task)).shortened(dimensions)


@pytest.fixture
def fake():
    encoder = FakeEncoder()
    yield encoder
    encoder.gate.set()


@pytest.fixture
def fake_client(fake, tmp_path):
    """An application with the fake encoder and room for seven tokens in its queue."""
    settings = Settings(data_dir=tmp_path, queue_limit=7)
    with TestClient(create_app(settings, fake), raise_server_exceptions=False) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


class Shell:
    """Runs commands in this process and keeps what they said."""

    def __init__(self, capfdbinary, monkeypatch):
        self._captured, self._monkeypatch = capfdbinary, monkeypatch

    def __call__(self, *arguments, stdin=None):
        from api.cli.main import main

        stream = io.TextIOWrapper(io.BytesIO(stdin if stdin is not None else b""))
        self._monkeypatch.setattr(sys, "stdin", stream)
        self._captured.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = self._captured.readouterr()
        result = Result(exit_info.value.code, captured.out, captured.err.decode())
        assert "Traceback" not in result.err
        return result


class Result:
    def __init__(self, code, out_bytes, err):
        self.code, self.out_bytes, self.err = code, out_bytes, err

    @property
    def out(self):
        return self.out_bytes.decode()

    @property
    def json(self):
        return json.loads(self.out_bytes)

    @property
    def error(self):
        return json.loads(self.err)["error"]


@pytest.fixture
def shell(capfdbinary, monkeypatch):
    return Shell(capfdbinary, monkeypatch)
