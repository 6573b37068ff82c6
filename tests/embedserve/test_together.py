"""Encoders that share one pass of a decoder: each gets its own vectors."""

import numpy as np
import pytest

from embedserve import Encoder, EncoderSpec, InputError, SpecError
from embedserve.together import embed_together

TEXTS = ["a cat on a bridge", "rain", "the engine of the storm " * 20, "an array of numbers"]
GROUPS = [["mean", "last_token", "weighted_mean", "embedfilter"], ["glot", "latent_attention", "lexsembridge"]]


@pytest.mark.parametrize("task", ["query", "document"])
@pytest.mark.parametrize("names", GROUPS, ids=str)
def test_vectors_are_those_of_each_encoder_by_itself(names, task):
    encoders = [Encoder.load(EncoderSpec(name), device="cpu") for name in names]
    assert len({encoder.states_digest for encoder in encoders}) == 1
    for encoder, found in zip(encoders, embed_together(encoders, TEXTS, task), strict=True):
        alone = encoder.embed(TEXTS, task)
        np.testing.assert_allclose(found.vectors, alone.vectors, atol=1e-6)
        np.testing.assert_array_equal(found.tokens, alone.tokens)


def test_weights_in_front_of_the_decoder_count():
    heads = [Encoder.load(EncoderSpec("causal2vec", head=head), device="cpu") for head in (None, "random")]
    assert heads[0].states_digest != heads[1].states_digest


def test_a_head_is_not_read_with_another_attention_than_it_was_trained_with():
    for field, value in (("attention", "bidirectional"), ("pool_prompt", False)):
        with pytest.raises(SpecError, match=f"trained with {field}"):
            Encoder.load(EncoderSpec("glot", **{field: value}), device="cpu")


def test_encoders_that_read_other_states_are_refused():
    mean = Encoder.load(EncoderSpec("mean"), device="cpu")
    others = [EncoderSpec("mean", prompts={"query": "q: "}), EncoderSpec("mean", max_tokens=64), EncoderSpec("echo")]
    with pytest.raises(InputError, match="task must be query or document"):
        embed_together([mean], TEXTS, "passage")
    for spec in others:
        with pytest.raises(SpecError, match="cannot share"):
            embed_together([mean, Encoder.load(spec, device="cpu")], TEXTS)
