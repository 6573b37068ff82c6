"""The contract of every registered strategy, over every family of decoders."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.compat import LIBRARY_VERSION, decoder_of
from embedserve.strategies import STRATEGIES, is_multi_vector, is_trained
from tests.tiny import FAMILIES, SENTENCES

LIMITS = {"promptreps": 128}  # max_tokens of the test of long texts, where the strategy's prompt needs more
QUERY_SIDE = {"promptreps"}  # strategies that encode a query otherwise than a document


def load(tiny_models, strategy, family="llama", **fields):
    if is_trained(strategy):
        fields = {"head": "random", **fields}
    return Encoder.load(EncoderSpec(strategy, str(tiny_models[family]), **fields), device="cpu")


def encoded(encoder, texts, task="document"):
    """One array for each text: its vector (d,), or those of its tokens (t, d)."""
    found = encoder.encode(texts, task)
    return list(found.multi if found.dense is None else found.dense.vectors)


def by_the_library(encoder, texts):
    """The same from the library's own loop."""
    return [np.asarray(vectors) for vectors in encoder.model.encode(texts)]


def assert_same(found, expected, atol=1e-5):
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_vector_does_not_depend_on_its_batch(tiny_models, strategy, family):
    encoder = load(tiny_models, strategy, family)
    together = encoded(encoder, SENTENCES)
    assert_same(together, [encoded(encoder, [text])[0] for text in SENTENCES])
    for vectors in together:
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
        assert vectors.dtype == np.float32
        assert vectors.shape[-1] == encoder.dim


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_vectors_are_in_the_order_of_the_texts(tiny_models, strategy):
    encoder = load(tiny_models, strategy)
    encoder.batch_tokens = 64  # several batches
    assert_same(encoded(encoder, SENTENCES[::-1])[::-1], encoded(encoder, SENTENCES))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_different_texts_have_different_vectors(tiny_models, strategy):
    found = encoded(load(tiny_models, strategy), SENTENCES)
    vectors = np.array([one.reshape(-1, one.shape[-1]).sum(axis=0) for one in found])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert similarity.max() < 1 - 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_saved_encoder_gives_the_same_bytes(tiny_models, strategy, tmp_path):
    encoder = load(tiny_models, strategy, prompts={"query": "find: "}, post=("truncate:8",))
    encoder.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved", device="cpu")
    for task in ("query", "document"):
        assert_same(encoded(again, SENTENCES, task), encoded(encoder, SENTENCES, task), atol=0)
    assert again.fingerprint == encoder.fingerprint
    assert again.spec == replace(encoder.spec, head=None)


@pytest.mark.parametrize("strategy", ["mean", "last_token", "weighted_mean", "embedfilter"])
def test_a_saved_model_loads_without_embedserve(tiny_models, strategy, tmp_path):
    encoder = load(tiny_models, strategy)
    encoder.save(tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(plain.encode(SENTENCES), encoder.embed(SENTENCES).vectors, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_library_gives_the_same_vectors_with_either_padding_side(tiny_models, strategy):
    if is_multi_vector(strategy) and LIBRARY_VERSION < 6:
        pytest.skip("sentence-transformers has no multi-vector models before 6")
    encoder = load(tiny_models, strategy)
    expected = encoded(encoder, SENTENCES)
    for side in ("right", "left"):
        encoder.model.tokenizer.padding_side = side
        assert_same(by_the_library(encoder, SENTENCES), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_queries_and_documents_differ_only_by_their_prompts(tiny_models, strategy):
    plain = load(tiny_models, strategy)
    if strategy not in QUERY_SIDE:
        assert_same(encoded(plain, SENTENCES, "query"), encoded(plain, SENTENCES), atol=0)
    prompted = load(tiny_models, strategy, prompts={"query": "what is "})
    assert_same(encoded(prompted, SENTENCES), encoded(plain, SENTENCES), atol=1e-6)
    found, other = (encoded(encoder, SENTENCES, "query") for encoder in (prompted, plain))
    moved = [
        one.reshape(-1, one.shape[-1])[-1] - two.reshape(-1, two.shape[-1])[-1]
        for one, two in zip(found, other, strict=True)
    ]
    assert np.abs(moved).max() > 1e-3
    assert prompted.fingerprint != plain.fingerprint


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_long_text_is_truncated_and_marked(tiny_models, strategy):
    limit = LIMITS.get(strategy, 64)
    encoder = load(tiny_models, strategy, max_tokens=limit)
    both = encoder.encode(["the dog sleeps " * 200, "the dog sleeps"])
    found = both.dense or both.multi
    assert found.truncated.tolist() == [True, False]
    assert limit - 8 < found.tokens[0] <= limit
    assert np.isfinite(found.vectors).all()


def test_the_cue_of_prompteol_survives_truncation(tiny_models):
    encoder = load(tiny_models, "prompteol", max_tokens=64)
    long, short = encoder.tokenize(["the dog sleeps " * 200, "a"]).ids
    cue = encoder.model.tokenizer.encode(' means in one word:"', add_special_tokens=False)
    assert long[-len(cue) + 1 :].tolist() == cue[1:] == short[-len(cue) + 1 :].tolist()


def test_a_cue_can_end_in_a_special_token_and_nothing_follows_it(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text()
    values = json.loads(text)
    single = values["post_processor"]["single"]
    single.append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    values["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    for template, end in (("{text} means</s>", [2]), ("{text} means", [])):
        spec = EncoderSpec("prompteol", str(folder), {"template": template})
        encoder = Encoder.load(spec, device="cpu")
        cue = encoder.model.tokenizer.encode(" means", add_special_tokens=False)
        assert encoder.tokenize(["rain"]).ids[0].tolist()[-len(cue + end) :] == cue + end


def test_layer_mean_of_the_last_layer_is_mean_pooling(tiny_models):
    expected = load(tiny_models, "mean").embed(SENTENCES).vectors
    one = load(tiny_models, "layer_mean", options={"layers": [4]}).embed(SENTENCES).vectors
    np.testing.assert_allclose(one, expected, atol=1e-6)
    weights = {"layers": [4, 0, 2], "weights": [3, 0, 0]}
    np.testing.assert_allclose(
        load(tiny_models, "layer_mean", options=weights).embed(SENTENCES).vectors, expected, atol=1e-6
    )


@pytest.mark.parametrize(("layers", "same"), [("all", [1, 2, 3, 4]), ("first_last", [1, 4]), ("last:2", [3, 4])])
def test_names_of_layers_equal_their_numbers(tiny_models, layers, same):
    named, numbered = (load(tiny_models, "layer_mean", options={"layers": value}) for value in (layers, same))
    np.testing.assert_array_equal(named.embed(SENTENCES).vectors, numbered.embed(SENTENCES).vectors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", ["final", "none"])
def test_layer_mean_equals_the_slow_obvious_way(tiny_models, family, norm):
    from embedserve.decoder import final_norm

    encoder = load(tiny_models, "layer_mean", family, options={"layers": [0, 1, 3, 4], "norm": norm})
    model = decoder_of(encoder.model[0])
    for text, found in zip(SENTENCES, encoder.embed(SENTENCES).vectors, strict=True):
        with torch.no_grad():
            ids = torch.tensor([encoder.tokenize([text]).ids[0].tolist()])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        parts = [
            states[n][0].mean(0) if n == 4 or norm == "none" else final_norm(model)(states[n])[0].mean(0)
            for n in (0, 1, 3, 4)
        ]
        expected = torch.stack(parts).mean(0).detach().numpy()
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=2e-5)


def test_skip_begin_excludes_the_begin_token(tiny_models):
    encoder = load(tiny_models, "layer_mean", options={"layers": [4], "skip_begin": True})
    for text, found in zip(SENTENCES, encoder.embed(SENTENCES).vectors, strict=True):
        with torch.no_grad():
            ids = torch.tensor([encoder.tokenize([text]).ids[0].tolist()])
            hidden = decoder_of(encoder.model[0])(ids).last_hidden_state[0, 1:].mean(0).numpy()
        np.testing.assert_allclose(found, hidden / np.linalg.norm(hidden), atol=1e-5)
    np.testing.assert_allclose(encoder.model.encode(SENTENCES), encoder.embed(SENTENCES).vectors, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_share_an_encoder(tiny_models, strategy):
    encoder = load(tiny_models, strategy)
    expected = encoded(encoder, SENTENCES)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoded(encoder, SENTENCES), range(16)):
            assert_same(found, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_cores_give_the_same_vectors(tiny_models, strategy):
    encoder = load(tiny_models, strategy)
    encoder.batch_tokens = 64  # several batches
    expected = encoded(encoder, SENTENCES * 4)
    torch.set_num_threads(3)
    try:
        assert_same(encoded(encoder, SENTENCES * 4), expected, atol=1e-6)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_normalised(tiny_models, dtype):
    expected = load(tiny_models, "mean").embed(SENTENCES).vectors
    found = load(tiny_models, "mean", dtype=dtype).embed(SENTENCES).vectors
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * expected).sum(axis=1).min() > 0.99


def test_weighted_mean_equals_its_formula(tiny_models):
    encoder = load(tiny_models, "weighted_mean")
    model = decoder_of(encoder.model[0])
    for text, found in zip(SENTENCES, encoder.embed(SENTENCES).vectors, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([encoder.tokenize([text]).ids[0].tolist()])).last_hidden_state[0].numpy()
        place = np.arange(1, len(hidden) + 1)
        expected = (place[:, None] * hidden).sum(0) / place.sum()
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_echo_reads_the_text_twice_and_pools_the_second_copy(tiny_models):
    rows = load(tiny_models, "echo").tokenize(["a small dog"])
    plain = load(tiny_models, "mean", "qwen2").tokenize(["a small dog"])
    assert len(rows.ids[0]) - rows.pooled_from[0] == len(plain.ids[0]) + 1  # and the end token


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"strategy": "meen"}, "did you mean 'mean'"),
        ({"strategy": "mean", "options": {"ratio": 2}}, "options.ratio"),
        ({"strategy": "embedfilter", "options": {"ratio": 0}}, "ratio"),
        ({"strategy": "embedfilter", "options": {"ratio": 2, "drop": "all"}}, "drop"),
        ({"strategy": "embedfilter", "options": {"ratio": 2, "start": 17}}, "start"),
        ({"strategy": "embedfilter", "options": {"ratio": 2, "start": True}}, "start"),
        ({"strategy": "embedfilter", "options": {"pooling": "max"}}, "pooling"),
        ({"strategy": "embedfilter", "options": {"pooling": [1]}}, "pooling"),
        ({"strategy": "prompteol", "options": {"template": "no slot"}}, "{text}"),
        ({"strategy": "layer_mean", "options": {"layers": [9]}}, "0 to 4"),
        ({"strategy": "layer_mean", "options": {"layers": "last:9"}}, "0 to 4"),
        ({"strategy": "layer_mean", "options": {"layers": [1, 2], "weights": [1]}}, "weights"),
        ({"strategy": "layer_mean", "options": {"norm": "l2"}}, "norm"),
        ({"strategy": "layer_mean", "options": {"layers": "last:²"}}, "0 to 4"),
        ({"strategy": "layer_mean", "options": {"layers": [1], "weights": 5}}, "weights"),
        ({"strategy": "layer_mean", "options": {"layers": [1], "weights": ["a"]}}, "weights"),
        ({"strategy": "layer_mean", "options": {"layers": [1, 2], "weights": [1e308, 1e308]}}, "weights"),
        ({"strategy": "layer_mean", "options": {"skip_begin": "no"}}, "skip_begin"),
        ({"strategy": "prompteol", "options": {"template": 5}}, "template"),
        ({"strategy": "echo", "options": {"pooling": "max"}}, "pooling"),
        ({"strategy": "echo", "options": {"pooling": [1]}}, "pooling"),
        ({"strategy": "echo", "options": {"repeat": None}}, "repeat"),
        ({"strategy": "echo", "options": {"before": 5}}, "before"),
        ({"strategy": "mean", "post": ("halve:2",)}, "halve"),
        ({"strategy": "mean", "post": ("truncate:99",)}, "1 to 32"),
        ({"strategy": "mean", "post": ("truncate:8", "embedfilter:2")}, "before truncate"),
        ({"strategy": "mean", "post": ("embedfilter:2", "embedfilter:2")}, "only once"),
        ({"strategy": "mean", "post": ("embedfilter",)}, "NUMBER"),
        ({"strategy": "mean", "post": ("truncate:²",)}, "NUMBER"),
        ({"strategy": "mean", "post": ("embedfilter:0",)}, "post[0]"),
        ({"strategy": "mean", "post": ("embedfilter:2:bogus",)}, "post[0]"),
    ],
)
def test_an_invalid_spec_is_refused_with_the_reason(tiny_llama, fields, word):
    with pytest.raises(SpecError) as caught:
        Encoder.load(EncoderSpec(backbone=str(tiny_llama), **fields), device="cpu")
    assert word in f"{caught.value} {caught.value.field}"


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if is_trained(name)])
def test_a_saved_head_gives_the_same_vectors(tiny_models, strategy, tmp_path):
    encoder = load(tiny_models, strategy)
    with torch.no_grad():
        for module in list(encoder.model)[1:]:
            for weight in module.parameters():
                weight.mul_(1.25)
    encoder.save_head(tmp_path / "head", half=False)
    again = Encoder.load(tmp_path / "head", device="cpu")
    assert_same(encoded(again, SENTENCES), encoded(encoder, SENTENCES), atol=1e-6)
    assert again.fingerprint != encoder.fingerprint
    named = load(tiny_models, strategy, head=str(tmp_path / "head"))
    assert named.fingerprint == again.fingerprint
    named.save(tmp_path / "whole")
    whole = Encoder.load(tmp_path / "whole", device="cpu")
    assert (whole.fingerprint, whole.spec.head) == (named.fingerprint, None)  # its weights lie in its own folder
    with pytest.raises(SpecError, match="another backbone"):
        load(tiny_models, strategy, "qwen2", head=str(tmp_path / "head"))
    with pytest.raises(SpecError, match="embedserve train"):
        load(tiny_models, strategy, head=None)


@pytest.mark.parametrize("strategy", ["mean", "last_token", "layer_mean", "embedfilter"])
def test_attention_and_template_work_with_any_pooling(tiny_models, strategy):
    plain = load(tiny_models, strategy)
    for fields in ({"attention": "bidirectional"}, {"template": "{text} and {text}"}, {"template": "say {text} again"}):
        other = load(tiny_models, strategy, **fields)
        assert_same(encoded(other, SENTENCES), [encoded(other, [text])[0] for text in SENTENCES])
        assert np.abs(np.array(encoded(other, SENTENCES)) - np.array(encoded(plain, SENTENCES))).max() > 1e-2
        assert other.fingerprint != plain.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_bidirectional_attention_reads_later_tokens(tiny_models, family):
    """The guard of the toggle: patched masks fail silently in newer versions of transformers."""
    first_state = {}
    for attention in ("causal", "bidirectional"):
        encoder = load(tiny_models, "mean", family, attention=attention, template="{text}")
        encoder.model.eval()
        with torch.no_grad():
            for ids in ([1, 5, 6, 7], [1, 5, 6, 8], [1]):
                states = encoder.model[0]({"input_ids": torch.tensor([ids])})["token_embeddings"]
                first_state[attention, tuple(ids)] = states[0, 0].numpy()
    np.testing.assert_allclose(first_state["causal", (1, 5, 6, 7)], first_state["causal", (1, 5, 6, 8)], atol=1e-6)
    moved = first_state["bidirectional", (1, 5, 6, 7)] - first_state["bidirectional", (1, 5, 6, 8)]
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(first_state["bidirectional", (1,)], first_state["causal", (1,)], atol=1e-5)


def test_a_strategy_without_trained_weights_takes_no_head(tiny_models):
    with pytest.raises(SpecError, match="no trained weights"):
        load(tiny_models, "mean", head="random")


def test_two_templates_are_refused(tiny_models):
    with pytest.raises(SpecError, match="template of its own"):
        load(tiny_models, "prompteol", template="say {text}")
