"""Published clients of OpenAI, Cohere and Hugging Face with a server on loopback."""

import base64
from concurrent.futures import ThreadPoolExecutor

import cohere
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from starlette.testclient import TestClient

from api.app import create_app
from api.http.auth import new_key
from api.inference.quantise import VECTOR_TYPES, quantise
from api.settings import Settings
from tests.api.conftest import wait_until

TEXTS = [
    "rain",
    "Why does my neighbour paint the quiet garden before the rain?",
    "Größe, naïveté and 東京",
    "a dog " * 9,
]


@pytest.fixture(scope="module")
def vectors(client):
    return np.array([item["embedding"] for item in embed(client, input=TEXTS)], dtype=np.float32)


def embed(client, **body):
    answer = client.post("/embed", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@pytest.fixture(scope="module")
def openai_client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def cohere_client(address):
    with cohere.ClientV2(base_url=address, api_key="none") as client:
        yield client


@pytest.fixture
def hub_client(address, online):
    return InferenceClient(base_url=address)


@pytest.fixture
def online(monkeypatch):
    """The hub's client refuses every address, this machine's too, where HF_HUB_OFFLINE is set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def from_base64(text):
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


WAYS = {
    "openai, its default": lambda clients, texts: [
        item.embedding for item in clients["openai"].embeddings.create(model=clients["model"], input=texts).data
    ],
    "openai, float": lambda clients, texts: [
        item.embedding
        for item in clients["openai"]
        .embeddings.create(model=clients["model"], input=texts, encoding_format="float")
        .data
    ],
    "openai, base64": lambda clients, texts: [
        from_base64(item.embedding)
        for item in clients["openai"]
        .embeddings.create(model=clients["model"], input=texts, encoding_format="base64")
        .data
    ],
    "openai, token ids": lambda clients, texts: [
        item.embedding
        for item in clients["openai"]
        .embeddings.create(
            model=clients["model"],
            input=[[token["id"] for token in row] for row in clients["plain"]("/tokenize", inputs=texts)],
        )
        .data
    ],
    "openai, without v1": lambda clients, texts: [
        item["embedding"] for item in clients["plain"]("/embeddings", input=texts)["data"]
    ],
    "cohere, float": lambda clients, texts: (
        clients["cohere"]
        .embed(model=clients["model"], texts=texts, input_type="search_document", embedding_types=["float"])
        .embeddings.float_
    ),
    "cohere, base64": lambda clients, texts: [
        from_base64(row)
        for row in clients["cohere"]
        .embed(model=clients["model"], texts=texts, input_type="clustering", embedding_types=["base64"])
        .embeddings.base64
    ],
    "hub": lambda clients, texts: clients["hub"].feature_extraction(texts),
    "hub, at /embed": lambda clients, texts: clients["hub at /embed"].feature_extraction(texts),
    "hub, one by one": lambda clients, texts: [clients["hub"].feature_extraction(text)[0] for text in texts],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_text_has_the_same_vector_over_every_route_and_encoding(
    client, address, encoder, vectors, openai_client, cohere_client, hub_client, way
):
    clients = {
        "openai": openai_client,
        "cohere": cohere_client,
        "hub": hub_client,
        "hub at /embed": InferenceClient(model=f"{address}/embed"),
        "plain": lambda path, **body: client.post(path, json=body).json(),
        "model": encoder.name,
    }
    found = np.array(WAYS[way](clients, TEXTS), dtype=np.float32)
    np.testing.assert_allclose(found, vectors, rtol=0, atol=1e-6)


def test_openai_dimensions_usage_and_extensions(client, encoder, openai_client):
    answer = openai_client.embeddings.create(
        model=encoder.name, input=TEXTS, dimensions=6, user="someone", extra_body={"input_type": "query"}
    )
    wanted = embed(client, input=TEXTS, dimensions=6, input_type="query")
    np.testing.assert_allclose(
        [item.embedding for item in answer.data], [item["embedding"] for item in wanted], rtol=0, atol=1e-6
    )
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert answer.model == encoder.name
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(item["tokens"] for item in wanted)


def test_openai_one_text_and_one_row_of_ids(client, encoder, openai_client, vectors):
    text = openai_client.embeddings.create(model=encoder.name, input=TEXTS[0]).data
    (row,) = client.post("/tokenize", json={"inputs": TEXTS[0]}).json()
    ids = openai_client.embeddings.create(model=encoder.name, input=[token["id"] for token in row]).data
    for (item,) in (text, ids):
        np.testing.assert_allclose(item.embedding, vectors[0], rtol=0, atol=1e-6)


def test_openai_instruction_and_truncate(encoder, openai_client):
    def made(**extra):
        return openai_client.embeddings.create(model=encoder.name, input=["word " * 400], extra_body=extra).data[0]

    assert made(truncate="start").embedding != made(instruction="Find this: ").embedding
    with pytest.raises(openai.BadRequestError, match="limit is 256") as refused:
        made(truncate="none")
    assert (refused.value.code, refused.value.param) == ("input_too_long", "input")
    with pytest.raises(openai.BadRequestError, match="send one of them"):
        made(instruction="Find this: ", prompt_name="query")


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"input": ""}, openai.BadRequestError, "empty_text", "input"),
        ({"input": ["rain", ""]}, openai.BadRequestError, "empty_text", "input[1]"),
        ({"input": []}, openai.BadRequestError, "empty_list", "input"),
        ({"input": [[1, 2], []]}, openai.BadRequestError, "empty_text", "input[1]"),
        ({"input": [[1, 2], [3, "x"]]}, openai.BadRequestError, "invalid_type", "input[1][1]"),
        ({"input": [[1, 2], [3, 4000]]}, openai.BadRequestError, "invalid_input", "input[1]"),
        ({"input": [1, 2, -3]}, openai.BadRequestError, "unknown_token", "input[2]"),
        ({"input": [1, "rain"]}, openai.BadRequestError, "invalid_type", "input[1]"),
        ({"input": "rain", "dimensions": 10_000}, openai.BadRequestError, "dimensions_out_of_range", "dimensions"),
        ({"input": "rain", "model": "gpt"}, openai.NotFoundError, "model_not_found", "model"),
        (
            {"input": "rain", "encoding_format": "hex"},
            openai.BadRequestError,
            "invalid_encoding_format",
            "encoding_format",
        ),
        ({"input": "rain", "extra_body": {"wat": 1}}, openai.BadRequestError, "unknown_field", "wat"),
    ],
)
def test_openai_errors_have_its_classes_and_name_the_field(encoder, openai_client, fields, kind, code, param):
    with pytest.raises(openai.APIStatusError) as refused:
        openai_client.embeddings.create(**{"model": encoder.name, **fields})
    error = refused.value
    assert type(error) is kind
    assert (error.code, error.param, error.type.endswith("_error")) == (code, param, True)
    assert error.body["request_id"] == error.request_id
    assert error.body["message"] in str(error)


def test_openai_gets_retry_after(fake, fake_client):
    with (
        openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=fake_client, max_retries=0) as busy,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(fake_client.post, "/embed", json={"input": "wait"})
        assert fake.waiting.wait(30)
        with pytest.raises(openai.RateLimitError) as refused:
            busy.embeddings.create(model="fake", input="too much")
        fake.gate.set()
        assert first.result().status_code == 200
    assert refused.value.code == "overloaded"
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_each_client_authenticates_in_its_own_way(settings, encoder):
    key, line = new_key("app", "read")
    guarded = Settings(**settings.model_dump() | {"api_keys": (line,)})
    with TestClient(create_app(guarded, encoder)) as http:
        assert wait_until(lambda: http.get("/readyz").status_code == 200)
        more = {"base_url": "http://testserver/v1", "http_client": http, "max_retries": 0}
        with openai.OpenAI(api_key=key, **more) as client:
            assert client.embeddings.create(model=encoder.name, input="rain").data
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="es_wrong").embeddings.create(model=encoder.name, input="rain")
            assert [model.id for model in client.models.list()]
            http.headers["Authorization"] = f"Bearer {key}"
            bodies = {
                "/v2/embed": {"texts": ["rain"]},
                "/v2/rerank": {"query": "rain", "documents": ["rain"]},
                "/": {"inputs": "rain"},
                "/similarity": {"inputs": {"source_sentence": "rain", "sentences": ["rain"]}},
                "/tokenize": {"inputs": "rain"},
                "/decode": {"ids": [5]},
            }
            assert {path: http.post(path, json=body).status_code for path, body in bodies.items()} == dict.fromkeys(
                bodies, 200
            )


@pytest.mark.parametrize("dimension", [None, 12])
def test_cohere_gives_several_types_of_one_vector(client, encoder, cohere_client, dimension):
    answer = cohere_client.embed(
        model=encoder.name,
        texts=TEXTS,
        input_type="search_query",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
        **({"output_dimension": dimension} if dimension else {}),
    )
    items = embed(client, input=TEXTS, input_type="query", dimensions=dimension)
    wanted = np.array([item["embedding"] for item in items], dtype=np.float32)
    np.testing.assert_allclose(answer.embeddings.float_, wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose([from_base64(row) for row in answer.embeddings.base64], wanted, rtol=0, atol=1e-6)
    for kind in set(VECTOR_TYPES) - {"float"}:
        assert getattr(answer.embeddings, kind) == quantise(wanted, kind).tolist(), kind
    assert answer.texts == TEXTS
    assert answer.response_type == "embeddings_by_type"
    assert answer.meta.billed_units.input_tokens == sum(item["tokens"] for item in items)


def test_cohere_truncates_the_requested_end(encoder, cohere_client):
    def made(truncate, **options):
        text = "The first words. " + "word " * 400 + "The last words."
        kind = {"model": encoder.name, "input_type": "search_document", "truncate": truncate}
        return cohere_client.embed(texts=[text], **kind, **options).embeddings.float_[0]

    assert made("END") != made("START") != made("END", max_tokens=20)
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        made("NONE")
    assert refused.value.body["error"]["param"] == "texts"
    with pytest.raises(cohere.UnprocessableEntityError, match="output_dimension is 99; "):
        made("END", output_dimension=99)
    with pytest.raises(cohere.NotFoundError):
        cohere_client.embed(model="embed-v4.0", texts=["rain"], input_type="search_query")


def test_the_hub_client_compares_and_names_options(client, address, hub_client, vectors):
    similar = hub_client.sentence_similarity(TEXTS[0], TEXTS[1:])
    np.testing.assert_allclose(similar, vectors[1:] @ vectors[0], rtol=0, atol=1e-6)
    same = InferenceClient(model=f"{address}/similarity").sentence_similarity(TEXTS[0], TEXTS[1:])
    np.testing.assert_allclose(same, similar, rtol=0, atol=1e-6)
    found = hub_client.feature_extraction(
        TEXTS, normalize=True, truncate=True, truncation_direction="left", prompt_name="query", dimensions=6
    )
    wanted = [item["embedding"] for item in embed(client, input=TEXTS, input_type="query", dimensions=6)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    cut = hub_client.feature_extraction(TEXTS, normalize=False, dimensions=6)
    np.testing.assert_allclose(cut, vectors[:, :6], rtol=0, atol=1e-6)
    with pytest.raises(HfHubHTTPError) as refused:
        hub_client.feature_extraction("word " * 400, truncate=False)
    body = refused.value.response.json()
    assert sorted(body) == ["error", "error_type"]
    assert body["error"].startswith("inputs has 1,202 tokens, the limit is 256")
    assert body["error_type"] == "validation"
