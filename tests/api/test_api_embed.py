"""POST /embed: response, order and precision."""

import numpy as np
import pytest

from tests.api.conftest import error_of

TEXTS = ["rain", "Why does my neighbour paint the quiet garden before the rain?", "東京", "a small dog " * 30]


def vectors_of(response):
    assert response.status_code == 200, response.text
    return np.array([item["embedding"] for item in response.json()["data"]], dtype=np.float32)


def test_the_response_has_the_documented_fields(client, encoder):
    response = client.post("/embed", json={"input": "a small dog"})
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert sorted(body) == ["data", "dim", "fingerprint", "model", "timing_ms", "usage"]
    assert sorted(body["timing_ms"]) == ["compute", "queue", "tokenize", "total"]
    assert (body["model"], body["fingerprint"], body["dim"]) == (encoder.name, encoder.fingerprint, encoder.dim)
    (item,) = body["data"]
    assert sorted(item) == ["embedding", "index", "tokens", "truncated"]
    assert item["index"] == 0
    assert item["truncated"] is False
    assert body["usage"] == {"prompt_tokens": item["tokens"], "total_tokens": item["tokens"]}


def test_vectors_equal_the_encoders_in_the_order_of_the_texts(client, encoder):
    found = vectors_of(client.post("/embed", json={"input": TEXTS}))
    np.testing.assert_allclose(found, encoder.embed(TEXTS).vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_text_has_the_same_vector_alone_and_in_a_batch(client):
    together = vectors_of(client.post("/embed", json={"input": TEXTS}))
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(vectors_of(client.post("/embed", json={"input": text}))[0], vector, atol=1e-5)


def test_many_texts_of_all_lengths_keep_their_order(client, encoder):
    texts = [f"{n} " * (1 + n * 37 % 90) for n in range(600)]
    response = client.post("/embed", json={"input": texts})
    assert [item["index"] for item in response.json()["data"]] == list(range(600))
    np.testing.assert_allclose(vectors_of(response), encoder.embed(texts).vectors, atol=1e-5)


@pytest.mark.parametrize("task", ["query", "document"])
def test_the_input_type_reaches_the_encoder(client, encoder, task):
    found = vectors_of(client.post("/embed", json={"input": TEXTS, "input_type": task}))
    np.testing.assert_allclose(found, encoder.embed(TEXTS, task=task).vectors, atol=1e-5)


def test_dimensions_shorten_and_normalise_vectors(client, encoder):
    for five in (5, 5.0):
        response = client.post("/embed", json={"input": TEXTS, "dimensions": five})
    assert response.json()["dim"] == 5
    np.testing.assert_allclose(vectors_of(response), encoder.embed(TEXTS, dimensions=5).vectors, atol=1e-5)


def test_dimensions_may_equal_the_models(client, encoder):
    response = client.post("/embed", json={"input": "rain", "dimensions": encoder.dim})
    assert vectors_of(response).shape == (1, encoder.dim)


def test_a_long_text_is_marked_truncated(client, encoder):
    item = client.post("/embed", json={"input": "word " * 5000}).json()["data"][0]
    assert item["truncated"] is True
    assert item["tokens"] == encoder.max_tokens


def test_a_model_is_selected_by_name_path_or_fingerprint(client, encoder, settings):
    for name in (encoder.name, settings.model, encoder.fingerprint, None):
        assert client.post("/embed", json={"input": "rain", "model": name}).status_code == 200


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ufeffrain", "‮reversed", "👩‍👩‍👧‍👦", "é" * 99, "\ud83d\ude00"])
def test_unusual_unicode_is_embedded(client, text):
    assert np.isfinite(
        vectors_of(client.post("/embed", json={"input": text.encode("utf-16", "surrogatepass").decode("utf-16")}))
    ).all()


def test_null_means_the_default(client):
    body = {"input": "rain", "model": None, "dimensions": None, "input_type": None}
    assert client.post("/embed", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({"input": ""}, "empty_text", "input", "empty"),
        ({"input": " \n\t"}, "empty_text", "input", "empty"),
        ({"input": ["rain", ""]}, "empty_text", "input[1]", "input[1]"),
        ({"input": []}, "empty_list", "input", "at least one"),
        ({"input": 3}, "invalid_type", "input", "a number"),
        ({"input": None}, "invalid_type", "input", "null"),
        ({"input": {"text": "rain"}}, "invalid_type", "input", "an object"),
        ({"input": ["rain", 3]}, "invalid_type", "input[1]", "a number (3)"),
        ({"input": ["rain", None]}, "invalid_type", "input[1]", "null"),
        ({"input": [["rain"]]}, "invalid_type", "input[0]", "a list"),
        ({"input": ["rain"] * 4097}, "too_many_inputs", "input", "4,096"),
        ({"input": ["rain", "x" * 100_001]}, "text_too_long", "input[1]", "100,000"),
        ({"input": "x" * 100_001}, "text_too_long", "input", "100,001"),
        ({}, "missing_field", "input", "missing"),
        ({"inpt": "rain"}, "unknown_field", "inpt", "'input'"),
        ({"input": "rain", "modle": "nano"}, "unknown_field", "modle", "'model'"),
        ({"input": "rain", "{curly}": 1}, "unknown_field", "{curly}", "{curly}"),
        ({"input": "rain", "input_type": "passage"}, "invalid_input_type", "input_type", "'document'"),
        ({"input": "rain", "dimensions": 0}, "dimensions_out_of_range", "dimensions", "at least 1"),
        ({"input": "rain", "dimensions": 10_000}, "dimensions_out_of_range", "dimensions", "1 to 32"),
        ({"input": "rain", "dimensions": 10**40}, "dimensions_out_of_range", "dimensions", "1 to 32"),
        ({"input": "rain", "dimensions": "8"}, "invalid_type", "dimensions", "a string"),
        ({"input": "rain", "dimensions": 8.5}, "invalid_type", "dimensions", "whole number"),
        ({"input": "rain", "dimensions": True}, "invalid_type", "dimensions", "true or false"),
        ({"input": "rain", "model": 3}, "invalid_type", "model", "a string"),
        (["rain"], "invalid_type", None, "a list"),
        ("rain", "invalid_type", None, "a string"),
    ],
)
def test_an_invalid_body_is_rejected_with_field_and_remedy(client, body, code, param, says):
    assert says in error_of(client.post("/embed", json=body), 422, code, param)


def test_several_problems_are_counted(client):
    message = error_of(client.post("/embed", json={"input": "", "dimensions": 0}), 422, "empty_text", "input")
    assert message.endswith("(and 1 more problem)")


def test_an_unknown_model_is_an_error_404(client, encoder):
    response = client.post("/embed", json={"input": "rain", "model": encoder.name + "x"})
    assert f"did you mean {encoder.name!r}" in error_of(response, 404, "model_not_found", "model")
