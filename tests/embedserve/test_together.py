"""Encoders over one decoder share its passes: each returns the vectors that it returns alone."""

import numpy as np
import pytest

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.compat import decoder_of
from embedserve.decoder import decoder_layers
from embedserve.shared_pass import embed_together
from embedserve.strategies import STRATEGIES, is_multi_vector, is_trained
from tests.tiny import FAMILIES, SENTENCES

ONE_PASS = ("mean", "last_token", "layer_mean", "weighted_layers", "multilayer", "latent_attention", "glot")


def load(tiny_models, strategy, family="llama", **fields):
    head = {"head": "random"} if is_trained(strategy) else {}
    return Encoder.load(EncoderSpec(strategy, str(tiny_models[family]), **{**head, **fields}), device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_passes_give_the_vectors_of_each_alone(tiny_models, family):
    encoders = [load(tiny_models, strategy, family) for strategy in ONE_PASS]
    assert len({encoder.passes_digest for encoder in encoders}) == 1
    assert len({encoder.states_digest for encoder in encoders}) > 3
    encoders[0].batch_tokens = 64  # several batches, in several threads if there are several cores
    made = embed_together(encoders, SENTENCES * 3, "query")
    for encoder, found in zip(encoders, made, strict=True):
        alone = encoder.embed(SENTENCES * 3, "query")
        np.testing.assert_allclose(found.vectors, alone.vectors, atol=1e-5)
        np.testing.assert_array_equal(found.tokens, alone.tokens)


def test_the_layers_run_once_and_are_left_as_they_were(tiny_models):
    encoders = [load(tiny_models, strategy) for strategy in ("layer_mean", "weighted_layers", "mean")]
    passes = []
    for encoder in encoders:
        layer = decoder_layers(decoder_of(encoder.model[0]))[0]
        attention = next(module for name, module in layer.named_modules() if name.endswith("attn"))
        attention.register_forward_hook(lambda *_, name=encoder.spec.strategy: passes.append(name))
    embed_together(encoders, SENTENCES[:2])
    assert passes == ["layer_mean"]
    for encoder in encoders:
        encoder.embed(SENTENCES[:2])
    assert passes == ["layer_mean", "layer_mean", "weighted_layers", "mean"]


def test_what_changes_the_pass_is_not_shared(tiny_models):
    names = [name for name in STRATEGIES if name not in ("adapter",) and not is_multi_vector(name)]
    digests = {name: load(tiny_models, name).passes_digest for name in names}
    for name in ("token_prepending", "causal2vec", "promptreps", "echo", "prompteol"):
        assert digests[name] not in [digest for other, digest in digests.items() if other != name]
    plain = load(tiny_models, "layer_mean").passes_digest
    for fields in (
        {"attention": "bidirectional"}, {"prompts": {"query": "find: "}}, {"max_tokens": 32}, {"template": "a {text}"},
    ):  # fmt: skip
        assert load(tiny_models, "layer_mean", **fields).passes_digest != plain
    other = Encoder.load(EncoderSpec("layer_mean", str(tiny_models["qwen3"])), device="cpu")
    with pytest.raises(SpecError, match="cannot share"):
        embed_together([load(tiny_models, "mean"), other], SENTENCES)


def test_pooling_positions_stay_each_encoders_own(tiny_models):
    options = [{"pool_prompt": True}, {"pool_prompt": False}]
    encoders = [load(tiny_models, "layer_mean", prompts={"query": "what is "}, **fields) for fields in options]
    made = embed_together(encoders, SENTENCES, "query")
    for encoder, found in zip(encoders, made, strict=True):
        np.testing.assert_allclose(found.vectors, encoder.embed(SENTENCES, "query").vectors, atol=1e-5)
    assert np.abs(made[0].vectors - made[1].vectors).max() > 1e-3
