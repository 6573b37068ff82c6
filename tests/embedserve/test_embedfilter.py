"""The invariants of EmbedFilter's map."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from embedserve import Encoder, EncoderSpec
from embedserve.backbone import load_language_model, load_unembedding
from embedserve.compat import decoder_of
from embedserve.model_folders import weights_digest
from embedserve.strategies import embedfilter
from embedserve.strategies.embedfilter import DROPS, directions_of, filter_matrix, kept_rows, singular_directions
from tests.tiny import FAMILIES, SENTENCES


@pytest.fixture(scope="module")
def unembedding():
    generator = torch.Generator().manual_seed(3)
    spectrum = torch.logspace(1.5, -1, 24)
    left = torch.linalg.qr(torch.randn(200, 24, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0]
    return left * spectrum @ right.T


@pytest.fixture(scope="module")
def directions(unembedding):
    return singular_directions(unembedding)


def test_directions_are_those_of_the_full_svd(unembedding):
    expected = torch.linalg.svd(unembedding.double(), full_matrices=False)[2]
    cosines = (singular_directions(unembedding) * expected).sum(dim=1).abs()
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("ratio", [2, 3, 4, 8])
def test_rows_are_orthonormal_and_dropped_directions_map_to_zero(directions, drop, ratio):
    weight = filter_matrix(directions, ratio, drop)
    assert weight.shape == (24 // ratio, 24)
    np.testing.assert_allclose(weight @ weight.T, np.eye(len(weight)), atol=1e-5)
    rows = set(kept_rows(24, ratio, drop))
    dropped = directions[[row for row in range(24) if row not in rows]].float()
    np.testing.assert_allclose(weight @ dropped.T, 0, atol=1e-5)


def test_cosines_are_those_of_the_projection(directions):
    weight = filter_matrix(directions, 4)
    one, two = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    projected = weight.T @ weight
    cosine = torch.nn.functional.cosine_similarity
    np.testing.assert_allclose(
        cosine(weight @ one, weight @ two, dim=0), cosine(projected @ one, projected @ two, dim=0), atol=1e-5
    )
    np.testing.assert_allclose(projected @ projected, projected, atol=1e-5)
    assert (weight @ one).norm() <= one.norm()


def test_the_gain_on_logits_is_between_the_kept_singular_values(unembedding, directions):
    rows = kept_rows(24, 3)
    values = torch.linalg.svdvals(unembedding)[rows]
    weight = filter_matrix(directions, 3)
    kept = weight.T @ torch.randn(len(rows), generator=torch.Generator().manual_seed(1))
    gain = (unembedding @ kept).norm() / kept.norm()
    assert values.min() - 1e-4 <= gain <= values.max() + 1e-4


@given(size=st.integers(1, 300), ratio=st.integers(1, 16), drop=st.sampled_from(DROPS))
def test_kept_rows_are_distinct_and_as_many_as_declared(size, ratio, drop):
    assume(ratio <= size)
    rows = kept_rows(size, ratio, drop)
    assert len(rows) == len(set(rows)) == size // ratio
    assert all(0 <= row < size for row in rows)


def test_edge_filters_are_nested_and_start_shifts_them():
    assert set(kept_rows(64, 4)) < set(kept_rows(64, 2))
    assert kept_rows(64, 2, "edge", 0) == kept_rows(64, 2, "tail") == list(range(32))
    assert kept_rows(64, 2, "edge", 32) == kept_rows(64, 2, "head")


def test_ratio_one_is_the_identity(tiny_llama):
    plain = Encoder.load(str(tiny_llama), device="cpu").embed(SENTENCES).vectors
    same = (
        Encoder.load(EncoderSpec("embedfilter", str(tiny_llama), {"ratio": 1}), device="cpu").embed(SENTENCES).vectors
    )
    np.testing.assert_array_equal(plain, same)


def test_the_strategy_is_the_post_transform_over_mean(tiny_llama):
    one = Encoder.load(EncoderSpec("embedfilter", str(tiny_llama), {"ratio": 4}), device="cpu")
    two = Encoder.load(EncoderSpec("mean", str(tiny_llama), post=("embedfilter:4",)), device="cpu")
    np.testing.assert_array_equal(one.embed(SENTENCES).vectors, two.embed(SENTENCES).vectors)


def test_a_tied_model_gives_its_input_embedding(tiny_models):
    encoder = Encoder.load(str(tiny_models["qwen2"]), device="cpu")
    embedding = decoder_of(encoder.model[0]).get_input_embeddings().weight
    torch.testing.assert_close(load_unembedding(tiny_models["qwen2"]), embedding)
    untied = decoder_of(Encoder.load(str(tiny_models["llama"]), device="cpu").model[0]).get_input_embeddings().weight
    assert not torch.equal(load_unembedding(tiny_models["llama"]), untied)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unembedding_read_alone_equals_that_of_the_loaded_model(tiny_models, family):
    whole = load_language_model(tiny_models[family]).get_output_embeddings().weight
    torch.testing.assert_close(load_unembedding(tiny_models[family]), whole.detach())


@pytest.fixture
def spectra(tmp_path, monkeypatch):
    """The cache on disk, with nothing kept in memory."""
    monkeypatch.setenv("EMBEDSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(embedfilter, "_directions", {})
    return tmp_path / "cache" / "spectra"


def test_directions_are_computed_once_for_the_same_weights(tiny_llama, spectra, tmp_path, monkeypatch):
    first = directions_of(tiny_llama)
    np.testing.assert_array_equal(first, singular_directions(load_unembedding(tiny_llama)))
    monkeypatch.setattr(embedfilter, "load_unembedding", None)  # what is cached reads no weights
    assert directions_of(tiny_llama) is first
    embedfilter._directions.clear()
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    np.testing.assert_array_equal(directions_of(copy), first)
    assert [path.name for path in spectra.iterdir()] == [f"{weights_digest(copy)}.safetensors"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_cache_file_is_computed_again(tiny_llama, spectra, damage):
    expected = directions_of(tiny_llama).clone()
    (path,) = spectra.iterdir()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes({"flipped": data, "cut": data[:500], "empty": b"", "foreign": b"not a file of ours"}[damage])
    embedfilter._directions.clear()
    np.testing.assert_array_equal(directions_of(tiny_llama), expected)
    embedfilter._directions.clear()
    np.testing.assert_array_equal(directions_of(tiny_llama), expected)


def test_other_weights_have_other_directions(tiny_models, spectra):
    one, other = directions_of(tiny_models["llama"]), directions_of(tiny_models["qwen2"])
    assert not torch.equal(one, other)
    assert len(list(spectra.iterdir())) == 2


def test_an_unwritable_cache_is_skipped(tiny_llama, spectra, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBEDSERVE_CACHE_DIR", str(tmp_path / "file"))
    assert directions_of(tiny_llama).shape == (32, 32)


def test_a_post_transform_accepts_a_start_row(tiny_llama):
    one = Encoder.load(EncoderSpec("embedfilter", str(tiny_llama), {"ratio": 4, "start": 3}), device="cpu")
    two = Encoder.load(EncoderSpec("mean", str(tiny_llama), post=("embedfilter:4:3",)), device="cpu")
    np.testing.assert_array_equal(one.embed(SENTENCES).vectors, two.embed(SENTENCES).vectors)
