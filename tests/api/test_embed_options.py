"""Options of POST /embed: prompts, outputs, types, truncation, media types, and streamed lines."""

import asyncio
import base64
import io
import json
import threading

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.inference.quantise import quantise
from api.settings import Settings
from embedserve import Encoder, EncoderSpec
from tests.api.conftest import error_of, post_scope, wait_until

TEXTS = ["rain", "Why does my neighbour paint the quiet garden before the rain?", "a small dog " * 30]
LONG = "The cat watches the bridge in the evening, and the dog sleeps. " * 40


def ask(client, accept=None, **body):
    response = client.post("/embed", json=body, headers={"Accept": accept} if accept else None)
    assert response.status_code == 200, response.text
    return response


def vectors_of(response, key="embedding"):
    return np.array([item[key] for item in response.json()["data"]], dtype=np.float32)


@pytest.fixture(scope="module")
def several(tiny_llama, tmp_path_factory):
    """A client and an encoder of all three kinds of vectors that has prompts."""
    spec = EncoderSpec(strategy="promptreps", backbone=str(tiny_llama), prompts={"query": "find: "})
    encoder = Encoder.load(spec, device="cpu")
    with TestClient(create_app(Settings(data_dir=tmp_path_factory.mktemp("several")), encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client, encoder


def test_an_instruction_replaces_the_prompt(client, encoder, several):
    found = vectors_of(ask(client, input=TEXTS, instruction="In short: "))
    np.testing.assert_allclose(found, encoder.embed(["In short: " + text for text in TEXTS]).vectors, atol=1e-5)
    client, encoder = several
    for instruction, prompt in ((None, "find: "), ("find: ", "find: "), ("", "")):
        found = vectors_of(ask(client, input=TEXTS, input_type="query", instruction=instruction))
        wanted = encoder.with_prompts({"query": prompt}).encode(TEXTS, "query").dense.vectors
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_prompt_is_selected_by_name(several):
    client, encoder = several
    named = vectors_of(ask(client, input=TEXTS, prompt_name="query"))
    np.testing.assert_allclose(named, encoder.encode(TEXTS, "query").dense.vectors, atol=1e-5)
    assert np.abs(named - encoder.encode(TEXTS).dense.vectors).max() > 1e-3


def test_one_pass_returns_the_requested_outputs(several):
    client, encoder = several
    wanted = encoder.encode(TEXTS)
    assert encoder.outputs == ("dense", "sparse")
    for outputs in (None, ["dense", "sparse"], ["sparse"], "dense"):
        items = ask(client, input=TEXTS, outputs=outputs).json()["data"]
        for row, item in enumerate(items):
            assert ("embedding" in item) is (outputs is None or "dense" in outputs)
            assert ("sparse" in item) is (outputs is None or "sparse" in outputs)
            assert item["tokens"] == wanted.tokens[row]
            if "sparse" in item:
                part = dict(zip(item["sparse"]["indices"], item["sparse"]["values"], strict=True))
                assert part == pytest.approx(wanted.sparse[row], abs=1e-5)
            if "embedding" in item:
                np.testing.assert_allclose(item["embedding"], wanted.dense.vectors[row], atol=1e-5)
    message = error_of(client.post("/embed", json={"input": "a", "outputs": ["multi"]}), 422, "not_made", "outputs")
    assert "dense and sparse" in message


def test_shortened_vectors_keep_their_norm_without_normalize(client, encoder):
    whole = encoder.embed(TEXTS).vectors
    found = vectors_of(ask(client, input=TEXTS, dimensions=5, normalize=False))
    np.testing.assert_allclose(found, whole[:, :5], atol=1e-5)


def test_vectors_are_returned_in_several_types(client, encoder):
    types = ["float", "int8", "uint8", "binary", "ubinary"]
    plain = ask(client, input=TEXTS, embedding_types=types).json()["data"]
    coded = ask(client, input=TEXTS, embedding_types=types, encoding_format="base64").json()["data"]
    exact = encoder.embed(TEXTS).vectors
    for row in range(len(TEXTS)):
        assert "embedding" not in plain[row]
        assert sorted(plain[row]["embeddings"]) == sorted(types)
        for kind in types:
            wanted = quantise(exact, kind)[row]
            read = np.frombuffer(base64.b64decode(coded[row]["embeddings"][kind]), dtype=wanted.dtype)
            np.testing.assert_allclose(np.array(plain[row]["embeddings"][kind]), read.astype(float), atol=1e-6)
            np.testing.assert_allclose(read.astype(float), wanted.astype(float), atol=1e-5 if kind == "float" else 1)


def test_base64_is_float32(client, encoder):
    (item,) = ask(client, input="rain", encoding_format="base64").json()["data"]
    found = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
    np.testing.assert_allclose(found, encoder.embed(["rain"]).vectors[0], atol=1e-5)


def test_raw_rows_and_npy(client, encoder):
    exact = encoder.embed(TEXTS).vectors
    raw = ask(client, "application/octet-stream", input=TEXTS)
    assert raw.headers["content-type"] == "application/octet-stream"
    assert raw.headers["x-es-shape"] == f"3,{encoder.dim}"
    assert (raw.headers["x-es-dtype"], raw.headers["x-es-fingerprint"]) == ("float32", encoder.fingerprint)
    assert int(raw.headers["x-es-tokens"]) == encoder.tokenize(TEXTS).tokens.sum()
    np.testing.assert_allclose(np.frombuffer(raw.content, dtype="<f4").reshape(3, -1), exact, atol=1e-5)
    saved = ask(client, "application/x-npy, */*", input=TEXTS, embedding_types=["ubinary"])
    found = np.load(io.BytesIO(saved.content), allow_pickle=False)
    assert saved.headers["x-es-dtype"] == "uint8"
    assert (np.unpackbits(found ^ quantise(exact, "ubinary")).sum()) <= 2  # a component may be next to 0
    body = {"input": "a", "embedding_types": ["int8", "float"]}
    error_of(client.post("/embed", json=body, headers={"Accept": "application/x-npy"}), 422, "not_one_array", "Accept")


def test_accept_prefers_by_quality_then_by_order(client):
    for accept in ("application/json;q=0.5, application/x-npy", "application/x-npy;q=1.0, */*;q=0.1"):
        assert ask(client, accept, input="a").headers["content-type"] == "application/x-npy"
    for accept in ("application/x-npy;q=0", "application/x-npy;q=0.2, */*;q=0.8", "application/x-npy;q=high"):
        assert ask(client, accept, input="a").headers["content-type"] == "application/json"


def test_other_accept_headers_get_json(client):
    for accept in ("*/*", "text/html", "application/json", "application/json, application/x-npy"):
        assert ask(client, accept, input="a").headers["content-type"] == "application/json"


def test_a_long_text_is_cut_at_the_requested_end(client, encoder):
    end = ask(client, input=LONG, max_tokens=40).json()["data"][0]
    start = ask(client, input=[LONG, "rain"], max_tokens=40, truncate="start").json()["data"]
    assert (end["tokens"], end["truncated"]) == (40, True)
    assert [item["truncated"] for item in start] == [True, False]
    assert 36 <= start[0]["tokens"] <= 40
    tail = next(
        LONG[place:]
        for place in range(len(LONG) - 300, len(LONG))
        if len(encoder.tokenize([LONG[place:]]).ids[0]) <= 40
    )
    np.testing.assert_allclose(start[0]["embedding"], encoder.embed([tail]).vectors[0], atol=1e-5)
    np.testing.assert_allclose(start[1]["embedding"], encoder.embed(["rain"]).vectors[0], atol=1e-5)


def test_truncate_none_is_an_error_with_both_lengths(client, encoder):
    whole = len(encoder.tokenize([LONG], max_tokens=10**6).ids[0])
    body = {"input": ["rain", LONG], "truncate": "none"}
    message = error_of(client.post("/embed", json=body), 422, "input_too_long", "input[1]")
    assert f"{whole:,} tokens" in message
    assert f"limit is {encoder.max_tokens:,}" in message
    assert ask(client, input="rain", truncate="none").json()["data"][0]["truncated"] is False


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({"priority": "high"}, "invalid_priority", "priority", "'bulk'"),
        ({"truncate": "middle"}, "invalid_truncate", "truncate", "'start'"),
        ({"truncate": True}, "invalid_type", "truncate", "'start'"),
        ({"max_tokens": 7}, "max_tokens_out_of_range", "max_tokens", "at least 8"),
        ({"max_tokens": 10**6}, "max_tokens_out_of_range", "max_tokens", "8 to 256"),
        ({"outputs": []}, "empty_list", "outputs", "at least one"),
        ({"outputs": ["colbert"]}, "invalid_outputs", "outputs[0]", "'multi'"),
        ({"embedding_types": ["fp8"]}, "invalid_embedding_types", "embedding_types[0]", "'int8'"),
        ({"encoding_format": "hex"}, "invalid_encoding_format", "encoding_format", "'base64'"),
        ({"normalize": 1}, "invalid_type", "normalize", "true or false"),
        ({"prompt_name": "title"}, "unknown_prompt", "prompt_name", "document"),
        ({"prompt_name": "query", "instruction": "a"}, "conflicting_fields", "instruction", "one of them"),
        ({"instruction": "word " * 400}, "invalid_spec", "max_tokens", "no room"),
    ],
)
def test_an_invalid_option_is_rejected_with_field_and_remedy(client, body, code, param, says):
    assert says in error_of(client.post("/embed", json={"input": "rain", **body}), 422, code, param)


def test_lines_are_sent_as_batches_finish(client, encoder):
    texts = [f"{n} " * (1 + n * 37 % 90) for n in range(200)]
    response = ask(client, "application/x-ndjson", input=texts, dimensions=7)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *items, last = [json.loads(line) for line in response.text.splitlines()]
    assert sorted(item["index"] for item in items) == list(range(200))
    found = np.array([item["embedding"] for item in sorted(items, key=lambda item: item["index"])])
    np.testing.assert_allclose(found, encoder.embed(texts, dimensions=7).vectors, atol=1e-5)
    assert sorted(last) == ["dim", "fingerprint", "model", "timing_ms", "usage"]
    assert last["usage"]["total_tokens"] == sum(item["tokens"] for item in items)
    assert (last["dim"], last["fingerprint"]) == (7, encoder.fingerprint)


def test_an_error_before_the_first_batch_is_an_error_response(client):
    lines = {"Accept": "application/x-ndjson"}
    body = {"input": LONG, "truncate": "none"}
    error_of(client.post("/embed", json=body, headers=lines), 422, "input_too_long", "input")
    error_of(client.post("/embed", json={"input": "a", "model": "no"}, headers=lines), 404, "model_not_found", "model")


def test_a_failure_between_batches_is_the_last_line(fake_client, fake):
    fake_client.app.state.service.model().batcher.limit = 10**6
    fake.batch_tokens = 40
    body = {"input": ["z" * 40, "boom"]}
    response = fake_client.post("/embed", json=body, headers={"Accept": "application/x-ndjson"})
    assert response.status_code == 200
    first, last = [json.loads(line) for line in response.text.splitlines()]
    assert first["index"] == 0
    assert last["error"]["code"] == "internal"


def test_a_disconnected_stream_frees_the_queue(fake_client, fake):
    service = fake_client.app.state.service
    service.model().batcher.limit, fake.batch_tokens = 10**6, 40
    left = threading.Event()

    async def call():
        parts = [{"type": "http.request", "body": json.dumps({"input": ["z" * 40, "wait"] + ["y" * 3] * 40}).encode()}]

        async def receive():
            if parts:
                return parts.pop()
            while not left.is_set():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            if message.get("body") and fake.waiting.is_set():
                left.set()

        headers = [(b"content-type", b"application/json"), (b"accept", b"application/x-ndjson")]
        await fake_client.app(post_scope("/embed", headers), receive, send)

    thread = threading.Thread(target=asyncio.run, args=(call(),))
    thread.start()
    assert fake.waiting.wait(10)
    left.set()
    thread.join(10)
    assert service.model().batcher.pending < 120 + 40  # what waited is gone, what runs is not
    fake.gate.set()
    assert wait_until(lambda: service.model().batcher.pending == 0)
    assert sum(map(len, fake.calls[2:])) < 20  # the reference texts came before
