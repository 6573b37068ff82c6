"""ColBERT: parity with PyLate, and the invariants of late interaction."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.compat import LIBRARY_VERSION
from embedserve.scoring import maxsim
from embedserve.token_pooling import pool_tokens
from embedserve.types import TokenEmbeddings
from tests.embedserve.golden_files import TEXTS, arrays, backbone
from tests.tiny import FAMILIES, SENTENCES

QUERIES = ["who repairs the red house?", "rain", "two maps, the winter storm"]
PREFIXES = {"query": "[Q] ", "document": "[D] "}
EXPANDING = {"query_expansion": True, "query_length": 16}


def load(model, head="random", prompts=None, post=(), **options):
    spec = EncoderSpec("colbert", str(model), options, head=head, prompts=prompts or {}, post=post)
    return Encoder.load(spec, device="cpu")


def multi(encoder, texts, task="document"):
    return list(encoder.encode(texts, task).multi)


def ragged(matrices):
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in matrices])]).astype(np.int64)
    tokens = np.diff(offsets)
    ids = np.zeros(offsets[-1], dtype=np.int64)
    return TokenEmbeddings(np.concatenate(matrices), offsets, ids, tokens, np.zeros(len(matrices), dtype=bool))


def slow_maxsim(query, rows):
    return sum(max(float(q @ d) for d in rows) for q in query)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory):
    """tiny-llama with the two prefix tokens in its vocabulary, as PyLate adds them, without a mask token."""
    folder = tmp_path_factory.mktemp("prefixed")
    tokenizer = AutoTokenizer.from_pretrained(backbone("llama"))
    tokenizer.add_tokens(list(PREFIXES.values()))
    model = AutoModelForCausalLM.from_pretrained(backbone("llama"))
    model.resize_token_embeddings(562)
    with torch.no_grad():
        rows = arrays("colbert/llama_right_nomask.npz")["extra_embeddings"]
        model.get_input_embeddings().weight[560:] = torch.from_numpy(rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


VARIANTS = [
    ("llama_right_nomask", PREFIXES, EXPANDING),
    ("llama_right_mask", PREFIXES, EXPANDING),
    ("llama_right_nomask_attend_to_expansion_tokens-True", PREFIXES, EXPANDING | {"attend_to_expansion": True}),
    ("llama_right_nomask_do_query_expansion-False", PREFIXES, {"query_length": 16}),
    ("llama_right_nomask_query_prefix-_document_prefix-", {}, EXPANDING),
]


def golden_encoder(folder, prompts, options, golden, **more):
    encoder = load(folder, prompts=prompts, dim=16, document_length=40, skiplist="punctuation", **options, **more)
    with torch.no_grad():
        encoder.model[1].linear.weight.copy_(torch.from_numpy(golden["projection"]))
    return encoder


@pytest.mark.parametrize(("name", "prompts", "options"), VARIANTS, ids=[variant[0] for variant in VARIANTS])
def test_token_vectors_equal_those_of_pylate(prefixed, name, prompts, options):
    golden = arrays(f"colbert/{name}.npz")
    encoder = golden_encoder(prefixed, prompts, options, golden)
    encoder.model.tokenizer.mask_token = "<mask>" if name == "llama_right_mask" else None
    for letter, texts, task in (("q", QUERIES, "query"), ("d", TEXTS, "document")):
        for number, rows in enumerate(multi(encoder, texts, task)):
            np.testing.assert_allclose(rows, golden[f"{letter}{number}"], atol=1e-5)
    documents = encoder.encode(TEXTS).multi
    longest = max(map(len, documents))
    for place, query in enumerate(multi(encoder, QUERIES, "query")):
        # The published reranking pads documents with zeros: so padding raises a maximum below 0 to 0.
        padded = [np.maximum((query @ rows.T).max(axis=1), 0 if len(rows) < longest else -9) for rows in documents]
        np.testing.assert_allclose(np.sum(padded, axis=1), golden["maxsim"][place], atol=1e-4)


@pytest.mark.parametrize(("name", "prompts", "options"), VARIANTS[:1], ids=["right"])
def test_pooled_documents_equal_those_of_pylate_normalised(prefixed, name, prompts, options):
    golden = arrays(f"colbert/{name}.npz")
    for number, text in enumerate(TEXTS):
        expected = golden[f"pooled2_d{number}"]
        found = pool_tokens(golden[f"d{number}"], 2)
        order = [int(np.abs(found - row).max(axis=1).argmin()) for row in expected]
        assert sorted(order) == list(range(len(found)))
        assert order[0] == 0
        np.testing.assert_allclose(found[order], expected, atol=1e-6)
        encoder = golden_encoder(prefixed, prompts, options, golden, token_pooling=2)
        (rows,) = multi(encoder, [text])
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, unit, atol=1e-5)
    plain = golden_encoder(prefixed, prompts, options, golden)
    for one, other in zip(multi(encoder, QUERIES, "query"), multi(plain, QUERIES, "query"), strict=True):
        np.testing.assert_array_equal(one, other)  # queries are not pooled
    assert (encoder.encode(TEXTS).multi.token_ids == -1).all()


def test_token_pooling_accepts_equal_tokens():
    rows = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = pool_tokens(np.concatenate([rows[:1], np.repeat(rows, 9, axis=0)]), 9)
    np.testing.assert_allclose(found, np.concatenate([rows[:1], rows]), atol=1e-6)


def test_maxsim_equals_that_of_pylate():
    golden = arrays("colbert/scores.npz")
    plain = ragged(list(golden["D"]))
    masked = ragged([rows[mask == 1] for rows, mask in zip(golden["D"], golden["doc_mask"], strict=True)])
    for place, query in enumerate(golden["Q"]):
        np.testing.assert_allclose(maxsim(query, plain), golden["maxsim"][place], rtol=1e-5)
        # published with masked similarities as 0
        clipped = [np.maximum((query @ rows.T).max(axis=1), 0 if len(rows) < 5 else -99).sum() for rows in masked]
        np.testing.assert_allclose(clipped, golden["maxsim_masked"][place], rtol=1e-5)


def test_maxsim_over_blocks_of_rows_equals_its_definition(monkeypatch):
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((size, 8)).astype(np.float32) for size in rng.integers(1, 30, 200)]
    query = rng.standard_normal((5, 8)).astype(np.float32)
    weights = rng.random(5).astype(np.float32)
    monkeypatch.setattr("embedserve.scoring.CHUNK", 40)  # several chunks, some of them one document
    expected = [slow_maxsim(query, rows) for rows in matrices]
    np.testing.assert_allclose(maxsim(query, ragged(matrices)), expected, rtol=1e-4, atol=1e-5)
    weighted = [slow_maxsim(query * weights[:, None], rows) for rows in matrices]
    np.testing.assert_allclose(maxsim(query, ragged(matrices), weights), weighted, rtol=1e-4, atol=1e-5)


def test_invariants_of_maxsim():
    rng = np.random.default_rng(1)
    query, rows = (rng.standard_normal((size, 16)).astype(np.float32) for size in (6, 20))
    query, rows = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (query, rows))

    def score(one, other):
        return float(maxsim(one, ragged([other]))[0])

    shuffled = score(query[rng.permutation(6)], rows[rng.permutation(20)])
    assert shuffled == pytest.approx(score(query, rows), abs=1e-5)
    assert score(query, rows[:19]) <= score(query, rows) + 1e-6 <= len(query)
    assert score(query, np.concatenate([rows, rows])) == pytest.approx(score(query, rows), abs=1e-5)
    assert score(query, query) == pytest.approx(len(query), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_expansion_does_not_change_the_vectors_of_a_querys_tokens(tiny_models, family):
    plain = multi(load(tiny_models[family]), SENTENCES[:4], "query")
    for attends in (False, True):
        encoder = load(tiny_models[family], query_expansion=True, query_length=40, attend_to_expansion=attends)
        for rows, found in zip(plain, multi(encoder, SENTENCES[:4], "query"), strict=True):
            assert found.shape == (40, 128)
            np.testing.assert_allclose(found[: len(rows)], rows, atol=1e-5)
        assert [len(rows) for rows in multi(encoder, SENTENCES[:4])] == [len(rows) for rows in plain]


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_expanded_queries_do_not_depend_on_their_batch_or_the_padding_side(tiny_models, attends, side):
    options = EXPANDING | {"attend_to_expansion": attends}
    encoder = load(tiny_models["llama"], **options)
    queries = ["rain", "a small dog", "the " * 40]
    together = multi(encoder, queries, "query")
    encoder.model.tokenizer.padding_side = side
    library = encoder.model.encode_query(queries, convert_to_numpy=True) if LIBRARY_VERSION >= 6 else together
    for place, query in enumerate(queries):
        np.testing.assert_allclose(together[place], multi(encoder, [query], "query")[0], atol=1e-5)
        np.testing.assert_allclose(together[place], library[place], atol=1e-5)
        assert len(together[place]) == 16
    assert encoder.encode(queries, "query").tokens.tolist()[:2] == [3, 6]  # what fills up is not counted as read


def test_attention_to_expansion_tokens_changes_only_those(tiny_models):
    without, within = (
        multi(load(tiny_models["llama"], **EXPANDING, attend_to_expansion=attends), ["rain"], "query")[0]
        for attends in (False, True)
    )
    np.testing.assert_allclose(without[:2], within[:2], atol=1e-5)
    assert np.abs(without[4:] - within[4:]).max() > 1e-3


def test_punctuation_is_skipped_in_documents_only(tiny_models):
    encoder = load(tiny_models["qwen2"], skiplist="punctuation")
    texts = ["a.", "..."]
    assert [len(rows) for rows in multi(encoder, texts, "query")] == [2, 3]
    assert [len(rows) for rows in multi(encoder, texts)] == [1, 3]  # a text of punctuation alone keeps it


def test_without_projection_there_is_nothing_to_train_and_embedfilter_may_follow(tiny_models):
    encoder = load(tiny_models["llama"], head=None, dim=None, post=("embedfilter:2", "truncate:8"))
    assert encoder.dim == 8
    plain = load(tiny_models["llama"], head=None, dim=None)
    with torch.no_grad():
        ids = torch.from_numpy(plain.tokenize(SENTENCES[:1]).ids[0])[None]
        states = plain.model[0].run(ids, torch.ones_like(ids))[0]
    expected = states / states.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(multi(plain, SENTENCES[:1])[0], expected, atol=1e-5)
    with pytest.raises(SpecError, match="no trained weights"):
        load(tiny_models["llama"], head="random", dim=None)
    with pytest.raises(SpecError, match="unembedding's width"):
        load(tiny_models["llama"], post=("embedfilter:2",))


def test_token_pooling_gives_fewer_normalised_vectors(tiny_models):
    plain, pooled = (load(tiny_models["llama"], token_pooling=factor) for factor in (1, 3))
    for rows, fewer in zip(multi(plain, SENTENCES), multi(pooled, SENTENCES), strict=True):
        assert len(fewer) <= 1 + max((len(rows) - 1) // 3, 1)
        np.testing.assert_allclose(np.linalg.norm(fewer, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(fewer[0], rows[0], atol=1e-5)
    for text, rows in zip(SENTENCES, multi(pooled, SENTENCES), strict=True):
        np.testing.assert_allclose(rows, multi(pooled, [text])[0], atol=1e-5)


def test_queries_and_documents_have_separate_lengths(tiny_models):
    encoder = load(tiny_models["llama"], query_length=8, document_length=20)
    long = ["the dog sleeps " * 50]
    assert encoder.encode(long, "query").tokens == 8
    assert encoder.encode(long).tokens == 20


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dim": 0}, "options.dim"),
        ({"dim": True}, "options.dim"),
        ({"query_length": 2}, "options.query_length"),
        ({"document_length": 9999}, "options.document_length"),
        ({"query_expansion": 1}, "options.query_expansion"),
        ({"query_expansion": True}, "options.query_length"),
        ({"attend_to_expansion": True}, "options.attend_to_expansion"),
        ({"skiplist": "stop"}, "options.skiplist"),
        ({"skiplist": ["."]}, "options.skiplist"),
        ({"token_pooling": 0}, "options.token_pooling"),
        ({"token_pooling": None}, "options.token_pooling"),
    ],
)
def test_invalid_options_are_refused(tiny_models, options, field):
    with pytest.raises(SpecError) as caught:
        load(tiny_models["llama"], **options)
    assert caught.value.field == field


def test_single_vectors_of_a_token_encoder_are_refused_with_the_reason(tiny_models):
    with pytest.raises(SpecError, match="multi vectors"):
        load(tiny_models["llama"]).embed(["a"])
