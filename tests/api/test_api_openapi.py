"""The OpenAPI document is true: schemathesis sends what it allows, and what it forbids."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode


@pytest.fixture(scope="module")
def api_schema(client, app):
    return schema_of(app)


def schema_of(app):
    async def running(scope, receive, send):
        """The application, which runs already: its life is not for every call to begin and end."""
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})

    return schemathesis.openapi.from_asgi("/openapi.json", running)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", ["/embed", "/search"])
def test_the_service_keeps_its_contract(api_schema, path, mode):
    statuses = validated(api_schema[path]["POST"], mode, examples=40 if mode is GenerationMode.POSITIVE else 25)
    assert (200 in statuses) is (mode is GenerationMode.POSITIVE), statuses


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/info"])
def test_what_takes_no_body_keeps_its_contract(api_schema, path):
    assert set(validated(api_schema[path]["GET"], GenerationMode.POSITIVE, examples=3)) == {200}


def validated(operation, mode, examples):
    """Send generated requests, fail on an answer that the document does not promise, and return the statuses."""
    statuses = Counter()

    @hypothesis_settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        statuses[case.call_and_validate().status_code] += 1

    check()
    return statuses


def test_every_route_documents_its_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/embed", "/info", "/livez", "/metrics", "/readyz", "/search"} <= set(paths)
    for path in ("/embed", "/search"):
        operation = paths[path]["post"]
        assert {"200", "400", "404", "413", "415", "422", "429", "500", "503"} <= set(operation["responses"])
        for code, response in operation["responses"].items():
            wanted = "ErrorAnswer" if code != "200" else "Answer"
            assert response["content"]["application/json"]["schema"]["$ref"].endswith(wanted)


def test_every_field_is_described_and_every_example_works(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/embed", "/search"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert all(field["description"] for field in content["schema"]["properties"].values())
        for example in content["examples"].values():
            assert client.post(path, json=example["value"]).status_code == 200


def test_the_document_knows_the_limits_of_this_server(client, encoder, settings):
    document = client.get("/openapi.json").json()
    embed = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert embed["dimensions"]["maximum"] == encoder.dim
    assert embed["input"]["anyOf"][1]["maxItems"] == settings.max_inputs
