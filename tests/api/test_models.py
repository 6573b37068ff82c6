"""Several models at once: listed, loaded when named, unloaded, renamed, and checked against what they once made."""

import base64
import json
import re
from contextlib import contextmanager

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.inference.reference_vectors import reference_path
from api.inference.saved_registry import FILE
from api.settings import Settings, load_settings
from embedserve import InputError
from embedserve.errors import CorruptFileError
from embedserve.loading.reference import TEXTS, read_reference, reference_vectors
from embedserve.loading.saved import save
from tests.api.conftest import error_of, wait_until


@pytest.fixture(scope="module")
def several(tiny_llama, encoder, tmp_path_factory):
    """A client of the tiny model, of "second" over the same weights, and of "broken"."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("models"),
        device="cpu",
        models={"second": f"last_token@{tiny_llama}", "broken": "mean@/nowhere/at/all"},
        model_aliases={"newest": "second"},
    )
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def embed(client, model):
    return client.post("/embed", json={"input": TEXTS, "model": model})


def state_of(client, model):
    return client.get(f"/v1/models/{model}").json()["state"]


def test_models_are_listed_in_openais_shape(several, encoder):
    body = several.get("/v1/models").json()
    assert body["object"] == "list"
    default, second, broken = body["data"]
    assert (default["id"], default["object"], default["owned_by"]) == (encoder.name, "model", "embedserve")
    assert (default["state"], default["default"], default["dim"]) == ("ready", True, encoder.dim)
    assert (default["fingerprint"], default["outputs"]) == (encoder.fingerprint, ["dense"])
    assert (second["id"], second["default"], second["aliases"]) == ("second", False, ["newest"])
    assert broken["id"] == "broken"
    assert several.get(f"/v1/models/{encoder.name}").json() == default
    assert several.get(f"/v1/models/{encoder.name.replace('/', '%2F')}").json() == default
    error_of(several.get("/v1/models/none"), 404, "model_not_found", "model")


def test_openais_client_lists_them(several, encoder):
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=several, max_retries=0)
    assert [model.id for model in client.models.list()] == [encoder.name, "second", "broken"]
    assert client.models.retrieve(encoder.name).owned_by == "embedserve"


def test_a_model_is_loaded_when_it_is_first_named_and_each_has_its_own_vectors(several, encoder, other_encoder):
    several.post("/v1/models/second/unload")
    response = embed(several, "newest")
    assert "loading" in error_of(response, 503, "loading")
    assert response.headers["retry-after"] == "1"
    assert wait_until(lambda: state_of(several, "second") == "ready")
    for name, wanted in (("second", other_encoder), ("newest", other_encoder), (None, encoder)):
        body = embed(several, name).json()
        assert body["model"] == ("second" if name else encoder.name)
        assert body["fingerprint"] == wanted.fingerprint
        found = np.array([item["embedding"] for item in body["data"]])
        np.testing.assert_allclose(found, wanted.embed(TEXTS).vectors, atol=1e-5)


def test_a_model_is_unloaded_and_loaded_again(several):
    assert several.post("/v1/models/second/load").json()["state"] == "ready"
    before = several.get("/v1/models/second").json()
    assert before["state"] == "ready"
    after = several.post("/v1/models/second/unload").json()
    assert (after["state"], after["fingerprint"], after["outputs"]) == ("unloaded", None, [])
    assert several.post("/v1/models/second/load").json() == before


def test_the_default_model_stays(several, encoder):
    error_of(several.post(f"/v1/models/{encoder.name}/unload"), 409, "default_model", "id")


def test_a_model_that_cannot_be_loaded_says_why(several):
    assert "nowhere" in error_of(several.post("/v1/models/broken/load"), 503, "model_failed")
    error_of(embed(several, "broken"), 503, "model_failed")
    item = several.get("/v1/models/broken").json()
    assert item["state"] == "failed"
    assert "nowhere" in item["error"]
    assert several.get("/readyz").status_code == 200
    metrics = several.get("/metrics").text
    assert 'es_model_failed{model="broken"} 1.0' in metrics
    assert 'es_model_failed{model="second"} 0.0' in metrics


def test_an_alias_moves_at_once(several, encoder):
    assert several.put("/v1/models/second/aliases/best").json()["aliases"] == ["best", "newest"]
    assert several.put(f"/v1/models/{encoder.name}/aliases/best").json()["aliases"] == ["best"]
    assert embed(several, "best").json()["fingerprint"] == encoder.fingerprint
    assert several.get("/v1/models/best").json()["id"] == encoder.name
    error_of(several.delete("/v1/models/second/aliases/best"), 404, "alias_not_found", "alias")
    assert several.delete(f"/v1/models/{encoder.name}/aliases/best").json()["aliases"] == []
    error_of(embed(several, "best"), 404, "model_not_found", "model")
    error_of(several.put("/v1/models/second/aliases/broken"), 409, "name_taken", "alias")


@contextmanager
def started(settings, encoder):
    """A client of a service that was just started."""
    with TestClient(create_app(settings, encoder), raise_server_exceptions=False) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_what_was_asked_of_models_holds_beyond_a_restart(tiny_llama, encoder, tmp_path):
    models = dict.fromkeys(("second", "third"), f"last_token@{tiny_llama}")
    given = {"data_dir": tmp_path / "data", "models": models, "device": "cpu"}
    settings = Settings(model_aliases={"newest": "second", "old": "third"}, **given)
    with started(settings, encoder) as client:
        assert client.put("/v1/models/second/aliases/best").json()["aliases"] == ["best", "newest"]
        assert client.put("/v1/models/third/aliases/newest").json()["aliases"] == ["newest", "old"]
        assert client.put(f"/v1/models/{encoder.name}/aliases/gone").json()["aliases"] == ["gone"]
        assert client.delete("/v1/models/third/aliases/old").json()["aliases"] == ["newest"]
        assert client.delete(f"/v1/models/{encoder.name}/aliases/gone").json()["aliases"] == []
        assert client.post("/v1/models/second/load").json()["state"] == "ready"
        before = [(model["id"], model["aliases"]) for model in client.get("/v1/models").json()["data"]]
    with started(settings, encoder) as client:
        after = [(model["id"], model["aliases"]) for model in client.get("/v1/models").json()["data"]]
        assert after == before == [(encoder.name, []), ("second", ["best"]), ("third", ["newest"])]
        assert wait_until(lambda: state_of(client, "second") == "ready")
        assert state_of(client, "third") == "unloaded"
        assert embed(client, "best").json()["model"] == "second"
        assert client.post("/v1/models/second/unload").json()["state"] == "unloaded"
    given["models"] = {"second": models["second"], "newest": models["third"]}  # a model's own name goes first
    with started(Settings(**given), encoder) as client:
        names = [(model["id"], model["state"], model["aliases"]) for model in client.get("/v1/models").json()["data"]]
        assert names[1:] == [("second", "unloaded", ["best"]), ("newest", "unloaded", [])]


def test_a_damaged_file_of_aliases_stops_the_start(encoder, tmp_path):
    settings = Settings(data_dir=tmp_path, device="cpu")
    with started(settings, encoder) as client:
        client.put(f"/v1/models/{encoder.name}/aliases/best")
    path = tmp_path / FILE
    whole = path.read_text()
    for damaged in (whole.replace("best", "bust"), whole[:40], "", "[]", whole.replace('"format": 1', '"format": 2')):
        path.write_text(damaged)
        with pytest.raises(
            CorruptFileError, match=rf"{re.escape(str(path))} is .*; remove the file and set the aliases"
        ):
            create_app(settings, encoder)
    path.write_text(whole)
    create_app(settings, encoder)


def test_an_alias_that_cannot_be_kept_is_not_made(encoder, tmp_path):
    with started(Settings(data_dir=tmp_path, device="cpu"), encoder) as client:
        (tmp_path / FILE).mkdir()
        answer = client.put(f"/v1/models/{encoder.name}/aliases/best")
        assert "cannot write" in error_of(answer, 500, "error")
        assert client.get(f"/v1/models/{encoder.name}").json()["aliases"] == []


def test_an_unused_model_is_unloaded(tiny_llama, encoder, tmp_path):
    settings = Settings(data_dir=tmp_path, models={"second": f"last_token@{tiny_llama}"}, model_keep_alive_s=0.2)
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/models/second/load").json()["state"] == "ready"
        assert wait_until(lambda: state_of(client, "second") == "unloaded")
        assert client.post("/embed", json={"input": "the default one stays"}).status_code == 200


def test_a_model_is_checked_against_what_it_first_made(several, encoder):
    path = reference_path(several.app.state.service.settings.data_dir, encoder.fingerprint)
    kept = path.read_text()
    body = several.get(f"/v1/models/{encoder.name}/selfcheck").json()
    assert (body["passed"], body["texts"]) == (True, len(TEXTS))
    assert body["largest_difference"] < 1e-5
    values = json.loads(kept)
    zeros = base64.b64encode(bytes(len(base64.b64decode(values["query"])))).decode()
    path.write_text(json.dumps({**values, "query": zeros}))
    assert several.get(f"/v1/models/{encoder.name}/selfcheck").json()["passed"] is False
    path.write_text(kept[:50])
    assert "delete it" in error_of(several.get(f"/v1/models/{encoder.name}/selfcheck"), 500, "corrupt_file", str(path))
    path.unlink()
    assert several.get(f"/v1/models/{encoder.name}/selfcheck").json()["passed"] is None
    path.write_text(kept)


def test_a_saved_model_is_checked_against_what_came_with_it(encoder, tmp_path):
    encoder.save(tmp_path / "good")
    zeros = {task: np.zeros_like(row) for task, row in reference_vectors(encoder).items()}
    save(encoder.model, encoder.spec, encoder.fingerprint, tmp_path / "drifted", zeros)
    models = {name: str(tmp_path / name) for name in ("good", "drifted")}
    with started(Settings(data_dir=tmp_path / "data", models=models, device="cpu"), encoder) as client:
        (tmp_path / "data" / "reference" / f"{encoder.fingerprint}.json").unlink()  # the default model has the same
        for name, passed in (("good", True), ("drifted", False)):
            assert client.post(f"/v1/models/{name}/load").json()["fingerprint"] == encoder.fingerprint
            assert client.get(f"/v1/models/{name}/selfcheck").json()["passed"] is passed
        assert not list((tmp_path / "data" / "reference").iterdir())


def test_nano_makes_what_it_made_when_it_was_shipped(tmp_path):
    from embedserve import Encoder

    nano = Encoder.load("nano", device="cpu")
    kept = read_reference(tmp_path / "none.json", nano.fingerprint)
    assert kept is not None
    made = reference_vectors(nano)
    assert max(np.abs(kept[task] - made[task]).max() for task in made) < 1e-4


def test_models_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_MODELS", '{"colbert": "colbert@nano"}')
    assert load_settings().models == {"colbert": "colbert@nano"}
    monkeypatch.setenv("EMBEDSERVE_MODELS", "colbert@nano")
    with pytest.raises(InputError, match="not a JSON object"):
        load_settings()
