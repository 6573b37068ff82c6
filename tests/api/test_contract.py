"""Every operation conforms to the OpenAPI document: schemathesis sends valid and invalid requests."""

import json
import shutil
import threading
from collections import Counter
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection
from starlette.testclient import TestClient

from api.app import create_app, operations
from api.collections.job_manager import ENDED
from api.openapi.document import openapi_document
from api.schemas.common import Limits
from api.settings import Settings
from tests.api.conftest import wait_until
from tests.api.test_rerank_and_tokens import colbert, multi_client, sparse, sparse_client

__all__ = ["colbert", "multi_client", "sparse", "sparse_client"]

PATHS = openapi_document(operations(), Limits())["paths"]
OPERATIONS = {
    operation["operationId"]: (path, method, "parameters" in operation or "requestBody" in operation)
    for path, operations in PATHS.items()
    for method, operation in operations.items()
}
OF_OTHER_ENCODERS = {
    "jina_multi_vector": "multi_client", "tei_embed_all": "multi_client", "tei_embed_sparse": "sparse_client",
}  # fmt: skip
EXAMPLES = {"embed": 40, "search": 40}
PAGES = {"/", "/docs", "/favicon.ico", "/openapi.json"}
NULL = {"type": "null"}
INDEXES = {"enum": ["auto", "exact"]}
FIELDS = [
    {"properties": {"output": {"enum": ["dense"]}, "dim": NULL}},
    {"properties": {"output": {"enum": ["dense", "multi", "sparse"]}, "dim": {"type": "integer"}}, "required": ["dim"]},
    {"properties": {"output": {"enum": ["words"]}}, "required": ["output"]},
]
SCALAR = {"type": ["string", "boolean", "null", "integer"], "minimum": -(2**63), "maximum": 2**64 - 1}
DOCUMENTS = [
    {"id": "rain", "text": "It rained all night.", "metadata": {"kind": "weather", "year": 2024}},
    {"id": "bread/1", "text": "Knead the dough.", "title": "Bread", "metadata": {"kind": "food"}},
]


@pytest.fixture(scope="module")
def world(tiny_llama, encoder, tmp_path_factory):
    """A client of a service whose jobs all wait: none reads anything, and no process is started."""
    root = tmp_path_factory.mktemp("contract")
    (root / "sources").mkdir()
    (root / "sources" / "rows.jsonl").write_text('{"id": "a", "text": "a small dog"}\n')
    settings = Settings(
        model=str(tiny_llama), data_dir=root / "data", jobs_dir=root / "sources", device="cpu", collection="notes",
        models={"second": f"last_token@{tiny_llama}"},
    )  # fmt: skip
    gate = threading.Event()
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        client.app.state.service.jobs._runners.submit(gate.wait)
        try:
            yield client
        finally:
            cancel_jobs(client)
            gate.set()


def cancel_jobs(client):
    for job in client.get("/v1/jobs").json()["jobs"]:
        if job["state"] not in ENDED:
            assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200


def ok(answer):
    assert answer.status_code < 300, answer.text
    return answer.json()


def made(client, path):
    """Leave of all that there may be to find just what is named here, and return the names by parameter."""
    shutil.rmtree(client.app.state.service.settings.data_dir / "snapshots", ignore_errors=True)
    for alias in ok(client.get("/v1/aliases"))["aliases"]:
        ok(client.delete(f"/v1/aliases/{alias}"))
    names = {item["name"] for item in ok(client.get("/v1/collections"))["collections"]}
    for name in names - {"notes"}:
        ok(client.delete(f"/v1/collections/{name}"))
    if "notes" not in names:
        ok(client.post("/v1/collections", json={"name": "notes", "index": "exact"}))
    ok(client.post("/v1/collections/notes/documents", json={"documents": DOCUMENTS}))
    ok(client.post("/v1/collections/notes/snapshots", json={"name": "first"}))
    cancel_jobs(client)
    job = ok(client.post("/v1/jobs", json={"collection": "built", "source": "rows.jsonl"}))["id"]
    if path != "/v1/jobs/{job}/cancel":
        cancel_jobs(client)
    found = {"name": ["notes"], "snapshot": ["first"], "id": ["rain", "bread/1"], "job": [job]}
    if path != "/v1/collections/{name}":  # what has an alias cannot be deleted
        ok(client.put("/v1/aliases/latest", json={"collection": "notes"}))
        found |= {"name": ["notes", "latest"], "alias": ["latest"]}
    if path.startswith("/v1/models"):
        found |= {"id": models_made(client), "alias": ["newest", "best"]}
    return found


def models_made(client):
    ok(client.post("/v1/models/second/load"))
    models = ok(client.get("/v1/models"))["data"]
    for model in models:
        for alias in model["aliases"]:
            client.delete(f"/v1/models/{quote(model['id'])}/aliases/{quote(alias, safe='')}")
    for alias in ("newest", "best"):
        ok(client.put(f"/v1/models/second/aliases/{alias}"))
    return [model["id"] for model in models]


def narrow(operation, found, mode):
    """Let what an operation says of its input be as narrow as only the running service knows it.

    Names are of what is there: all others are wrong, and are drawn as such. So are vectors, which must be as long as
    the collection's, and numbers in metadata with more than 64 bits.
    """
    name = operation["operationId"]
    for parameter in operation.get("parameters", []):
        free = name in ("set_alias", "put_model_alias") and parameter["name"] == "alias"
        if parameter["in"] == "path" and not free:
            parameter["schema"] = {"enum": found[parameter["name"]]}
        if "contentSchema" in parameter["schema"]:
            schema = parameter.pop("schema")
            parameter["content"] = {schema["contentMediaType"]: {"schema": schema["contentSchema"]}}
    content = operation.get("requestBody", {}).get("content", {})
    fields = content.get("application/json", {}).get("schema", {}).get("properties", {})
    if name == "create_collection" and mode is GenerationMode.POSITIVE:  # fields without an index do not look at it
        fields |= {"index": INDEXES, "model": NULL}
        field = fields["fields"]["anyOf"][0]["additionalProperties"]
        field["properties"] |= {"index": INDEXES, "model": NULL}
        field["anyOf"] = FIELDS
    if name == "write_documents":
        values = {
            "anyOf": [SCALAR, {"type": "array", "items": SCALAR}, {"type": "object", "additionalProperties": SCALAR}]
        }
        fields["documents"]["items"]["properties"] |= {
            "vectors": NULL,
            "metadata": {"type": "object", "additionalProperties": values},
        }
        content["application/x-ndjson"]["schema"] = fields["documents"]
        form = content["multipart/form-data"]["schema"]
        form["properties"]["file"]["enum"] = ['{"id": "rain", "text": "It rained all day."}']
        form["properties"] |= {f"{part}_field": {"enum": [part]} for part in ("id", "text", "title")}
        form["properties"]["format"] = {"enum": ["jsonl"]}
        form["required"] = ["file", "format"]
    if name == "set_alias":
        fields["collection"] = {"enum": ["notes"]}
    if name == "submit_job":
        fields["source"] = {"enum": ["rows.jsonl"]}


@schemathesis.serializer("application/x-ndjson")
def as_lines(context, value):
    values = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(one).encode() + b"\n" for one in values)


def operation_of(client, name, mode):
    """Return an operation of the running service, as `narrow` leaves it."""
    path, method, _ = OPERATIONS[name]
    document = client.get("/openapi.json").json()
    narrow(document["paths"][path][method], {} if name in OF_OTHER_ENCODERS else made(client, path), mode)

    async def running(scope, receive, send):
        """The application, which runs already: its life is not for every call to begin and end."""
        if scope["type"] != "lifespan":
            await client.app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})

    schema = schemathesis.openapi.from_dict(document)
    schema.app = running
    return schema[path][method.upper()]


def is_taken_although_wrong(case):
    """Snapshots outlive their collection; on_error=skip names what is wrong and leaves it out; a form has but text."""
    skips = (case.query or {}).get("on_error") == "skip"
    return skips or case.media_type == "multipart/form-data" or case.operation.path.endswith("/snapshots")


def distinct(body):
    """Give the documents of one write an id each, which no JSON Schema can ask for."""
    for number, document in enumerate(body.get("documents", []) if isinstance(body, dict) else []):
        document["id"] += f" {number}"


def statuses_of(request, name, mode):
    """Send generated requests, fail on an answer that the document does not promise, and return the statuses."""
    operation = operation_of(request.getfixturevalue(OF_OTHER_ENCODERS.get(name, "world")), name, mode)
    statuses = Counter()

    @hypothesis_settings(
        max_examples=EXAMPLES.get(name, 10),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        if name == "write_documents" and mode is GenerationMode.POSITIVE:
            distinct(case.body)
        excluded = [negative_data_rejection] if is_taken_although_wrong(case) else []
        statuses[case.call_and_validate(excluded_checks=excluded).status_code] += 1

    check()
    return statuses


@pytest.mark.parametrize("name", OPERATIONS)
def test_valid_requests_get_documented_responses(request, name):
    statuses = statuses_of(request, name, GenerationMode.POSITIVE)
    assert any(status < 300 for status in statuses), statuses


@pytest.mark.parametrize("name", [name for name, (_, _, takes_something) in OPERATIONS.items() if takes_something])
def test_invalid_requests_are_rejected_as_documented(request, name):
    statuses = statuses_of(request, name, GenerationMode.NEGATIVE)
    assert any(status >= 400 for status in statuses), statuses


def test_every_route_but_the_pages_is_documented(world):
    routed = {(route.path.replace(":path", ""), method) for route in world.app.routes for method in route.methods}
    documented = {(path, method.upper()) for path, method, _ in OPERATIONS.values()}
    assert {path for path, method in routed - documented if method != "HEAD"} == PAGES
    assert documented <= routed
