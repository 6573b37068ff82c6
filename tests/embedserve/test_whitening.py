"""Whitening: parity with both published codes, and its invariants."""

import numpy as np
import pytest

from embedserve import Encoder, EncoderSpec, InputError, LoadError, SpecError
from embedserve.strategies import strategy_of
from embedserve.strategies.whitening import VectorSums, as_linear, fit_whitening
from tests.embedserve.golden_files import arrays, unit
from tests.tiny import SENTENCES

TEXTS = [f"{one} {other}" for one in SENTENCES for other in SENTENCES]  # 81 texts
GOLDEN = arrays("whitening/whitening.npz")


def gram(vectors):
    return unit(vectors) @ unit(vectors).T


def fitted(vectors, **options):
    return fit_whitening(VectorSums.of(vectors), **options)


def load(model, of="mean", head="random", **options):
    return Encoder.load(EncoderSpec("whitening", str(model), {"of": of, **options}, head=head), device="cpu")


def fitted_head(model, folder, **options):
    encoder = load(model, **options)
    strategy_of(encoder.spec).fit(encoder, TEXTS)
    encoder.save_head(folder, half=False)
    return str(folder)


@pytest.mark.parametrize(("dim", "name"), [(16, "su_Y_full"), (8, "su_Y_k8")])
def test_gram_matrices_are_the_published_ones(dim, name):
    found = fitted(GOLDEN["X"])
    np.testing.assert_allclose(gram((GOLDEN["Y"] - found.mean) @ found.kernel[:, :dim]), gram(GOLDEN[name]), atol=1e-8)


def test_whiteningbert_is_the_same_map_up_to_scale():
    found = fitted(GOLDEN["X"])
    whitened = (GOLDEN["X"] - found.mean) @ found.kernel
    np.testing.assert_allclose(gram(whitened), gram(GOLDEN["whiteningbert_X"]), atol=1e-4)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12)) + 7 * rng.standard_normal(12)


def test_the_covariance_of_the_fitted_vectors_is_the_identity(vectors):
    found = fitted(vectors)
    whitened = (vectors - found.mean) @ found.kernel
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(12), atol=1e-8)
    assert (np.diff(found.variances) <= 0).all()


def test_a_shift_changes_nothing_and_a_linear_map_only_the_basis(vectors):
    one, moved = fitted(vectors), fitted(vectors + 5)
    np.testing.assert_allclose(moved.kernel, one.kernel, atol=1e-6)
    mapped = vectors @ np.random.default_rng(1).standard_normal((12, 12))
    other = fitted(mapped)
    np.testing.assert_allclose(
        gram((vectors - one.mean) @ one.kernel), gram((mapped - other.mean) @ other.kernel), atol=1e-6
    )


def test_sums_of_shards_equal_the_whole(vectors):
    whole = VectorSums.of(vectors)
    parts = VectorSums.of(vectors[:100]) + VectorSums.of(vectors[100:101]) + VectorSums.of(vectors[101:])
    assert parts.count == whole.count
    np.testing.assert_allclose(fit_whitening(parts).kernel, fit_whitening(whole).kernel, atol=1e-9)


def test_fewer_dimensions_are_the_first_directions(vectors):
    found = fitted(vectors)
    few, all_ = as_linear(found, 5), as_linear(found, 12)
    np.testing.assert_array_equal(few[0], all_[0][:5])
    np.testing.assert_array_equal(few[1], all_[1][:5])


def test_num_components_reach_a_share_of_the_variance(vectors):
    found = fitted(vectors)
    held = np.cumsum(found.variances) / found.variances.sum()
    for share in (0.5, 0.9, 1.0):
        count = found.num_components(share)
        assert held[count - 1] >= share - 1e-9
        assert count == 1 or held[count - 2] < share


def test_too_few_vectors_or_directions_are_refused(vectors):
    with pytest.raises(InputError, match="at least 24"):
        fitted(vectors[:23])
    assert fitted(vectors[:23], dim=11).kernel.shape == (12, 12)
    flat = vectors.copy()
    flat[:, 3:] = 0
    with pytest.raises(InputError, match="only 3 directions"):
        fitted(flat)
    assert np.isfinite(fitted(flat, shrinkage=1e-3).kernel).all()


@pytest.mark.parametrize("of", ["mean", "layer_mean:layers=first_last", "token_prepending:start=0", "embedfilter"])
def test_a_fitted_encoder_has_white_vectors_and_is_saved(tiny_models, tmp_path, of):
    encoder = load(tiny_models["llama"], of=of)
    before = encoder.embed(TEXTS).vectors
    strategy_of(encoder.spec).fit(encoder, TEXTS)
    after = encoder.embed(TEXTS).vectors
    off_diagonal = ~np.eye(len(TEXTS), dtype=bool)
    assert abs(gram(after)[off_diagonal].mean()) < 0.05 < abs(gram(before)[off_diagonal].mean())
    encoder.save_head(tmp_path / "head", half=False)
    again = Encoder.load(tmp_path / "head", device="cpu")
    np.testing.assert_allclose(again.embed(SENTENCES).vectors, encoder.embed(SENTENCES).vectors, atol=1e-6)
    np.testing.assert_allclose(again.embed(SENTENCES[:1]).vectors[0], after_of(again, SENTENCES[0]), atol=1e-5)


def after_of(encoder, text):
    return encoder.embed([*SENTENCES, text]).vectors[-1]


def test_another_fit_has_another_fingerprint(tiny_models, tmp_path):
    encoder = load(tiny_models["llama"])
    prints = set()
    for number, texts in enumerate((TEXTS, TEXTS[:70])):
        strategy_of(encoder.spec).fit(encoder, texts)
        encoder.save_head(tmp_path / str(number), half=False)
        prints.add(Encoder.load(tmp_path / str(number), device="cpu").fingerprint)
    assert len(prints) == 2


def test_the_post_transform_equals_the_strategy(tiny_models, tmp_path):
    model = str(tiny_models["llama"])
    folder = fitted_head(model, tmp_path / "head")
    expected = Encoder.load(folder, device="cpu").embed(SENTENCES).vectors
    post = Encoder.load(EncoderSpec("mean", model, post=(f"whitening:{folder}",)), device="cpu")
    np.testing.assert_allclose(post.embed(SENTENCES).vectors, expected, atol=1e-6)
    short = Encoder.load(EncoderSpec("mean", model, post=(f"whitening:{folder}:6",)), device="cpu")
    np.testing.assert_allclose(short.embed(SENTENCES).vectors, unit(expected[:, :6]), atol=1e-5)
    (tmp_path / "head").rename(tmp_path / "moved")
    moved = Encoder.load(EncoderSpec("mean", model, post=(f"whitening:{tmp_path / 'moved'}",)), device="cpu")
    assert moved.fingerprint == post.fingerprint  # files count by what is in them
    assert short.fingerprint != post.fingerprint


def test_the_post_transform_is_refused_over_another_strategy(tiny_models, tmp_path):
    folder = fitted_head(tiny_models["llama"], tmp_path / "head")
    for fields, word in (
        ({"strategy": "last_token"}, "another strategy"),
        ({"strategy": "mean", "template": "{text}!"}, "template"),
        ({"strategy": "mean", "backbone": str(tiny_models["qwen2"])}, "another backbone"),
        ({"strategy": "colbert", "options": {"dim": None}}, "one per token"),
    ):
        spec = EncoderSpec(**{"backbone": str(tiny_models["llama"]), **fields, "post": (f"whitening:{folder}",)})
        with pytest.raises(SpecError, match=word) as caught:
            Encoder.load(spec, device="cpu")
        assert caught.value.field == "post[0]"
    for post, word in ((f"whitening:{folder}:33", "1 to 32"), ("whitening:", "FOLDER"), ("whitening:/none", "head")):
        with pytest.raises(SpecError, match=word):
            Encoder.load(EncoderSpec("mean", str(tiny_models["llama"]), post=(post,)), device="cpu")
    with pytest.raises(SpecError, match="trained for whitening"):
        Encoder.load(EncoderSpec("mean", str(tiny_models["llama"]), post=(f"adapter:{folder}",)), device="cpu")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"of": "glot"}, "options.of"),
        ({"of": "colbert:dim=null"}, "options.of"),
        ({"of": "mean+truncate:4"}, "options.of"),
        ({"of": "meen"}, "options.of"),
        ({"of": "embedfilter:ratio=0"}, "options.of"),
        ({"of": 3}, "options.of"),
        ({"dim": 0}, "options.dim"),
        ({"dim": 33}, "options.dim"),
        ({"shrinkage": -1}, "options.shrinkage"),
        ({"shrinkage": True}, "options.shrinkage"),
    ],
)
def test_invalid_options_are_refused(tiny_models, options, field):
    with pytest.raises((SpecError, LoadError)) as caught:
        load(tiny_models["llama"], **options)
    assert caught.value.field == field
