"""Pooling with trained weights over layers and over latents: invariants, and the slow obvious way."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.compat import LIBRARY_VERSION, decoder_of
from embedserve.decoder import decoder_layers, final_norm
from embedserve.strategies.latent_attention import LatentAttention
from embedserve.strategies.multilayer import MultiLayerPooling
from embedserve.strategies.perceiver import PerceiverBlock
from embedserve.strategies.weighted_layers import WeightedLayers
from tests.tiny import FAMILIES, SENTENCES

WIDTH, SIZES = 24, {"heads": 3, "head_width": 5, "ff_mult": 2}
OVERS = ("layers", "last_token", "tokens")


def load(tiny_models, strategy, family="llama", **fields):
    return Encoder.load(EncoderSpec(strategy, str(tiny_models[family]), head="random", **fields), device="cpu")


def shaken(module):
    """``module`` with every weight moved: nothing is zero or one because training starts there."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return module.eval()


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pooled(head, **features):
    with torch.no_grad():
        return head(dict(features))["sentence_embedding"]


def over_layers(head, states):
    return pooled(head, layer_states=states, token_embeddings=states[:, :1], attention_mask=torch.ones(len(states), 1))


def layer_head(num_layers=4):
    return shaken(MultiLayerPooling(WIDTH, 6, num_layers, "layers", SIZES))


@torch.no_grad()
def slow_block(block, queries, context):
    """The block of one text as its equations say it, a query and a head at a time, in float64."""
    block = copy.deepcopy(block).double()
    results = []
    for query in queries.double():
        asked = block.to_q(block.norm_queries(query))
        keys, values = block.to_kv(block.norm_context(context.double())).chunk(2, dim=-1)
        size = len(asked) // block.heads
        read = []
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            scores = torch.tensor([float(asked[part] @ key[part]) / math.sqrt(size) for key in keys])
            shares = scores.double().softmax(dim=0)
            read.append(sum(share * value[part] for share, value in zip(shares, values, strict=True)))
        updated = block.to_out(torch.cat(read)) + query
        first, second = block.up(block.norm_ff(updated)).chunk(2)
        results.append(block.down(first * functional.gelu(second)) + updated)
    return torch.stack(results).mean(dim=0).numpy()


def test_latents_read_layers_as_the_equations_say():
    head, states = layer_head(), random(2, 4, WIDTH)
    found = over_layers(head, states).numpy()
    for row in range(2):
        expected = slow_block(head.block, head.latents.detach(), states[row] + head.layer_embeddings.detach())
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_tokens_read_latents_as_the_equations_say():
    head, tokens = shaken(LatentAttention(WIDTH, 7, SIZES)), random(2, 5, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 0]])
    found = pooled(head, token_embeddings=tokens, attention_mask=mask).numpy()
    for row in range(2):
        expected = slow_block(head.block, tokens[row][mask[row] == 1], head.latents.detach())
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_layers_may_change_places_with_their_embeddings():
    head, states, order = layer_head(), random(3, 4, WIDTH), [2, 0, 3, 1]
    expected = over_layers(head, states)
    assert (over_layers(head, states[:, order]) - expected).abs().max() > 1e-3
    with torch.no_grad():
        head.layer_embeddings.copy_(head.layer_embeddings[order].clone())
    np.testing.assert_allclose(over_layers(head, states[:, order]), expected, atol=1e-5)
    with torch.no_grad():
        head.layer_embeddings.zero_()
    np.testing.assert_allclose(over_layers(head, states[:, order]), over_layers(head, states), atol=1e-5)


def test_equal_layers_give_what_one_of_them_gives():
    head, alone = layer_head(), layer_head(1)
    with torch.no_grad():
        head.layer_embeddings.zero_()
        alone.load_state_dict({**head.state_dict(), "layer_embeddings": torch.zeros(1, WIDTH)})
    one = random(3, 1, WIDTH)
    np.testing.assert_allclose(over_layers(head, one.expand(-1, 4, -1)), over_layers(alone, one), atol=1e-5)


def test_a_head_that_adds_nothing_gives_the_mean_of_its_latents():
    head = layer_head()
    with torch.no_grad():
        for weight in (head.block.to_out.weight, head.block.down.weight, head.block.down.bias):
            weight.zero_()
    found = over_layers(head, random(3, 4, WIDTH))
    np.testing.assert_allclose(found, head.latents.mean(dim=0).detach().expand(3, -1), atol=1e-6)


def test_attention_over_one_token_is_a_map_of_it():
    """The published model 2: with one key the softmax is 1, whatever the latents ask."""
    head = shaken(MultiLayerPooling(WIDTH, 6, 0, "last_token", SIZES))
    tokens, mask = random(2, 4, WIDTH), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    before = pooled(head, token_embeddings=tokens, attention_mask=mask)
    with torch.no_grad():
        head.block.to_q.weight.mul_(-3)
    np.testing.assert_allclose(pooled(head, token_embeddings=tokens, attention_mask=mask), before, atol=1e-6)
    tokens[0, 3], tokens[1, 0] = 50.0, 50.0  # padding
    np.testing.assert_allclose(pooled(head, token_embeddings=tokens, attention_mask=mask), before, atol=1e-6)
    tokens[0, 2] = -tokens[0, 2]
    assert (pooled(head, token_embeddings=tokens, attention_mask=mask) - before)[0].abs().max() > 1e-2


@pytest.mark.parametrize(
    "head",
    [LatentAttention(WIDTH, 7, SIZES), MultiLayerPooling(WIDTH, 6, 0, "tokens", SIZES)],
    ids=["latent_attention", "multilayer"],
)
def test_a_head_over_tokens_reads_a_set_and_no_padding(head):
    head = shaken(head)
    tokens, mask = random(2, 6, WIDTH), torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    expected = pooled(head, token_embeddings=tokens, attention_mask=mask)
    order = [4, 2, 5, 0, 3, 1]
    found = pooled(head, token_embeddings=tokens[:, order], attention_mask=mask[:, order])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = torch.where(mask[..., None] == 1, tokens, 100.0)
    np.testing.assert_allclose(pooled(head, token_embeddings=other, attention_mask=mask), expected, atol=1e-5)
    alone = pooled(head, token_embeddings=tokens[1:, 1:], attention_mask=mask[1:, 1:])
    np.testing.assert_allclose(alone[0], expected[1], atol=1e-5)


def test_latent_attention_is_the_mean_of_a_function_of_each_token():
    head, tokens = shaken(LatentAttention(WIDTH, 7, SIZES)), random(1, 6, WIDTH)
    together = pooled(head, token_embeddings=tokens, attention_mask=torch.ones(1, 6))
    one_by_one = pooled(head, token_embeddings=tokens[0][:, None], attention_mask=torch.ones(6, 1))
    np.testing.assert_allclose(together[0], one_by_one.mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("norm", ["none", "final"])
def test_layer_states_are_those_of_the_decoder(tiny_models, family, readout, norm):
    options = {"layers": [4, 0, 3, 1], "readout": readout, "norm": norm}
    encoder = load(tiny_models, "weighted_layers", family, options=options)
    model = decoder_of(encoder.model[0])
    with torch.no_grad():
        together = encoder.first_features(encoder.tokenize(SENTENCES))
        for text, found in zip(SENTENCES, together["layer_states"], strict=True):
            ids = torch.from_numpy(encoder.tokenize([text]).ids[0])[None]
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
            scale = final_norm(model) if norm == "final" else torch.nn.Identity()
            layers = [states[4][0], *(scale(states[number][0]) for number in (0, 3, 1))]
            expected = torch.stack([layer.mean(0) if readout == "mean" else layer[-1] for layer in layers])
            np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, float(expected.abs().max())))
    assert together["token_embeddings"].shape[1:] == (max(len(row) for row in encoder.tokenize(SENTENCES).ids), 32)


def test_hooks_are_gone_after_a_batch(tiny_models):
    encoder = load(tiny_models, "multilayer")
    encoder.embed(SENTENCES)
    layers = decoder_layers(decoder_of(encoder.model[0]))
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)


def test_an_untrained_average_of_layers_is_layer_mean(tiny_models):
    for layers in ("all", [0, 2]):
        trained = load(tiny_models, "weighted_layers", options={"layers": layers})
        spec = EncoderSpec("layer_mean", str(tiny_models["llama"]), {"layers": layers})
        expected = Encoder.load(spec, device="cpu").embed(SENTENCES).vectors
        np.testing.assert_allclose(trained.embed(SENTENCES).vectors, expected, atol=1e-5)


def test_all_weight_on_one_layer_is_that_layer(tiny_models):
    encoder = load(tiny_models, "weighted_layers")
    with torch.no_grad():
        encoder.model[1].logits.copy_(torch.tensor([0.0, 0.0, 0.0, 100.0]))
    spec = EncoderSpec("mean", str(tiny_models["llama"]))
    expected = Encoder.load(spec, device="cpu").embed(SENTENCES).vectors
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, expected, atol=1e-5)


def test_weights_of_layers_are_a_softmax():
    head, states = shaken(WeightedLayers(4, WIDTH)), random(2, 4, WIDTH)
    shares = np.exp(head.logits.detach().numpy())
    expected = np.einsum("l,bld->bd", shares / shares.sum(), states.numpy())
    np.testing.assert_allclose(over_layers(head, states), expected, atol=1e-6)


@pytest.mark.parametrize("number", range(1, 5))
def test_the_last_token_of_every_layer_counts(tiny_models, number):
    """Model 3 of the paper: what the hook of one layer reads is moved, and the vector moves."""
    encoder = load(tiny_models, "multilayer", options={"readout": "last"})
    with torch.no_grad():
        features = encoder.first_features(encoder.tokenize(SENTENCES))
        expected = encoder.model[1](dict(features))["sentence_embedding"]
        moved = features["layer_states"].clone()
        moved[:, number - 1] = moved[:, number - 1].roll(1, dims=-1)
        found = encoder.model[1]({**features, "layer_states": moved})["sentence_embedding"]
    assert (found - expected).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [("multilayer", {"over": over}) for over in OVERS]
    + [("multilayer", {"readout": "last"}), ("latent_attention", {}), ("weighted_layers", {"readout": "last"})],
)
def test_every_design_is_free_of_its_batch_and_padding(tiny_models, strategy, options, attention):
    encoder = load(tiny_models, strategy, options=options, attention=attention)
    for module in list(encoder.model)[1:]:
        shaken(module)
    expected = np.concatenate([encoder.embed([text]).vectors for text in SENTENCES])
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, expected, atol=1e-5)
    for side in ("right", "left"):
        encoder.model.tokenizer.padding_side = side
        np.testing.assert_allclose(encoder.model.encode(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("multilayer", {"over": over}) for over in OVERS] + [("latent_attention", {}), ("weighted_layers", {})],
)
def test_a_gradient_reaches_every_weight_of_the_head_and_the_decoder(tiny_models, strategy, options):
    encoder = load(tiny_models, strategy, options=options)
    model = encoder.model.train()
    vectors = model(model[0].preprocess(SENTENCES))["sentence_embedding"]
    (vectors @ vectors.T).triu(1).sum().backward()
    unreached = {"block.to_q.weight", "block.norm_queries.weight", "block.norm_queries.bias"}  # softmax of one key is 1
    for name, weight in model[1].named_parameters():
        assert weight.grad is not None, name
        if not (options.get("over") == "last_token" and name in unreached):
            assert weight.grad.abs().max() > 0, name
    assert all(weight.grad.abs().max() > 0 for weight in decoder_layers(decoder_of(model[0]))[0].parameters())


def test_an_untrained_head_is_near_plain_pooling(tiny_models):
    """Training starts from something that works: layers averaged after a layer norm, or the mean of the tokens."""
    encoder = load(tiny_models, "multilayer")
    with torch.no_grad():
        states = encoder.first_features(encoder.tokenize(SENTENCES))["layer_states"]
    plain = functional.normalize(functional.layer_norm(states, states.shape[-1:]).mean(dim=1), dim=-1).numpy()
    assert (encoder.embed(SENTENCES).vectors * plain).sum(axis=1).min() > 0.95
    mean = Encoder.load(EncoderSpec("mean", str(tiny_models["llama"])), device="cpu").embed(SENTENCES).vectors
    assert (load(tiny_models, "latent_attention").embed(SENTENCES).vectors * mean).sum(axis=1).min() > 0.95


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("post", [(), ("truncate:16",)])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [("multilayer", {"over": over}) for over in OVERS] + [("latent_attention", {}), ("weighted_layers", {})],
)
def test_a_head_stays_in_float32_behind_a_decoder_in_half_precision(tiny_models, strategy, options, post, dtype):
    whole = load(tiny_models, strategy, options=options, post=post)
    half = load(tiny_models, strategy, options=options, post=post, dtype=dtype)
    assert decoder_of(half.model[0]).dtype == getattr(torch, dtype)
    for name, weight in half.model[1].state_dict().items():
        assert torch.equal(weight, whole.model[1].state_dict()[name]), name
    near = (half.embed(SENTENCES).vectors * whole.embed(SENTENCES).vectors).sum(axis=1)
    assert near.min() > 0.97  # what rounding inside the decoder leaves of a single token's state; means are nearer


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_skipped_prompt_is_read_but_not_pooled(tiny_models, family):
    """The begin token goes with the prompt, and the text's first word stays, even where a token spans both."""
    prompt, prompts = "what is ", {"query": "what is "}
    skipping = load(tiny_models, "latent_attention", family, prompts=prompts, pool_prompt=False)
    keeping = load(tiny_models, "latent_attention", family, prompts=prompts)
    rows = skipping.tokenize(SENTENCES, "query")
    for text, ids, start in zip(SENTENCES, rows.ids, rows.pooled_from, strict=True):
        whole = skipping.model.tokenizer.decode(ids[start:])
        assert whole.lstrip() == text
        before = skipping.model.tokenizer.decode(ids[:start], skip_special_tokens=True)
        assert before == prompt.rstrip() if whole.startswith(" ") else before == prompt
    assert (keeping.tokenize(SENTENCES, "query").pooled_from == 0).all()
    assert (skipping.tokenize(SENTENCES).pooled_from == (family == "llama")).all()  # the begin token
    found = skipping.embed(SENTENCES, "query").vectors
    if LIBRARY_VERSION >= 6:  # 5.3 puts the prompt into the text before anyone can tell the two apart
        by_the_library = skipping.model.encode(SENTENCES, prompt_name="query")
        np.testing.assert_allclose(by_the_library, found, atol=1e-5)
    assert np.abs(found - keeping.embed(SENTENCES, "query").vectors).max() > 1e-3
    unprompted = skipping.embed(SENTENCES).vectors
    assert np.abs(found - unprompted).max() > 1e-3


def test_a_skipped_prompt_leaves_a_text_that_was_cut_something_to_pool(tiny_models):
    encoder = load(tiny_models, "latent_attention", prompts={"query": "an honest judge questions: "}, max_tokens=64)
    rows = encoder.tokenize(["rain " * 500, "rain"], "query")
    assert rows.truncated.tolist() == [True, False]
    assert (rows.pooled_from == rows.pooled_from[0]).all()
    assert (rows.tokens > rows.pooled_from).all()


def test_a_block_of_its_published_size_has_the_published_weights():
    """At D=4096: 4 · D · inner of attention, 12 · D² of feed-forward, beside biases and norms."""
    with torch.device("meta"):
        block = PerceiverBlock(4096, 32, 2048, 4)
    count = sum(weight.numel() for weight in block.parameters() if weight.ndim == 2)
    assert count == 4 * 4096 * 65536 + 12 * 4096**2


@pytest.mark.parametrize(
    ("strategy", "options", "word"),
    [
        ("multilayer", {"over": "words"}, "options.over"),
        ("multilayer", {"over": "tokens", "layers": [1]}, "options.layers"),
        ("multilayer", {"over": "last_token", "readout": "last"}, "options.readout"),
        ("multilayer", {"over": "tokens", "skip_begin": True}, "options.skip_begin"),
        ("multilayer", {"readout": "max"}, "options.readout"),
        ("multilayer", {"readout": ["mean"]}, "options.readout"),
        ("multilayer", {"over": ["layers"]}, "options.over"),
        ("multilayer", {"layers": [5]}, "options.layers"),
        ("multilayer", {"skip_begin": 1}, "options.skip_begin"),
        ("multilayer", {"latents": 0}, "options.latents"),
        ("multilayer", {"heads": None}, "options.heads"),
        ("multilayer", {"heads": True}, "options.heads"),
        ("multilayer", {"head_width": 0}, "options.head_width"),
        ("multilayer", {"ff_mult": 1.5}, "options.ff_mult"),
        ("latent_attention", {"latents": "many"}, "options.latents"),
        ("latent_attention", {"heads": -1}, "options.heads"),
        ("weighted_layers", {"norm": "l2"}, "options.norm"),
        ("weighted_layers", {"readout": 5}, "options.readout"),
        ("weighted_layers", {"layers": []}, "options.layers"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(tiny_models, strategy, options, word):
    with pytest.raises(SpecError) as caught:
        load(tiny_models, strategy, options=options)
    assert caught.value.field == word
    assert word.split(".")[1] in str(caught.value)
