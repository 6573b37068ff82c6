"""The OpenAPI document of the routes in other services' formats."""

from tests.api.test_rerank_and_tokens import sparse, sparse_client

__all__ = ["sparse", "sparse_client"]

PATHS = ["/v1/embeddings", "/v2/embed", "/v1/rerank", "/rerank", "/similarity", "/tokenize", "/decode", "/"]
NOT_MADE = ["/v1/multi-vector", "/embed_all", "/embed_sparse"]
ALIASES = {"/embeddings": "/v1/embeddings", "/v2/rerank": "/v1/rerank"}


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


def test_the_document_has_the_bounds_of_the_encoder(client, sparse_client, encoder):
    def field(client, path, name):
        document = client.get("/openapi.json").json()
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return schema["properties"][name]

    assert field(client, "/v2/embed", "output_dimension")["maximum"] == encoder.dim
    assert field(client, "/v1/rerank", "max_tokens_per_doc")["maximum"] == encoder.max_tokens
    assert len(field(client, "/v1/embeddings", "input")["anyOf"]) == 4
    assert len(field(sparse_client, "/v1/embeddings", "input")["anyOf"]) == 2
    assert field(client, "/decode", "ids")["anyOf"][1]["items"]["items"]["maximum"] == 399
