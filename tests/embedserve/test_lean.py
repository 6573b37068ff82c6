"""The lean forward pass: the states of the model, and a reason wherever it is not used."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, RobertaConfig

from embedserve import Encoder, EncoderSpec
from embedserve.compat import decoder_of, set_decoder
from embedserve.decoder import hooked
from embedserve.lean import LeanPass
from embedserve.lora import with_adapters
from tests import tiny

LEAN = ("llama", "qwen2", "qwen3")  # the tiny model of mistral has a window


@pytest.fixture
def without(monkeypatch):
    """Load an encoder without the lean pass."""

    def load(model):
        with monkeypatch.context() as patch:
            patch.setattr("embedserve.runner.lean_pass", lambda *_: (None, "off"))
            return Encoder.load(model, device="cpu")

    return load


def agree(found, usual, texts):
    mine, other = found.encode(texts), usual.encode(texts)
    np.testing.assert_allclose(mine.dense.vectors, other.dense.vectors, atol=1e-5)
    if mine.sparse is not None:
        np.testing.assert_allclose(mine.sparse.values, other.sparse.values, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_is_used_for_known_families_without_a_window(tiny_models, family, caplog):
    caplog.set_level("INFO", logger="embedserve")
    encoder = Encoder.load(tiny_models[family], device="cpu")
    assert (encoder._lean is not None) == (family in LEAN) == (encoder.lean_reason == "")
    reason = {"mistral": "sliding window"}.get(family, f"the family {family!r} is not supported")
    assert family in LEAN or reason in encoder.lean_reason
    assert [record.getMessage().endswith(encoder.lean_reason or "used") for record in caplog.records] == [True]


def test_nano_uses_it():
    assert Encoder.load("nano", device="cpu").lean_reason == ""


def test_layers_of_another_structure_are_a_reason(tiny_llama, monkeypatch):
    def broken(self, ids, mask=None):
        raise AttributeError("'Layer' object has no attribute 'mlp'")

    monkeypatch.setattr("embedserve.lean.LeanPass.states", broken)
    encoder = Encoder.load(tiny_llama, device="cpu")
    assert encoder.lean_reason.startswith("the layers have another structure: AttributeError")
    assert np.isfinite(encoder.embed(["one text"]).vectors).all()


def test_other_states_in_the_trial_are_a_reason(tiny_llama, monkeypatch):
    states = LeanPass.states
    monkeypatch.setattr("embedserve.lean.LeanPass.states", lambda self, ids, mask=None: states(self, ids, mask) + 1)
    assert Encoder.load(tiny_llama, device="cpu").lean_reason == "a trial gave other states than the model"


@pytest.mark.parametrize("family", LEAN)
def test_the_states_are_those_of_the_model(tiny_models, family):
    encoder = Encoder.load(tiny_models[family], device="cpu")
    ids = torch.randint(3, 300, (3, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = decoder_of(encoder.model[0])(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(encoder._lean.states(ids), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["mean", "last_token", "promptreps", "echo"])
def test_vectors_are_the_same_with_and_without(tiny_llama, strategy, without):
    spec = EncoderSpec(strategy, str(tiny_llama))
    found = Encoder.load(spec, device="cpu")
    assert found._lean is not None
    agree(found, without(spec), [" ".join(tiny.SENTENCES[: n + 1]) for n in range(5)])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_bert_and_roberta_with_and_without_padding(tmp_path, kind, without):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = {"bert": BertConfig, "roberta": RobertaConfig}[kind]
    AutoModel.from_config(config(vocab_size=400, max_position_embeddings=300, **sizes)).save_pretrained(tmp_path)
    tiny.tokenizer(bos=False).save_pretrained(tmp_path)
    found, usual = Encoder.load(tmp_path, device="cpu"), without(tmp_path)
    assert (found._lean is not None) == (kind == "bert")
    texts = [" ".join(tiny.SENTENCES[: n + 1]) for n in range(4)]
    agree(found, usual, texts)
    agree(found, usual, texts[:1])


def test_hooks_on_a_layer_or_its_parts_run_the_model_itself(tiny_llama):
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
def test_a_replaced_model_is_run_itself(tiny_llama, strategy):
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


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"dtype": "bfloat16"}, "the weights are bfloat16"), ({"attention": "bidirectional"}, "other states")],
)
def test_half_precision_and_bidirectional_attention_run_the_model_itself(tiny_llama, fields, reason):
    encoder = Encoder.load(EncoderSpec(backbone=str(tiny_llama), **fields), device="cpu")
    assert encoder._lean is None and reason in encoder.lean_reason
