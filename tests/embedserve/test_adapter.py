"""The adapter: it starts as nothing, touches only queries unless asked, and learns."""

import numpy as np
import pytest
import torch

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.compat import LIBRARY_VERSION
from embedserve.training.hyperparameters import settings_for
from embedserve.training.pairs import TrainingPair
from embedserve.training.train import train
from tests.tiny import SENTENCES

PAIRS = [
    TrainingPair(f"find {word} {number}", f"{word} is in row {number}")
    for number in range(40)
    for word in ("cat", "dog")
]


def load(model, trained=True, **options):
    encoder = Encoder.load(EncoderSpec("adapter", str(model), options, head="random"), device="cpu")
    if trained:
        with torch.no_grad():
            for name, weight in encoder.strategy_modules[-1].named_parameters():
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    return encoder


def plain(model, of="mean"):
    return Encoder.load(EncoderSpec(of, str(model)), device="cpu")


@pytest.mark.parametrize("of", ["mean", "last_token", "echo", "layer_mean", "prompteol"])
@pytest.mark.parametrize("side", ["query", "both"])
def test_before_training_it_changes_nothing(tiny_models, of, side):
    fresh = load(tiny_models["llama"], trained=False, of=of, side=side)
    for task in ("query", "document"):
        np.testing.assert_allclose(
            fresh.embed(SENTENCES, task).vectors, plain(tiny_models["llama"], of).embed(SENTENCES).vectors, atol=1e-6
        )


@pytest.mark.parametrize("side", ["query", "both"])
def test_documents_are_adapted_only_with_side_both(tiny_models, side):
    adapted, other = load(tiny_models["llama"], side=side), plain(tiny_models["llama"]).embed(SENTENCES).vectors
    assert np.abs(adapted.embed(SENTENCES, "query").vectors - other).max() > 1e-2
    moved = np.abs(adapted.embed(SENTENCES).vectors - other).max()
    assert moved > 1e-2 if side == "both" else moved < 1e-6


def test_residuals_have_the_rank(tiny_models):
    adapted = load(tiny_models["llama"], rank=3)
    other = plain(tiny_models["llama"]).embed(SENTENCES).vectors
    module = adapted.strategy_modules[-1]
    with torch.no_grad():
        unit = torch.from_numpy(other)
        residuals = module.query(unit)
        found = torch.nn.functional.normalize(unit + residuals, dim=1)
    np.testing.assert_allclose(adapted.embed(SENTENCES, "query").vectors, found, atol=1e-5)
    assert torch.linalg.matrix_rank(residuals, rtol=1e-4) == 3


@pytest.mark.skipif(LIBRARY_VERSION >= 6, reason="sentence-transformers 6 trains")
def test_training_is_refused_with_an_older_library(tiny_models, tmp_path):
    settings = settings_for("adapter", {"batch_size": 16})
    with pytest.raises(SpecError, match="training needs sentence-transformers 6"):
        train(EncoderSpec("adapter", str(tiny_models["llama"])), PAIRS, settings, tmp_path / "out", device="cpu")


@pytest.mark.skipif(LIBRARY_VERSION < 6, reason="training needs sentence-transformers 6")
def test_a_trained_adapter_is_saved_and_usable_as_a_post_transform(tiny_models, tmp_path):
    model = str(tiny_models["llama"])
    settings = settings_for("adapter", {"batch_size": 16, "epochs": 8, "eval_steps": 10, "dev_share": 0.2})
    found = train(EncoderSpec("adapter", model), PAIRS, settings, tmp_path / "adapter", device="cpu")
    assert found.after > found.before
    trained = Encoder.load(tmp_path / "adapter", device="cpu")
    post = Encoder.load(EncoderSpec("mean", model, post=(f"adapter:{tmp_path / 'adapter'}",)), device="cpu")
    for task in ("query", "document"):
        np.testing.assert_allclose(
            trained.embed(SENTENCES, task).vectors, post.embed(SENTENCES, task).vectors, atol=1e-5
        )
    np.testing.assert_allclose(post.embed(SENTENCES).vectors, plain(model).embed(SENTENCES).vectors, atol=1e-6)
    post.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.embed(SENTENCES, "query").vectors, post.embed(SENTENCES, "query").vectors)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rank": 0}, "options.rank"),
        ({"rank": True}, "options.rank"),
        ({"side": "document"}, "options.side"),
        ({"of": "multilayer"}, "options.of"),
    ],
)
def test_invalid_options_are_refused(tiny_models, options, field):
    with pytest.raises(SpecError) as caught:
        load(tiny_models["llama"], **options)
    assert caught.value.field == field
