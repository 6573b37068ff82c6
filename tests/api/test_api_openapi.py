"""The OpenAPI document describes every field and error, with the limits of the server; see also test_contract.py."""


def test_every_route_documents_its_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/embed", "/info", "/livez", "/metrics", "/readyz", "/search"} <= set(paths)
    for path in ("/embed", "/search"):
        operation = paths[path]["post"]
        assert {"200", "400", "404", "413", "415", "422", "429", "500", "503"} <= set(operation["responses"])
        for code, response in operation["responses"].items():
            name = "ErrorResponse" if code != "200" else "Response"
            assert response["content"]["application/json"]["schema"]["$ref"].endswith(name)


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
