"""Index builds as jobs of the service: submitted, followed, killed, resumed, cancelled."""

import json
import os
import signal

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from api.telemetry import metrics
from tests.api.conftest import error_of, wait_until

ENDED = ("succeeded", "failed", "cancelled", "interrupted")
MANY = 1500
ROWS = [{"sku": f"d{n}", "text": f"{n} " + "night rain " * (n % 9 + 9)} for n in range(MANY)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


@pytest.fixture(scope="module")
def jobs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "many.jsonl").write_bytes(LINES)
    (folder / "secret").symlink_to("/etc")
    return folder


@pytest.fixture(scope="module")
def settings(tiny_llama, tmp_path_factory, jobs_dir):
    root = tmp_path_factory.mktemp("jobs")
    further = {"last": f"last_token:+truncate:8@{tiny_llama}"}
    return Settings(model=str(tiny_llama), models=further, data_dir=root, device="cpu", jobs_dir=jobs_dir, max_jobs=2)


@pytest.fixture(scope="module")
def client(settings, encoder):
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def job(client, name):
    answer = client.get(f"/v1/jobs/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def items(outcome):
    return metrics.registry().get_sample_value("es_job_items_total", {"outcome": outcome}) or 0.0


def ended(client, name):
    assert wait_until(lambda: job(client, name)["state"] in ENDED, 400)
    return job(client, name)


def test_a_killed_job_goes_on_from_its_shards_and_tells_what_it_left_out(client):
    lines = LINES + b'\n{"sku": "bad"}\n'
    form = {"collection": "sent", "id_field": "sku", "index": "exact", "shard_size": "25"}
    before = {outcome: items(outcome) for outcome in ("done", "dead_letter")}
    answer = client.post("/v1/jobs", files={"file": ("rows.jsonl", lines)}, data=form)
    assert answer.status_code == 202, answer.text
    name = answer.json()["id"]
    assert wait_until(lambda: (job(client, name)["progress"] or {}).get("done", 0) > 50, 400)
    process = client.app.state.service.jobs._processes[name]
    again = client.post("/v1/jobs", json={"collection": "sent", "source": "many.jsonl"})
    error_of(again, 409, "job_running", "collection")
    error_of(client.delete(f"/v1/jobs/{name}"), 409, "job_running", "job")
    error_of(client.post(f"/v1/jobs/{name}/resume"), 409, "job_not_stopped", "job")
    os.kill(process.pid, signal.SIGKILL)
    killed = ended(client, name)
    assert (killed["state"], killed["attempts"]) == ("failed", 1)
    error_of(client.post(f"/v1/jobs/{name}/cancel"), 409, "job_ended", "job")
    error_of(client.get("/v1/collections/sent"), 404, "collection_not_found", "collection")
    assert client.post(f"/v1/jobs/{name}/resume").json()["state"] in ("queued", "running")
    events = []
    with client.stream("GET", f"/v1/jobs/{name}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                events.append(line.removeprefix("event: "))
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
    assert events[-1] == "end"
    assert events.count("end") == 1
    assert last == job(client, name)
    assert last["state"] == "succeeded", last
    assert (last["report"]["count"], last["dead_letters"], last["attempts"]) == (MANY, 1, 2)
    assert 0 < last["report"]["report"]["resumed"] < MANY // 25
    assert items("dead_letter") == before["dead_letter"] + 1
    made = MANY + 1 - 25 * last["report"]["report"]["resumed"]  # by the second process
    assert made + 50 < items("done") - before["done"] <= MANY + 1
    letters = client.get(f"/v1/jobs/{name}/dead-letters").text.splitlines()
    assert [json.loads(line)["line"] for line in letters] == [MANY + 1]
    assert client.post("/v1/collections/sent/count", json={}).json() == {"count": MANY}
    assert name not in [one["id"] for one in client.delete(f"/v1/jobs/{name}").json()["jobs"]]
    error_of(client.get(f"/v1/jobs/{name}"), 404, "job_not_found", "job")


def test_a_cancelled_job_keeps_what_it_made_and_the_next_server_knows_it(client, settings, encoder):
    client.post("/v1/collections", json={"name": "stopped", "index": "exact"})
    write = {"documents": [{"id": "a", "text": "x"}]}
    assert client.post("/v1/collections/stopped/documents", json=write).status_code == 200
    body = {"collection": "stopped", "source": "many.jsonl", "id_field": "sku", "index": "exact", "shard_size": 10}
    name = client.post("/v1/jobs", json=body).json()["id"]
    assert wait_until(lambda: job(client, name)["progress"] is not None, 400)
    error_of(client.post("/v1/collections/stopped/documents", json=write), 409, "busy", "collection")
    assert client.post("/v1/collections/stopped/count", json={}).json() == {"count": 1}
    assert client.post(f"/v1/jobs/{name}/cancel").status_code == 200
    assert ended(client, name)["state"] == "cancelled"
    assert client.post("/v1/collections/stopped/documents", json=write).status_code == 200
    assert list((settings.data_dir / "submitted" / name / "work" / "shards").iterdir())
    with TestClient(create_app(settings, encoder)) as later:
        assert wait_until(lambda: later.get("/readyz").status_code == 200)
        assert job(later, name)["state"] == "cancelled"


def test_a_job_saved_as_command_line_options_is_resumed(settings, encoder, tmp_path):
    source = tmp_path / "few.jsonl"
    source.write_bytes(b"\n".join(LINES.splitlines()[:20]))
    folder = tmp_path / "data" / "submitted" / "job_0123456789abcdef"
    folder.mkdir(parents=True)
    options = ["--id-field=sku", "--shard-size=5", "--on-error=stop", f"--model={settings.model}"]
    saved = {"id": folder.name, "collection": "old", "source": "few.jsonl", "arguments": [str(source), *options]}
    (folder / "job.json").write_text(json.dumps({**saved, "created": "2026-11-20T00:00:00.000+00:00"}))
    moved = settings.model_copy(update={"data_dir": tmp_path / "data"})
    with TestClient(create_app(moved, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        assert job(client, folder.name)["state"] == "interrupted"
        assert client.post(f"/v1/jobs/{folder.name}/resume").status_code == 200
        report = ended(client, folder.name)["report"]
    assert (report["count"], report["report"]["shards"]) == (20, 4)


def test_a_job_embeds_with_the_model_it_names(client):
    form = {"collection": "shorter", "id_field": "sku", "model": "last", "passage_tokens": "12"}
    sent = client.post("/v1/jobs", files={"file": ("some.jsonl", b"\n".join(LINES.splitlines()[:20]))}, data=form)
    assert sent.json()["model"] == "last", sent.text
    assert ended(client, sent.json()["id"])["state"] == "succeeded"
    assert client.post("/v1/models/last/load").status_code == 200
    assert wait_until(lambda: client.get("/v1/models/last").json().get("state") == "ready")
    described = client.get("/v1/collections/shorter").json()
    assert described["fields"]["dense"]["dim"] == 8
    asked = {"collection": "shorter", "query": "night rain"}
    assert client.post("/search", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"collection": "x", "source": "many.jsonl", "model": "nope"}, 404, "model_not_found", "model"),
        ({"collection": "x"}, 422, "missing_field", "source"),
        ({"collection": "x", "source": "../many.jsonl"}, 422, "source_not_found", "source"),
        ({"collection": "x", "source": "/etc/passwd"}, 422, "source_not_found", "source"),
        ({"collection": "x", "source": "secret/passwd"}, 422, "source_not_found", "source"),
        ({"collection": "x", "source": "none.jsonl"}, 422, "source_not_found", "source"),
        ({"collection": "X", "source": "many.jsonl"}, 422, "invalid_value", "collection"),
        ({"collection": "x", "source": "many.jsonl", "device": "cuda"}, 422, "unknown_field", "device"),
        ({"collection": "x", "source": "many.jsonl", "shard_size": 0}, 422, "invalid_value", "shard_size"),
        ({"source": "many.jsonl"}, 422, "missing_field", "collection"),
        ({"collection": "x", "source": "many.jsonl", "overlap": 4}, 422, "invalid_input", "overlap"),
    ],
)
def test_what_is_no_job_is_refused_and_leaves_nothing(client, settings, body, status, code, param):
    before = sorted(path.name for path in (settings.data_dir / "submitted").glob("*"))
    error_of(client.post("/v1/jobs", json=body), status, code, param)
    assert sorted(path.name for path in (settings.data_dir / "submitted").glob("*")) == before


def test_a_form_with_what_no_job_can_have_is_refused_or_made_to_fit(client):
    def sent(name, **fields):
        return client.post("/v1/jobs", files={"file": (name, LINES[:200])}, data={"collection": "odd", **fields})

    for digits in (30, 5000):
        error_of(sent("a.jsonl", passage_tokens="1" * digits), 422, "invalid_type", "passage_tokens")
    answer = sent("\u65e5" * 250 + ".jsonl")
    assert answer.status_code == 202, answer.text
    assert answer.json()["source"].endswith("\u65e5.jsonl")
    client.post(f"/v1/jobs/{answer.json()['id']}/cancel")
    body = {"collection": "odd", "source": "none.jsonl", "shard_size": 8.0}
    error_of(client.post("/v1/jobs", json=body), 422, "source_not_found", "source")


def test_a_server_without_a_folder_of_sources_says_so(fake_client):
    answer = fake_client.post("/v1/jobs", json={"collection": "x", "source": "many.jsonl"})
    assert "EMBEDSERVE_JOBS_DIR" in error_of(answer, 422, "no_jobs_dir", "source")
    error_of(fake_client.post("/v1/jobs", data={"collection": "x"}, files={"no": b""}), 422, "missing_field", "file")
    assert fake_client.get("/v1/jobs").json() == {"jobs": []}
