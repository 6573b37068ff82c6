"""The OpenAPI document is true of collections and documents too."""

import pytest


def test_every_route_documents_its_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    ours = [path for path in paths if path.startswith(("/v1/collections", "/v1/aliases", "/v1/jobs"))]
    assert {"/v1/collections", "/v1/collections/{name}/documents/{id}", "/v1/aliases/{alias}"} <= set(ours)
    for path in ours:
        for method, operation in paths[path].items():
            assert operation["summary"] and operation["operationId"], (method, path)
            assert {"500", "503"} <= set(operation["responses"]), (method, path)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                assert all(
                    field.get("description") or "enum" in field or "type" in field for field in properties.values()
                )


@pytest.mark.parametrize("path", ["search", "count", "facets"])
def test_every_example_works(client, path):
    operation = client.get("/openapi.json").json()["paths"][f"/v1/collections/{{name}}/{path}"]["post"]
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        answer = client.post(f"/v1/collections/python-docs/{path}", json=example["value"])
        assert answer.status_code == 200, answer.text
