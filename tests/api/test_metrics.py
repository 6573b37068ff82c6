"""GET /metrics: metrics and their labels."""

import re

import torch
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from api.telemetry import metrics
from embedserve import Encoder
from tests.api.conftest import wait_until


def value(name, **labels):
    return metrics.registry().get_sample_value(name, labels) or 0.0


def test_metrics_are_in_prometheus_format(client):
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert re.search(r'^es_build_info\{faiss="[^"]+",torch="[^"]+",version="[^"]+"\} 1\.0$', answer.text, re.MULTILINE)
    assert "process_resident_memory_bytes" in answer.text
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_responses_are_counted_by_route_and_status(client):
    before = value("es_requests_total", route="/embed", code="200")
    seconds = value("es_request_duration_seconds_count", route="/embed")
    client.post("/embed", json={"input": "rain"})
    assert value("es_requests_total", route="/embed", code="200") == before + 1
    assert value("es_request_duration_seconds_count", route="/embed") == seconds + 1


def test_values_of_clients_are_not_labels(client):
    client.get("/private-path-of-someone")
    client.request("PRIVATE-OF-SOMEONE", "/embed")
    client.post("/embed", json={"input": "a", "model": "private-model-of-someone"})
    client.post("/search", json={"query": "a", "collection": "private-collection-of-someone"})
    text = client.get("/metrics").text
    assert "of-someone" not in text
    assert value("es_requests_total", route="unmatched", code="404") > 0


def test_rejections_are_counted_by_reason(client, settings):
    before = value("es_rejected_total", reason="size")
    client.post("/embed", content=b"a" * (settings.max_body_bytes + 1), headers={"Content-Type": "application/json"})
    assert value("es_rejected_total", reason="size") == before + 1


def test_a_trace_is_the_exemplar_of_its_request(client):
    trace = "0af7651916cd43dd8448eb211c80319c"
    client.post("/embed", json={"input": "a"}, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    text = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}).text
    assert f'trace_id="{trace}"' in text


def test_many_collections_share_one_label(monkeypatch):
    monkeypatch.setattr(metrics, "_seen", set())
    for number in range(metrics.MAX_COLLECTIONS + 5):
        metrics.search(f"made-up-{number}", {"total": 2.0})
    assert value("es_search_duration_seconds_count", collection="other", stage="total") == 5
    assert value("es_search_duration_seconds_sum", collection="other", stage="total") == 5 * 0.002


def test_requests_in_progress_are_counted(fake_client, fake):
    import threading

    caller = threading.Thread(target=lambda: fake_client.post("/embed", json={"input": "wait"}))
    caller.start()
    assert fake.waiting.wait(10)
    assert "es_inflight_requests 1.0" in fake_client.get("/metrics").text
    fake.gate.set()
    caller.join(10)
    assert wait_until(lambda: "es_inflight_requests 0.0" in fake_client.get("/metrics").text)


def test_embedded_tokens_and_batches_are_counted(client, settings):
    labels = {"model": settings.model}
    names = ("es_batch_items", "es_batch_tokens", "es_batch_padding_ratio", "es_compute_seconds", "es_tokenize_seconds")
    before = {name: value(f"{name}_count", **labels) for name in (*names, "es_queue_wait_seconds")}
    tokens = value("es_tokens_total", input_type="query", **labels)
    answer = client.post("/embed", json={"input": ["rain", "a small dog"], "input_type": "query"}).json()
    assert all(value(f"{name}_count", **labels) == count + 1 for name, count in before.items())
    assert value("es_tokens_total", input_type="query", **labels) == tokens + answer["usage"]["total_tokens"]
    text = client.get("/metrics").text
    assert f'es_model_loaded{{model="{settings.model}"}} 1.0' in text
    assert f'es_device_healthy{{model="{settings.model}"}} 1.0' in text
    assert f'es_queue_tokens{{model="{settings.model}"}} 0.0' in text


def test_batches_out_of_memory_are_counted(tiny_llama, tmp_path):
    encoder = Encoder.load(tiny_llama, device="cpu")

    class SmallMemory(torch.nn.Module):
        def forward(self, features):
            if len(features["sentence_embedding"]) > 1:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return features

    texts = ["rain"] * 4  # 4 do not fit, nor does either half
    with TestClient(create_app(Settings(data_dir=tmp_path, device="cpu"), encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        name = client.app.state.service.models.default.name
        encoder._modules.append(SmallMemory())
        before = value("es_oom_retries_total", model=name)
        body = client.post("/embed", json={"input": texts}).json()
        assert [item["index"] for item in body["data"]] == [0, 1, 2, 3]
        assert value("es_oom_retries_total", model=name) == before + 3


def test_truncated_texts_are_counted(client, settings):
    before = value("es_truncated_total", model=settings.model)
    client.post("/embed", json={"input": ["rain", "rain " * 2000]})
    assert value("es_truncated_total", model=settings.model) == before + 1
