"""LexSemBridge: parity with the published operations, and the invariants of the gate."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.backbone import load_unembedding
from embedserve.strategies.lexsembridge import GATES, WEIGHTS, LexicalGate, largest_of_each
from tests.embedserve.golden_files import arrays
from tests.tiny import SENTENCES

GOLDEN = arrays("lexsembridge/lexsembridge.npz")
IDS, MASK, HIDDEN = (torch.from_numpy(GOLDEN[name]) for name in ("input_ids", "attention_mask", "hidden"))


def load(tiny_models, family="llama", mode="query", **options):
    spec = EncoderSpec("lexsembridge", str(tiny_models[family]), {"mode": mode, **options}, head="random")
    encoder = Encoder.load(spec, device="cpu")
    gate = encoder.model[2]
    with torch.no_grad():  # a fresh gate lets everything pass
        for name, weight in gate.named_parameters():
            if name != "scale":
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    return encoder


def golden_gate(weights, specials):
    gate = LexicalGate(16, 50, weights, "full", 8, "query", specials)
    with torch.no_grad():
        gate.rows.copy_(torch.from_numpy(GOLDEN["linearlayer.weight"].T))
        gate.bias.copy_(torch.from_numpy(GOLDEN["linearlayer.bias"]))
        if weights == "llr":
            gate.score.weight.copy_(torch.from_numpy(GOLDEN["sparse_linear.weight"]))
            gate.score.bias.copy_(torch.from_numpy(GOLDEN["sparse_linear.bias"]))
    return gate


def features(pooled=None):
    found = {"input_ids": IDS, "attention_mask": MASK, "token_embeddings": HIDDEN}
    return found | {"is_query": torch.ones(3, dtype=torch.bool), "sentence_embedding": pooled}


def as_vocabulary(values, entries, size=50):
    return torch.zeros(len(values), size).scatter_reduce(1, entries, values, "amax")


@pytest.mark.parametrize(
    ("weights", "specials", "name"),
    [("slr", [0, 1, 3], "slr_{}_ignoreTrue"), ("slr", [], "slr_{}_ignoreFalse"), ("llr", [0, 1, 3], "llr_{}")],
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_vocabulary_vector_gate_and_query_are_the_published_ones(weights, specials, name, pooling):
    gate = golden_gate(weights, specials)
    values, entries = gate.lexical_weights(features())
    np.testing.assert_allclose(as_vocabulary(values, entries), GOLDEN[name.format("vocab")], atol=1e-6)
    np.testing.assert_allclose(gate.gate_of(values, entries), GOLDEN[name.format("gate")], atol=1e-6)
    weight = MASK[..., None] / MASK.sum(1)[:, None, None]
    pooled = HIDDEN[:, 0] if pooling == "cls" else (HIDDEN * weight).sum(dim=1)
    found = functional.normalize(gate(features(pooled))["sentence_embedding"], dim=1)
    np.testing.assert_allclose(found, GOLDEN[f"q_{name.format('gate')}_{pooling}"], atol=1e-6)
    np.testing.assert_allclose(functional.normalize(pooled, dim=1), GOLDEN[f"p_{pooling}"], atol=1e-6)


@torch.no_grad()
def test_contextual_weights_are_the_published_ones():
    gate = golden_gate("clr", [])
    logits = torch.from_numpy(GOLDEN["mlm_logits"])[:, 0]
    weights = torch.log1p(torch.relu(logits))
    np.testing.assert_allclose(weights, GOLDEN["clr_vocab"], atol=1e-6)
    np.testing.assert_allclose(gate.gate_of(weights, None), GOLDEN["clr_gate"], atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_queries_are_gated_by_a_distribution_and_documents_are_not(tiny_models, weights, gate):
    encoder = load(tiny_models, weights=weights, gate=gate, rank=4)
    plain = Encoder.load(EncoderSpec("mean", str(tiny_models["llama"])), device="cpu").embed(SENTENCES).vectors
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, plain, atol=1e-6)
    queries = encoder.embed(SENTENCES, "query").vectors
    assert np.abs(queries - plain).max() > 1e-2
    assert (np.sign(queries) == np.sign(plain)).mean() > 0.999  # every weight is positive
    for text, query in zip(SENTENCES, queries, strict=True):
        np.testing.assert_allclose(encoder.embed([text], "query").vectors[0], query, atol=1e-5)
        with torch.no_grad():
            found = encoder.model[0](encoder.model[0].preprocess([text], task="query"))
            a = encoder.model[2].gate_of(*encoder.model[2].lexical_weights(found))
        assert a.sum() == pytest.approx(1, abs=1e-5)
        assert (a > 0).all()
        embedding = encoder.model[1](found)["sentence_embedding"]
        np.testing.assert_allclose(query, functional.normalize((embedding * a).detach(), dim=1)[0], atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_low_rank_and_unembedding_gates_equal_a_full_gate_of_their_product(tiny_models, weights):
    for gate in ("low_rank", "unembedding"):
        encoder = load(tiny_models, weights=weights, gate=gate, rank=4)
        small, full = encoder.model[2], LexicalGate(32, 400, weights, "full", 1, "query", encoder.model[2].specials)
        with torch.no_grad():
            full.bias.copy_(small.bias)
            rows = small.unembedding if gate == "unembedding" else small.rows
            full.rows = torch.nn.Parameter(rows @ small.out.weight.T)
            found = encoder.model[0](encoder.model[0].preprocess(SENTENCES, task="query"))
            a = small.gate_of(*small.lexical_weights(found))
            np.testing.assert_allclose(a, full.gate_of(*small.lexical_weights(found)), atol=1e-5)


def test_an_untrained_gate_is_the_identity(tiny_models):
    spec = EncoderSpec("lexsembridge", str(tiny_models["llama"]), head="random")
    encoder = Encoder.load(spec, device="cpu")
    np.testing.assert_allclose(encoder.embed(SENTENCES, "query").vectors, encoder.embed(SENTENCES).vectors, atol=1e-6)


def test_in_the_mode_of_the_released_code_the_gate_acts_in_training_only(tiny_models):
    encoder = load(tiny_models, mode="training")
    np.testing.assert_array_equal(encoder.embed(SENTENCES, "query").vectors, encoder.embed(SENTENCES).vectors)
    gate = encoder.model[2].train()
    pooled = torch.ones(2, 32)
    found = gate(
        {
            "sentence_embedding": pooled,
            "is_query": torch.tensor([True, False]),
            "input_ids": torch.tensor([[5, 6], [5, 6]]),
            "attention_mask": torch.ones(2, 2),
            "token_embeddings": torch.ones(2, 2, 32),
        }
    )["sentence_embedding"]
    assert (found[0] != 1).any()
    assert torch.equal(found[1], pooled[1])


def test_statistical_weights_ignore_order_and_counts(tiny_models):
    gate = load(tiny_models).model[2]
    for ids in ([7, 5, 9], [5, 5, 9, 7, 7], [9, 7, 5, 1]):  # 1 is a special token
        tokens = torch.tensor([ids])
        found = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_embeddings": torch.ones(1)}
        values, entries = gate.lexical_weights(found)
        weights = as_vocabulary(values, entries, 400)[0].detach()
        assert weights.nonzero()[:, 0].tolist() == [5, 7, 9]
        assert weights[[5, 7, 9]].tolist() == [1, 1, 1]


def test_largest_of_each_equals_a_loop():
    rng = np.random.default_rng(0)
    ids, values = rng.integers(0, 6, (20, 9)), rng.random((20, 9)).astype(np.float32)
    found, entries = largest_of_each(torch.from_numpy(ids), torch.from_numpy(values))
    for row in range(20):
        expected = {i: values[row][ids[row] == i].max() for i in set(ids[row].tolist())}
        got = {int(e): float(v) for e, v in zip(entries[row], found[row], strict=True) if v > 0}
        assert got == pytest.approx(expected)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_weight_learns(tiny_models, weights, gate):
    encoder = load(tiny_models, weights=weights, gate=gate, rank=4)
    found = encoder.model[0].preprocess(SENTENCES[:4], task="query")
    for module in encoder.model.train():
        found = module(found)
    found["sentence_embedding"][:, 0].sum().backward()
    for name, weight in encoder.model[2].named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_the_unembedding_is_read_from_the_backbone_and_is_not_in_the_head(tiny_models, tmp_path):
    encoder = load(tiny_models, weights="clr", gate="unembedding")
    np.testing.assert_array_equal(encoder.model[2].unembedding, load_unembedding(tiny_models["llama"]))
    encoder.save_head(tmp_path / "head")
    assert (tmp_path / "head" / "head.safetensors").stat().st_size < 3 * (32 * 32 + 32) * 2


def test_the_head_on_nano_is_small(tmp_path):
    for gate in ("low_rank", "unembedding"):
        encoder = Encoder.load(EncoderSpec("lexsembridge", options={"gate": gate}, head="random"), device="cpu")
        encoder.save_head(tmp_path / gate)
        assert (tmp_path / gate / "head.safetensors").stat().st_size < 2 << 20


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"weights": "tfidf"}, "options.weights"),
        ({"weights": ["slr"]}, "options.weights"),
        ({"gate": "half"}, "options.gate"),
        ({"rank": 0}, "options.rank"),
        ({"rank": True}, "options.rank"),
        ({"pooling": "max"}, "options.pooling"),
        ({"mode": "always"}, "options.mode"),
        ({"ignore_special": 1}, "options.ignore_special"),
    ],
)
def test_invalid_options_are_refused(tiny_llama, options, field):
    with pytest.raises(SpecError) as caught:
        Encoder.load(EncoderSpec("lexsembridge", str(tiny_llama), options, head="random"), device="cpu")
    assert caught.value.field == field
