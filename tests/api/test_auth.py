"""API keys, scopes and origins."""

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.http.auth import ApiKey, digest_of, find_key, new_key
from api.http.routing import Operations
from api.settings import Settings
from tests.api.conftest import error_of, wait_until

ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def keys():
    return {scope: new_key(f"{scope}er", scope) for scope in ("read", "write", "admin")}


@pytest.fixture(scope="module")
def guarded(keys, settings, encoder):
    """An application with a key of each scope, open to the pages of one origin."""
    more = {"api_keys": tuple(line for _, line in keys.values()), "cors_origins": (ORIGIN,)}
    with TestClient(create_app(Settings(**settings.model_dump() | more), encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_a_new_key_is_long_and_its_line_has_only_the_digest():
    (key, line), (other, _) = new_key("page", "read"), new_key("page", "read")
    assert key != other
    assert len(key) >= 43
    assert line == f"page:read:{digest_of(key)}"
    assert key not in line


def test_a_key_matches_itself_only():
    keys = [ApiKey(name, "read", digest_of(name)) for name in ("a", "b")]
    assert find_key(keys, "b") is keys[1]
    assert find_key(keys, "b ") is None
    assert find_key(keys, keys[0].digest) is None
    assert find_key(keys, "ä") is None


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/readyz", "/openapi.json"])
def test_probes_and_pages_are_open(guarded, path):
    assert guarded.get(path).status_code == 200
    assert guarded.head(path).status_code == 200


def test_a_missing_or_unknown_key_is_an_error_401(guarded):
    for headers, says in (
        ({}, "no API key was sent"),
        ({"Authorization": "Bearer es_wrong"}, "the API key is unknown"),
        ({"x-api-key": "es_wrong"}, "the API key is unknown"),
        ({"Authorization": "Basic abc"}, "no API key was sent"),
    ):
        for method, path in (("POST", "/embed"), ("POST", "/search"), ("GET", "/info"), ("HEAD", "/info")):
            answer = guarded.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert says in error_of(answer, 401, "unauthorized")


@pytest.mark.parametrize("path", ["/embed%0A", "/%65mbed", "//embed", "/embed/", "/x/../embed", "/EMBED"])
def test_an_alternative_spelling_of_a_path_needs_a_key(guarded, path):
    assert guarded.post(path, json={"input": "a"}).status_code in (401, 404)


def test_a_mounted_application_needs_a_key(guarded):
    """A server in front may strip a prefix that it tells by ``root_path``."""
    below = TestClient(guarded.app, root_path="/api")
    assert below.post("/api/embed", json={"input": "a"}).status_code == 401
    assert below.post("/embed", json={"input": "a"}).status_code == 401


def test_a_key_is_accepted_in_both_headers(guarded, keys):
    key = keys["read"][0]
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"x-api-key": key}):
        assert guarded.post("/embed", json={"input": "a"}, headers=headers).status_code == 200


def route_of(app, method, path):
    return next(route for route in app.routes if route.path == path and method in route.methods)


def test_each_scope_includes_those_below_it(guarded, keys, monkeypatch):
    levels, route = ("read", "write", "admin"), route_of(guarded.app, "GET", "/info")
    for needed in levels:
        monkeypatch.setattr(route, "operation", replace(route.operation, needs=needed))
        for scope in levels:
            answer = guarded.get("/info", headers={"x-api-key": keys[scope][0]})
            if levels.index(scope) >= levels.index(needed):
                assert answer.status_code == 200
            else:
                assert needed in error_of(answer, 403, "forbidden_scope")


def test_a_route_without_a_scope_needs_admin(guarded, keys, monkeypatch):
    route, values = route_of(guarded.app, "GET", "/info"), Operations("service")
    values.get("/info")(route.endpoint)
    monkeypatch.setattr(route, "operation", values[0])
    assert guarded.get("/info", headers={"x-api-key": keys["write"][0]}).status_code == 403
    assert guarded.get("/info", headers={"x-api-key": keys["admin"][0]}).status_code == 200


OPEN = {"GET /", "GET /docs", "GET /favicon.ico", "GET /openapi.json", "GET /livez", "GET /readyz"}
WRITE = {
    "POST /v1/collections", "POST /v1/collections/{name}/compact", "PUT /v1/aliases/{alias}",
    "POST /v1/collections/{name}/documents", "DELETE /v1/collections/{name}/documents",
    "POST /v1/collections/{name}/snapshots",
}  # fmt: skip
READ_BY_POST = {
    "POST /embed", "POST /v1/embeddings", "POST /embeddings", "POST /v2/embed", "POST /v1/multi-vector", "POST /rerank",
    "POST /v1/rerank", "POST /v2/rerank", "POST /", "POST /embed_all", "POST /embed_sparse", "POST /similarity",
    "POST /tokenize", "POST /decode", "POST /search", "POST /v1/collections/{name}/count",
    "POST /v1/collections/{name}/facets", "POST /v1/collections/{name}/search",
}  # fmt: skip
ADMIN_BY_GET = {"GET /v1/collections/{name}/snapshots/{snapshot}"}


def test_what_a_route_may_change_decides_its_scope(app):
    for route in app.routes:
        name = f"{route.operation.method} {route.path}"
        if name in OPEN:
            scope = "open"
        elif name in WRITE:
            scope = "write"
        elif name in READ_BY_POST or (route.operation.method == "GET" and name not in ADMIN_BY_GET):
            scope = "read"
        else:
            scope = "admin"
        assert route.operation.needs == scope, name
    names = {f"{route.operation.method} {route.path}" for route in app.routes}
    assert names >= OPEN | WRITE | READ_BY_POST | ADMIN_BY_GET


def test_an_unknown_route_needs_no_key(guarded):
    error_of(guarded.get("/nowhere"), 404, "route_not_found")


def test_an_allowed_origin_may_send_requests(guarded, keys):
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    answer = guarded.options("/embed", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    answer = guarded.post("/embed", json={"input": "a"}, headers={"Origin": ORIGIN, "x-api-key": keys["read"][0]})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    refused = guarded.post("/embed", json={"input": "a"}, headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_another_origin_may_not_send_requests(guarded, client):
    asked = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in guarded.options("/embed", headers=asked).headers
    assert client.options("/embed", headers=asked).status_code == 405  # nobody is allowed unless a setting says so


def test_the_openapi_document_describes_keys(guarded, client):
    document = guarded.get("/openapi.json").json()
    assert sorted(document["components"]["securitySchemes"]) == ["bearer", "header"]
    assert document["paths"]["/embed"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert {"401", "403"} <= set(document["paths"]["/embed"]["post"]["responses"])
    assert "security" not in document["paths"]["/livez"]["get"]
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]
