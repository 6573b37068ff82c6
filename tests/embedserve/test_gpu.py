"""Encoders on a GPU against the same encoders on the CPU; with a CUDA device alone."""

import numpy as np
import pytest
import torch

from embedserve import Encoder, EncoderSpec
from embedserve import encoder as encoder_module
from embedserve.strategies import STRATEGIES, is_trained
from tests.tiny import FAMILIES, SENTENCES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def load(model, strategy, device, **fields):
    if is_trained(strategy):
        fields = {"head": "random", **fields}
    return Encoder.load(EncoderSpec(strategy, str(model), **fields), device)


def vectors_of(encoder, texts, task="document"):
    """One array for each text: its vector (d,), those of its tokens (t, d)."""
    found = encoder.encode(texts, task)
    return list(found.multi if found.dense is None else found.dense.vectors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_makes_the_vectors_of_the_cpu(tiny_models, strategy, family):
    there, here = (load(tiny_models[family], strategy, device) for device in ("cuda", "cpu"))
    assert there.fingerprint == here.fingerprint
    for task in ("document", "query"):
        for one, other in zip(vectors_of(there, SENTENCES, task), vectors_of(here, SENTENCES, task), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_on_a_gpu_points_the_same_way_for_nano(strategy):
    there = load("nano", strategy, "cuda", dtype="bfloat16")
    here = load("nano", strategy, "cpu")
    for one, other in zip(vectors_of(there, SENTENCES), vectors_of(here, SENTENCES), strict=True):
        assert float((one * other).sum(axis=-1).min()) > 0.98


def test_blocks_that_are_read_ahead_keep_their_order(tiny_llama, monkeypatch):
    monkeypatch.setattr(encoder_module, "BLOCK", 4)
    encoder = Encoder.load(str(tiny_llama), "cuda")
    seen: list[tuple[int, int]] = []
    texts = SENTENCES * 3
    found = encoder.embed(texts, progress=lambda done, count: seen.append((done, count)))
    np.testing.assert_allclose(found.vectors, np.tile(encoder.embed(SENTENCES).vectors, (3, 1)), atol=1e-5)
    assert seen == [(min(done, 27), 27) for done in range(4, 31, 4)]
    assert encoder.embed([]).vectors.shape == (0, encoder.dim)


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    encoder = Encoder.load("nano", "cuda")
    texts = [f"{text} {number}" for number in range(300) for text in SENTENCES]
    expected = encoder.embed(texts).vectors
    torch.cuda.empty_cache()
    few = torch.cuda.memory_allocated() + 96 * 2**20
    torch.cuda.set_per_process_memory_fraction(few / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = encoder.embed(texts).vectors
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)
