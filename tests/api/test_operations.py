"""A server process under load: its log and its shutdown."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from api.http.auth import new_key
from tests.api.conftest import wait_until

SECRET_TEXT = "the-private-sentence-of-a-user"
CALLERS = 4
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Process:
    """The server, its key, and its log once it has ended."""

    def __init__(self, model, data_dir):
        self.key, line = new_key("tester", "read")
        settings = {"DATA_DIR": str(data_dir), "API_KEYS": line, "LOG_FORMAT": "json", "LOG_LEVEL": "debug"}
        environment = {**os.environ, **{f"EMBEDSERVE_{name}": value for name, value in settings.items()}}
        command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--json", "--device", "cpu"]
        self.process = subprocess.Popen(
            [*command, "--model", str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.host = json.loads(line)["address"].removeprefix("http://")
        self.lines, self.connections = [], []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self._reader.start()

    def connect(self):
        self.connections.append(http.client.HTTPConnection(self.host, timeout=60))
        return self.connections[-1]

    def ask(self, connection, method, path, body=None, **headers):
        """Return status, headers and body."""
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"} | headers
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, sent)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def end(self):
        self.process.wait(60)
        self._reader.join(10)
        return self.process.returncode

    def logged(self):
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def server(tiny_llama, data_dir):
    started = Process(tiny_llama, data_dir)
    try:
        yield started
    finally:
        started.process.kill()
        started.end()
        for pipe in (started.process.stdout, started.process.stderr, *started.connections):
            pipe.close()


def ids_of_request_and_trace_are_kept(server):
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    headers = {"X-Request-ID": "find-me", "traceparent": parent}
    status, answered, _ = server.ask(server.connect(), "POST", "/embed", {"input": SECRET_TEXT}, **headers)
    assert status == 200
    assert (answered["X-Request-ID"], answered["traceparent"]) == ("find-me", parent)


def requests_of_every_kind_are_sent(server):
    """Their log is read once the server has ended."""
    connection = server.connect()
    for path, body in (
        ("/embed", {"input": [SECRET_TEXT] * 3}),
        ("/embed", {"input": 5, "model": SECRET_TEXT}),
        ("/embed", {"input": "a", "dimensions": SECRET_TEXT}),
        ("/embed", SECRET_TEXT.encode()),
        ("/search", {"query": SECRET_TEXT}),
        ("/search", {"query": "a", "collection": SECRET_TEXT}),
        ("/search", {"query": SECRET_TEXT, "collection": "damaged"}),
        (f"/{SECRET_TEXT}", {}),
        (f"/embed?text={SECRET_TEXT}", {"input": "a"}),
    ):
        assert server.ask(connection, "POST", path, body)[0] in (200, 400, 404, 422, 500)
    assert (
        server.ask(connection, "POST", "/embed", {"input": SECRET_TEXT}, Authorization="Bearer es_wrong-key")[0] == 401
    )
    assert server.ask(connection, "POST", "/embed", {"input": SECRET_TEXT}, **{"x-api-key": server.key})[0] == 200


def accepted_requests_finish_and_new_ones_are_sent_elsewhere(server):
    outcomes, stopping = [], threading.Event()

    def call():
        connection = server.connect()
        body = {"input": [f"{uuid.uuid4()} some words of a document " * 4] * 16}
        while True:
            try:
                status, headers, content = server.ask(connection, "POST", "/embed", body)
            except (OSError, http.client.HTTPException) as error:
                outcomes.append((repr(error), "", stopping.is_set()))
                return
            outcomes.append((status, headers.get("Connection", ""), stopping.is_set()))
            if status != 200:
                assert json.loads(content)["error"]["code"] == "draining"
                assert headers["Retry-After"]
                return
            assert len(json.loads(content)["data"]) == 16

    def pending():
        return json.loads(server.ask(server.connect(), "GET", "/info")[2])["pending"]

    def call_long():
        body = {"input": ["a long text to be embedded " * 40] * 200}
        while not stopping.is_set():  # again, until one is at work when the server is told to stop
            long.append(server.ask(server.connect(), "POST", "/embed", body)[0])

    long = []
    callers = [threading.Thread(target=call) for _ in range(CALLERS)] + [threading.Thread(target=call_long)]
    for caller in callers:
        caller.start()
    assert server.ask(server.connect(), "GET", "/readyz", Authorization="")[0] == 200
    while len(outcomes) < CALLERS or pending() < 20_000:
        time.sleep(0.01)
    stopping.set()
    before = len(long)
    server.process.send_signal(signal.SIGTERM)
    assert len(long) == before  # it is at work
    assert wait_until(lambda: server.ask(server.connect(), "GET", "/readyz")[0] == 503)
    status, _, content = server.ask(server.connect(), "GET", "/readyz")
    assert (status, json.loads(content)["error"]["code"]) == (503, "draining")
    assert server.ask(server.connect(), "GET", "/livez")[0] == 200
    for caller in callers:
        caller.join(60)
    assert len(long) == before + 1
    assert set(long) == {200}
    assert sorted({(status, closing) for status, closing, _ in outcomes}) == [(200, ""), (503, "close")]
    assert sum(status == 503 for status, _, _ in outcomes) == CALLERS
    assert server.end() == 0


def the_log_is_json_and_holds_neither_texts_nor_keys(server):
    lines = server.logged()
    text = "".join(server.lines)
    for secret in (SECRET_TEXT, server.key, "es_wrong-key", "some words of a document"):
        assert secret not in text
    requests = [line for line in lines if line["message"] == "request"]
    (found,) = [line for line in requests if line["request_id"] == "find-me"]
    assert found["tokens"] > 3
    assert found["ms"] > 0
    assert {
        "method": "POST",
        "route": "/embed",
        "status": 200,
        "trace_id": TRACE,
        "key": "tester",
    }.items() <= found.items()
    assert {200, 400, 401, 404, 422, 500, 503} <= {line["status"] for line in requests}
    assert sum(line["status"] == 500 for line in requests) == 1


def test_a_server_from_its_first_request_to_its_log(server):
    """One test, as each part needs what the ones before have sent."""
    ids_of_request_and_trace_are_kept(server)
    requests_of_every_kind_are_sent(server)
    accepted_requests_finish_and_new_ones_are_sent_elsewhere(server)
    the_log_is_json_and_holds_neither_texts_nor_keys(server)


def test_a_hanging_request_does_not_prevent_shutdown(fake, tmp_path):
    import uvicorn

    from api.app import create_app
    from api.cli.server import DrainingServer, address_of, bind
    from api.settings import Settings

    settings = Settings(data_dir=tmp_path, drain_timeout_s=1)
    sock = bind("127.0.0.1", 0)
    config = uvicorn.Config(create_app(settings, fake), log_config=None, timeout_graceful_shutdown=1)
    server = DrainingServer(config, settings, sock, as_json=True)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    failures = []

    def call():
        connection = http.client.HTTPConnection(address_of(sock).removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/embed", b'{"input": "wait"}', {"Content-Type": "application/json"})
            try:
                failures.append(connection.getresponse().status)
            except (http.client.HTTPException, OSError) as error:
                failures.append(error)

    caller = threading.Thread(target=call)
    while not server.started:
        time.sleep(0.01)
    server.service.finished_loading.wait(10)
    caller.start()
    assert fake.waiting.wait(10)
    server.handle_exit(signal.SIGTERM, None)
    caller.join(10)
    assert len(failures) == 1
    assert failures != [200]
    server._captured_signals.clear()  # uvicorn would raise it again
    fake.gate.set()
    thread.join(10)
    assert not thread.is_alive()
