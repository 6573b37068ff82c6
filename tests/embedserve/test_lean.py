"""The pass without what only generation and training need: the model's own states, not used where it would differ."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, RobertaConfig

from embedserve import Encoder, EncoderSpec
from embedserve.compat import decoder_of, set_decoder
from embedserve.decoder import hooked
from embedserve.lora import with_adapters
from tests import tiny

LEAN = ("llama", "qwen2", "qwen3")  # the tiny model of mistral has a window


@pytest.fixture
def without(monkeypatch):
    """Load an encoder that does without the lean pass."""

    def load(model):
        with monkeypatch.context() as patch:
            patch.setattr("embedserve.encoder.lean_pass", lambda *_: None)
            return Encoder.load(model, device="cpu")

    return load


def agree(found, usual, texts):
    mine, other = found.encode(texts), usual.encode(texts)
    np.testing.assert_allclose(mine.dense.vectors, other.dense.vectors, atol=1e-5)
    if mine.sparse is not None:
        np.testing.assert_allclose(mine.sparse.values, other.sparse.values, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_is_for_known_families_without_a_window(tiny_models, family):
    assert (Encoder.load(tiny_models[family], device="cpu")._lean is not None) == (family in LEAN)


@pytest.mark.parametrize("family", LEAN)
def test_the_states_are_those_of_the_model(tiny_models, family):
    encoder = Encoder.load(tiny_models[family], device="cpu")
    ids = torch.randint(3, 300, (3, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = decoder_of(encoder.model[0])(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(encoder._lean.states(ids), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["mean", "last_token", "promptreps", "echo"])
def test_an_encoder_gives_the_vectors_it_gives_without(tiny_llama, strategy, without):
    spec = EncoderSpec(strategy, str(tiny_llama))
    found = Encoder.load(spec, device="cpu")
    assert found._lean is not None
    agree(found, without(spec), [" ".join(tiny.SENTENCES[: n + 1]) for n in range(5)])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_of_berts_kind_with_and_without_padding(tmp_path, kind, without):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = {"bert": BertConfig, "roberta": RobertaConfig}[kind]
    AutoModel.from_config(config(vocab_size=400, max_position_embeddings=300, **sizes)).save_pretrained(tmp_path)
    tiny.tokenizer(bos=False).save_pretrained(tmp_path)
    found, usual = Encoder.load(tmp_path, device="cpu"), without(tmp_path)
    assert (found._lean is not None) == (kind == "bert")
    texts = [" ".join(tiny.SENTENCES[: n + 1]) for n in range(4)]
    agree(found, usual, texts)
    agree(found, usual, texts[:1])


def test_who_reads_states_or_a_part_of_a_layer_has_the_model_itself(tiny_llama):
    encoder = Encoder.load(tiny_llama, device="cpu")
    model, seen = decoder_of(encoder.model[0]), []
    with hooked(model, reads={2: seen.append}):
        encoder.embed(["one text"])
    assert len(seen) == 1
    handle = model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append("attention"))
    encoder.embed(["one text"])
    assert seen[1:] == ["attention"]
    handle.remove()
    assert encoder._lean.is_free(model)


@pytest.mark.parametrize("strategy", ["mean", "echo"])
def test_a_model_that_took_the_others_place_is_run_itself(tiny_llama, strategy):
    encoder = Encoder.load(EncoderSpec(strategy, str(tiny_llama)), device="cpu")
    before = encoder.embed(tiny.SENTENCES).vectors
    first = encoder.model[0]
    set_decoder(first, with_adapters(decoder_of(first), 2))
    with torch.no_grad():
        for name, weight in first.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    encoder.model.eval()
    assert np.abs(encoder.embed(tiny.SENTENCES).vectors - before).max() > 1e-3


def test_half_precision_and_two_way_attention_have_the_model_itself(tiny_llama):
    for fields in ({"dtype": "bfloat16"}, {"attention": "bidirectional"}):
        assert Encoder.load(EncoderSpec(backbone=str(tiny_llama), **fields), device="cpu")._lean is None
