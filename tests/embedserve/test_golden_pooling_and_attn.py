"""Parity of trainable pooling with the published code; the files are described in tests/golden/README.md."""

import numpy as np
import pytest
import torch

from embedserve import Encoder, EncoderSpec
from embedserve.types import TokenRows
from tests.embedserve.golden_files import GOLDEN, arrays, unit

MODULES = arrays("pooling_and_attn/modules.npz")
SIZES = {"latents": 6, "heads": 4, "head_width": 16, "ff_mult": 4}
# the published design, the head's weights, and the spec that makes the same
MODELS = {
    "model1": (None, {"strategy": "last_token"}),
    "model2": ("last", {"options": {"over": "last_token", **SIZES}}),
    "model4": ("last", {"options": {"over": "tokens", **SIZES}, "attention": "bidirectional"}),
    "model5": ("multi", {"options": {"readout": "mean", **SIZES}, "attention": "bidirectional"}),
}
NAMES = {
    "norm": "norm_context",  # there the latents are the context: here what asks is called queries
    "norm_context": "norm_queries",
    "fn.to_q": "to_q",
    "fn.to_kv": "to_kv",
    "fn.to_out": "to_out",
}
NAMES_FF = {"norm": "norm_ff", "fn.net.0": "up", "fn.net.2": "down"}


def published_weights(kind):
    """The weights of ``multi`` or ``last`` under our names."""
    state = {"latents": MODULES[f"{kind}.latents"]}
    if kind == "multi":
        state["layer_embeddings"] = MODULES["multi.pos_emb.weight"]
    for place, names in enumerate((NAMES, NAMES_FF)):
        for theirs, ours in names.items():
            for part in ("weight", "bias"):
                name = f"{kind}.cross_attend_blocks.{place}.{theirs}.{part}"
                if name in MODULES:
                    state[f"block.{ours}.{part}"] = MODULES[name]
    assert len(state) == sum(name.startswith(f"{kind}.") for name in MODULES)
    return {name: torch.from_numpy(weight) for name, weight in state.items()}


def encoder_of(model):
    kind, fields = MODELS[model]
    fields = {"strategy": "multilayer", "head": "random", **fields} if kind else fields
    encoder = Encoder.load(EncoderSpec(backbone=str(GOLDEN / "models" / "tiny-mistral"), **fields), device="cpu")
    if kind:
        encoder.model[1].load_state_dict(published_weights(kind))
    return encoder


@pytest.mark.parametrize("kind", ["multi", "last"])
def test_the_head_equals_the_published_one(kind):
    head = encoder_of("model5" if kind == "multi" else "model4").model[1]
    context = torch.from_numpy(MODULES[f"{kind}_in"])
    features = {"layer_states": context, "token_embeddings": context, "attention_mask": torch.ones(context.shape[:2])}
    with torch.no_grad():
        found = head(features)["sentence_embedding"].numpy()
    np.testing.assert_allclose(found, MODULES[f"{kind}_out_unnormalized"], atol=2e-5)
    np.testing.assert_allclose(unit(found), MODULES[f"{kind}_out"], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_vectors_equal_the_published_ones(model):
    """Model 4 lets its head read padding, so the target is each text alone, not a published batch."""
    golden, encoder = arrays(f"pooling_and_attn/{model}.npz"), encoder_of(model)
    mask = golden["attention_mask"].astype(bool)
    ids = [row[seen] for row, seen in zip(golden["input_ids"], mask, strict=True)]
    rows = TokenRows(ids, np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool))
    np.testing.assert_allclose(encoder.embed_rows(rows), golden["embeddings_one_by_one"], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_padded_on_the_left_gives_the_published_vectors(model):
    golden, encoder = arrays(f"pooling_and_attn/{model}.npz"), encoder_of(model)
    features = {name: torch.from_numpy(golden[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = encoder.model(features)
    real = golden["attention_mask"].astype(bool)
    np.testing.assert_allclose(found["token_embeddings"].numpy()[real], golden["hidden_last"][real], atol=2e-5)
    np.testing.assert_allclose(found["sentence_embedding"].numpy(), golden["embeddings_one_by_one"], atol=1e-5)
