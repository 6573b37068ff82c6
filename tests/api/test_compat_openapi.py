"""The OpenAPI document is true of the routes for other services' clients, too."""

import pytest
from schemathesis import GenerationMode

from tests.api.test_api_openapi import api_schema, validated

__all__ = ["api_schema"]

PATHS = ["/v1/embeddings", "/v2/embed", "/v1/rerank", "/rerank", "/similarity", "/tokenize", "/decode", "/"]
NOT_MADE = ["/v1/multi-vector", "/embed_all", "/embed_sparse"]  # by the encoder of these tests
ALIASES = {"/embeddings": "/v1/embeddings", "/v2/rerank": "/v1/rerank"}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS + NOT_MADE)
def test_a_route_keeps_its_contract(api_schema, path, mode):
    statuses = validated(api_schema[path]["POST"], mode, examples=15)
    assert (200 in statuses) is (mode is GenerationMode.POSITIVE and path not in NOT_MADE), statuses


def test_every_route_is_documented_with_fields_and_examples_that_work(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in [*PATHS, *NOT_MADE, *ALIASES]:
        operation = paths[path]["post"]
        assert {"200", "400", "404", "413", "415", "429", "500", "503"} <= set(operation["responses"])
        content = operation["requestBody"]["content"]["application/json"]
        schema = content["schema"]
        for one in schema.get("oneOf", [schema]):
            assert all(field["description"] for field in one["properties"].values())
        for example in content["examples"].values():
            status = client.post(path, json=example["value"]).status_code
            assert status == (422 if path in NOT_MADE else 200), path
    for alias, path in ALIASES.items():
        assert paths[alias]["post"]["requestBody"] == paths[path]["post"]["requestBody"]
