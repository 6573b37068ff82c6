"""Error responses: invalid JSON, routes and methods, large bodies, uncaught exceptions, and the request id."""

import asyncio
import json
import urllib.request

import pytest

from tests.api.conftest import error_of, post_scope

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "line 1 column 1"),
        (b'{"input": "a",}', "line 1 column 15"),
        (b'{\n "input": a}', "line 2 column 11"),
        (b'{"input": "\\ud800"}', "surrogate"),
        (b'{"input": "\xff"}', "unicode"),
        (b"\xff\xfe{\x00", "line 1 column 1"),
        (b"input=a", "line 1 column 1"),
        (b"[" * 100_000, "recursion"),
        (b'{"input": "a"} {"input": "b"}', "trailing"),
        (b'{"input": "a\nb"}', "control character"),
    ],
)
def test_invalid_json_is_rejected_with_its_position(client, body, says):
    assert says in error_of(client.post("/embed", content=body, headers=JSON), 400, "invalid_json")


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", ""]
)
def test_other_content_types_are_rejected(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post("/embed", content=b'{"input": "a"}', headers=headers)
    assert "application/json" in error_of(response, 415, "unsupported_media_type", "Content-Type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"])
def test_all_media_types_of_json_are_accepted(client, kind):
    assert client.post("/embed", content=b'{"input": "a"}', headers={"Content-Type": kind}).status_code == 200


def test_a_compressed_body_is_rejected(client):
    response = client.post("/embed", content=b"x", headers={**JSON, "Content-Encoding": "gzip"})
    assert "send the body uncompressed" in error_of(response, 415, "unsupported_encoding", "Content-Encoding")


def test_an_unknown_route_is_an_error_404_with_a_suggestion(client):
    assert "did you mean '/search'" in error_of(client.post("/serch", json={}), 404, "route_not_found")
    assert "did you mean '/embed'" in error_of(client.post("/embed/", json={}), 404, "route_not_found")
    assert "there is no route" in error_of(client.get("/%00/..%2f/%ff"), 404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/embed", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("DELETE", "/docs", "GET, HEAD"),
        ("PUT", "/v1/jobs/job_0", "DELETE, GET, HEAD"),
    ],
)
def test_a_wrong_method_is_rejected_with_the_allowed_ones(client, method, path, allowed):
    response = client.request(method, path)
    assert allowed in error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/readyz", "/info", "/openapi.json"])
def test_head_equals_get_without_a_body(address, path):
    answers = {}
    for method in ("GET", "HEAD"):
        with urllib.request.urlopen(urllib.request.Request(address + path, method=method), timeout=30) as response:
            answers[method] = response.status, response.headers["content-type"], response.read()
    assert answers["HEAD"] == (*answers["GET"][:2], b"")
    assert answers["GET"][2]


def body_of(size):
    return b'{"input": "' + b"a" * (size - 13) + b'"}'


def test_a_body_over_the_limit_is_rejected_by_its_content_length(client, settings):
    response = client.post("/embed", content=body_of(settings.max_body_bytes + 1), headers=JSON)
    assert str(settings.max_body_bytes) in error_of(response, 413, "body_too_large")
    assert response.headers["connection"] == "close"


def test_a_body_over_the_limit_is_rejected_while_it_is_received(client, settings):
    read = 0

    async def call(headers):
        """Speak as a server does: parts are made only when the application asks for them."""
        nonlocal read
        read, sent = 0, []

        async def receive():
            nonlocal read
            assert read < 100_000_000, "the body was read to its end"
            read += 100_000
            return {"type": "http.request", "body": b"a" * 100_000, "more_body": True}

        async def send(message):
            sent.append(message)

        await client.app(post_scope("/embed", headers), receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]

    plain = (b"content-type", b"application/json")
    for headers in ([plain], [plain, (b"content-length", b"10")]):
        assert asyncio.run(call(headers)) == (413, "body_too_large")
        assert settings.max_body_bytes < read <= settings.max_body_bytes + 100_000


def test_a_body_at_the_limit_is_accepted(client, settings):
    response = client.post("/embed", content=body_of(settings.max_body_bytes), headers=JSON)
    assert "the limit is 100,000" in error_of(response, 422, "text_too_long", "input")


def test_a_plain_request_id_is_echoed(client):
    given = client.get("/livez", headers={"X-Request-ID": "abc-123_x.y:z"})
    assert given.headers["x-request-id"] == "abc-123_x.y:z"
    for bad in ("x" * 129, "a b", "ä".encode(), "<script>", ""):
        made = client.get("/livez", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert made.startswith("req_")
    assert client.get("/livez").headers["x-request-id"] != client.get("/livez").headers["x-request-id"]


def test_an_uncaught_exception_is_an_error_500(fake_client, caplog):
    response = fake_client.post("/embed", json={"input": "boom"}, headers={"X-Request-ID": "find-me"})
    message = error_of(response, 500, "internal")
    assert "boom" not in message
    assert "find-me" in caplog.text
    assert fake_client.post("/embed", json={"input": "fine"}).status_code == 200


def test_the_log_has_no_texts(client, caplog):
    caplog.set_level("DEBUG")
    client.post("/embed", json={"input": "mysecrettext"})
    client.post("/search", json={"query": "mysecrettext"})
    assert "mysecrettext" not in caplog.text
    assert "POST /embed status=200" in caplog.text
