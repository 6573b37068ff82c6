"""Rerank, similarity, token vectors, sparse weights and token ids, with encoders of each kind."""

import base64
from contextlib import contextmanager

import cohere
import numpy as np
import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from api.app import create_app
from api.inference.quantise import quantise
from api.settings import Settings
from embedserve import Encoder, EncoderSpec
from embedserve.scoring import maxsim
from tests.api.conftest import error_of, wait_until

QUERY = "the storm before lunch"
TEXTS = ["a small dog", "Why does my neighbour paint the garden before the rain?", "nobody remembers the winter storm"]


@contextmanager
def serving(encoder, folder):
    with TestClient(create_app(Settings(data_dir=folder), encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def load(tiny_llama, strategy, **more):
    return Encoder.load(EncoderSpec(strategy, str(tiny_llama), **more), device="cpu")


@pytest.fixture(scope="module")
def colbert(tiny_llama):
    return load(tiny_llama, "colbert", options={"dim": 16}, head="random", prompts={"query": "find: "})


@pytest.fixture(scope="module")
def multi_client(colbert, tmp_path_factory):
    with serving(colbert, tmp_path_factory.mktemp("multi")) as client:
        yield client


@pytest.fixture(scope="module")
def sparse(tiny_llama):
    return load(tiny_llama, "promptreps")


@pytest.fixture(scope="module")
def sparse_client(sparse, tmp_path_factory):
    with serving(sparse, tmp_path_factory.mktemp("sparse")) as client:
        yield client


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cosines(encoder):
    return encoder.embed(TEXTS).vectors @ encoder.embed([QUERY], task="query").vectors[0]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_orders_by_cosine(client, encoder, path):
    wanted = cosines(encoder)
    answer = post(client, path, query=QUERY, documents=TEXTS, model=encoder.name)
    assert [item["index"] for item in answer["results"]] == np.argsort(-wanted).tolist()
    scores = [item["relevance_score"] for item in answer["results"]]
    np.testing.assert_allclose(scores, np.sort(wanted)[::-1], atol=1e-5)
    assert all("document" not in item for item in answer["results"])
    read = int(encoder.embed(TEXTS).tokens.sum() + encoder.embed([QUERY]).tokens.sum())
    assert answer["usage"]["total_tokens"] == answer["meta"]["billed_units"]["input_tokens"] == read


def test_rerank_orders_by_maxsim_of_token_vectors(multi_client, colbert):
    query, documents = colbert.encode([QUERY], "query").multi, colbert.encode(TEXTS).multi
    wanted = maxsim(query[0], documents)
    answer = post(multi_client, "/rerank", query=QUERY, documents=[{"text": TEXTS[0]}, *TEXTS[1:]], top_n=2)
    best = np.argsort(-wanted)[:2]
    assert [item["index"] for item in answer["results"]] == best.tolist()
    np.testing.assert_allclose([item["relevance_score"] for item in answer["results"]], wanted[best], rtol=1e-4)


def test_rerank_returns_documents_and_keeps_the_order_of_ties(client):
    answer = post(client, "/rerank", query=QUERY, documents=["same", "same", *TEXTS], return_documents=True)
    assert [item["document"]["text"] for item in answer["results"]] != ["same", "same", *TEXTS]
    places = [item["index"] for item in answer["results"]]
    assert places.index(0) + 1 == places.index(1)
    assert {item["index"]: item["document"]["text"] for item in answer["results"]}[3] == TEXTS[1]


def test_the_clients_of_cohere_rerank(address, client, encoder):
    wanted = [item["index"] for item in post(client, "/rerank", query=QUERY, documents=TEXTS)["results"]]
    with (
        cohere.ClientV2(base_url=address, api_key="none") as second,
        cohere.Client(base_url=address, api_key="none") as first,
    ):
        answers = [
            second.rerank(model=encoder.name, query=QUERY, documents=TEXTS, top_n=2, max_tokens_per_doc=99),
            first.rerank(model=encoder.name, query=QUERY, documents=TEXTS, top_n=2, return_documents=True),
        ]
        with pytest.raises(cohere.UnprocessableEntityError) as refused:
            second.rerank(model=encoder.name, query=QUERY, documents=TEXTS, top_n=0)
    for answer in answers:
        assert [item.index for item in answer.results] == wanted[:2]
    assert answers[1].results[0].document.text == TEXTS[wanted[0]]
    assert refused.value.body["error"]["param"] == "top_n"


def test_rerank_in_the_format_of_tei(client, encoder):
    wanted = cosines(encoder)
    answer = post(client, "/rerank", query=QUERY, texts=TEXTS, raw_scores=True, return_text=True, truncate=True)
    assert [item["index"] for item in answer] == np.argsort(-wanted).tolist()
    assert [item["text"] for item in answer] == [TEXTS[item["index"]] for item in answer]
    np.testing.assert_allclose([item["score"] for item in answer], np.sort(wanted)[::-1], atol=1e-5)
    refused = client.post("/rerank", json={"query": QUERY, "texts": []})
    assert refused.status_code == 422
    assert refused.json() == {"error": "texts is an empty list; send at least one entry", "error_type": "validation"}
    both = client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "documents": TEXTS})
    assert "unknown field 'texts'" in error_of(both, 422, "unknown_field", "texts")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"query": QUERY, "documents": []}, "empty_list", "documents"),
        ({"query": QUERY, "documents": "rain"}, "invalid_type", "documents"),
        ({"query": QUERY, "documents": ["rain", {"title": "x"}]}, "invalid_type", "documents[1]"),
        ({"query": QUERY, "documents": ["rain", ""]}, "empty_text", "documents[1]"),
        ({"query": " ", "documents": ["rain"]}, "empty_text", "query"),
        ({"query": QUERY}, "missing_field", "documents"),
        ({"query": QUERY, "documents": ["rain"], "top_n": "2"}, "invalid_type", "top_n"),
        ({"query": "a", "documents": ["a"], "max_tokens_per_doc": 1}, "max_tokens_out_of_range", "max_tokens_per_doc"),
    ],
)
def test_rerank_rejects_with_the_field(client, body, code, param):
    error_of(client.post("/v1/rerank", json=body), 422, code, param)


@pytest.mark.parametrize("kind", ["float", "int8", "ubinary", "base64"])
def test_jina_has_a_vector_for_each_token(multi_client, colbert, kind):
    answer = post(multi_client, "/v1/multi-vector", input=TEXTS, input_type="query", embedding_type=kind)
    native = post(multi_client, "/embed", input=TEXTS, input_type="query")["data"]
    for item, other in zip(answer["data"], native, strict=True):
        wanted = np.array(other["multi"], dtype=np.float32)
        if kind == "base64":
            rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in item["embeddings"]]
            np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-6)
        else:
            np.testing.assert_allclose(item["embeddings"], quantise(wanted, kind), rtol=0, atol=1e-6)
    assert answer["usage"]["total_tokens"] == sum(item["tokens"] for item in native)
    short = post(multi_client, "/v1/multi-vector", input=TEXTS[0], dimensions=5)["data"][0]["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)


def test_tei_has_a_vector_for_each_token(multi_client):
    native = post(multi_client, "/embed", input=TEXTS)["data"]
    for found, item in zip(post(multi_client, "/embed_all", inputs=TEXTS), native, strict=True):
        np.testing.assert_allclose(found, item["multi"], rtol=0, atol=1e-6)


def test_tei_has_sparse_weights(sparse_client):
    answer = sparse_client.post("/embed_sparse", json={"inputs": TEXTS})
    native = post(sparse_client, "/embed", input=TEXTS)["data"]
    for found, item in zip(answer.json(), native, strict=True):
        assert [entry["index"] for entry in found] == item["sparse"]["indices"] != []
        np.testing.assert_allclose([entry["value"] for entry in found], item["sparse"]["values"], rtol=0, atol=1e-6)
    assert answer.headers["x-compute-tokens"] == str(sum(item["tokens"] for item in native))
    assert answer.headers["x-compute-characters"] == str(sum(map(len, TEXTS)))


def test_an_unsupported_output_is_rejected(client, multi_client):
    for path in ("/embed_all", "/embed_sparse"):
        refused = client.post(path, json={"inputs": "rain"})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
        assert "makes dense vectors, not" in refused.json()["error"]
    error_of(client.post("/v1/multi-vector", json={"input": "rain"}), 422, "not_made", "model")
    error_of(multi_client.post("/v2/embed", json={"texts": ["rain"]}), 422, "not_made", "model")
    error_of(multi_client.post("/v1/embeddings", json={"input": "rain"}), 400, "not_made", "model")


def test_similarity_is_maxsim_of_token_vectors(multi_client, colbert):
    inputs = {"source_sentence": QUERY, "sentences": TEXTS}
    found = post(multi_client, "/similarity", inputs=inputs, parameters={"prompt_name": "query"})
    made = colbert.encode([QUERY, *TEXTS], "query").multi
    documents = made.take(np.array([1, 2, 3]))
    np.testing.assert_allclose(found, maxsim(made[0], documents), rtol=1e-4)


def test_tokenize_returns_the_ids_that_the_model_reads(client, encoder, settings):
    found = post(client, "/tokenize", inputs=TEXTS)
    assert [[token["id"] for token in row] for row in found] == [row.tolist() for row in encoder.tokenize(TEXTS).ids]
    first, *others = found[0]
    assert first == {"id": 1, "text": "<s>", "special": True, "start": None, "stop": None}
    assert all(token["text"] == TEXTS[0][token["start"] : token["stop"]] for token in others)
    plain = post(client, "/tokenize", inputs=TEXTS[0], add_special_tokens=False)
    assert plain == [others]
    own = AutoTokenizer.from_pretrained(settings.model)(TEXTS)["input_ids"]
    assert own == [[token["id"] for token in row] for row in found]
    assert post(client, "/decode", ids=own) == TEXTS
    assert post(client, "/decode", ids=own[0]) == [TEXTS[0]]
    assert post(client, "/decode", ids=own[0], skip_special_tokens=False) == [f"<s>{TEXTS[0]}"]


def test_long_rows_of_ids_are_cut_at_the_requested_end(client, encoder):
    row = [1, *range(5, 5 + encoder.max_tokens + 10)]
    limit = encoder.max_tokens

    def made(ids, **more):
        answer = client.post("/v1/embeddings", json={"input": [ids], **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["embedding"]

    np.testing.assert_allclose(made(row), made(row[:limit]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(made(row, truncate="start"), made([1, *row[1 - limit :]]), rtol=0, atol=1e-6)
    refused = client.post("/v1/embeddings", json={"input": [row], "truncate": "none"})
    assert f"has {len(row)} tokens, the limit is {limit}" in error_of(refused, 400, "input_too_long", "input")


def test_an_encoder_with_its_own_prompt_format_rejects_ids(sparse_client):
    refused = sparse_client.post("/v1/embeddings", json={"input": [[1, 5, 6], [1, 7]]})
    assert "send the text" in error_of(refused, 400, "invalid_input", "input[0]")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/tokenize", {"inputs": 3}, "inputs must be a string or a list of strings, got a number"),
        ("/decode", {"ids": [1, 4000]}, "ids has the id 4000; the ids of"),
        ("/decode", {"ids": [[1], [4000]]}, "ids[1] has the id 4000; the ids of"),
        ("/decode", {"ids": "rain"}, "ids must be a list of token ids or a list of lists of token ids, got a string"),
        ("/similarity", {"inputs": {"source_sentence": "rain"}}, "inputs.sentences is missing"),
        ("/similarity", {"inputs": {"source_sentence": "", "sentences": ["a"]}}, "source_sentence is empty"),
        ("/embed", {"inputs": ["rain", ""]}, "inputs[1] is empty"),
        (
            "/embed",
            {"inputs": "rain", "truncation_direction": "Up"},
            "must be 'Left', 'Right', 'left' or 'right', got 'Up'",
        ),
        ("/", {"inputs": "rain", "prompt_name": "passage"}, "its prompts are query and document"),
        ("/", {}, "inputs is missing"),
    ],
)
def test_errors_of_tei_are_flat(client, path, body, says):
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert sorted(answer.json()) == ["error", "error_type"]
    assert says in answer.json()["error"]


def test_info_has_the_limits_that_clients_of_tei_read(client, encoder, settings):
    info = client.get("/info").json()
    assert (info["model_id"], info["served_model_name"]) == (settings.model, encoder.name)
    assert (info["max_input_length"], info["max_batch_tokens"]) == (encoder.max_tokens, encoder.batch_tokens)
    assert (info["max_client_batch_size"], info["auto_truncate"]) == (settings.max_inputs, True)
    assert (info["model_type"], info["model_dtype"]) == ({"embedding": {"pooling": encoder.spec.strategy}}, "float32")
