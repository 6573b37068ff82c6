"""The decoder without what only generation needs: the states of the model itself, and nothing where it would differ."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, RobertaConfig

from embedserve import Encoder, EncoderSpec
from embedserve.compat import decoder_of
from embedserve.decoder import hooked
from embedserve.lean import is_hooked, lean_states, runs_lean
from tests import tiny

LEAN = {"llama": True, "qwen2": True, "qwen3": True}  # mistral's tiny model has a window


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_is_found_by_trial(tiny_models, family):
    model = decoder_of(Encoder.load(tiny_models[family], device="cpu").model[0])
    assert runs_lean(model, hides_padding=True) == LEAN.get(family, False)
    assert not runs_lean(model, hides_padding=False)


@pytest.mark.parametrize("family", LEAN)
def test_the_states_are_those_of_the_model(tiny_models, family):
    model = decoder_of(Encoder.load(tiny_models[family], device="cpu").model[0])
    ids = torch.randint(3, 300, (3, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(lean_states(model, ids), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["mean", "last_token", "promptreps"])
def test_an_encoder_gives_the_vectors_it_gives_without(tiny_llama, strategy, monkeypatch):
    texts = [" ".join(tiny.SENTENCES[: n + 1]) for n in range(5)]
    spec = EncoderSpec(strategy, str(tiny_llama))
    found = Encoder.load(spec, device="cpu")
    assert found._lean
    monkeypatch.setattr("embedserve.encoder.runs_lean", lambda model, **_: False)
    usual = Encoder.load(spec, device="cpu")
    assert not usual._lean
    mine, other = found.encode(texts), usual.encode(texts)
    np.testing.assert_allclose(mine.dense.vectors, other.dense.vectors, atol=1e-5)
    if mine.sparse is not None:
        np.testing.assert_allclose(mine.sparse.values, other.sparse.values, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_of_berts_kind_runs_lean_with_and_without_padding(tmp_path, kind, monkeypatch):
    configs = {"bert": BertConfig, "roberta": RobertaConfig}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = configs[kind](vocab_size=400, max_position_embeddings=300, pad_token_id=0, **sizes)
    AutoModel.from_config(config).eval().save_pretrained(tmp_path)
    tiny.tokenizer(bos=False).save_pretrained(tmp_path)
    found = Encoder.load(tmp_path, device="cpu")
    assert found._lean == (kind == "bert")  # the other counts positions from behind the padding's number
    monkeypatch.setattr("embedserve.encoder.runs_lean", lambda model, **_: False)
    usual = Encoder.load(tmp_path, device="cpu")
    texts = [" ".join(tiny.SENTENCES[: n + 1]) for n in range(4)]
    for some in (texts, texts[:1]):
        np.testing.assert_allclose(found.embed(some).vectors, usual.embed(some).vectors, atol=1e-5)


def test_what_reads_or_edits_states_between_layers_has_the_model_itself(tiny_llama):
    encoder = Encoder.load(tiny_llama, device="cpu")
    model, seen = decoder_of(encoder.model[0]), []
    assert not is_hooked(model)
    with hooked(model, reads={2: seen.append}):
        assert is_hooked(model)
        encoder.embed(["one text"])
    assert len(seen) == 1
    assert not is_hooked(model)


def test_half_precision_has_the_model_itself(tiny_llama):
    assert not Encoder.load(EncoderSpec(backbone=str(tiny_llama), dtype="bfloat16"), device="cpu")._lean
