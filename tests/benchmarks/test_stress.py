"""The texts and measures of the stress tests, and the tables they print."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.encoding import keywords, needle, strategy_speed
from benchmarks.harness import anisotropy
from embedserve import Encoder, EncoderSpec
from embedserve.model_folders import find_folder


def test_both_kinds_of_needle_texts_have_one_length_and_only_one_has_the_thing():
    texts, labels = needle.make_texts(200, 0.9, seed=1)
    assert {len(text.split()) for text in texts} == {115 + needle.BETWEEN + 1 + 4}
    assert sum(labels) == 100
    for text, label in zip(texts, labels, strict=True):
        there = any(f"{phrase} {noun}" in text for phrase in needle.PHRASES for noun in needle.NOUNS)
        assert there == bool(label)
    assert needle.make_texts(200, 0.9, seed=1) == (texts, labels)
    assert needle.make_texts(200, 0.9, seed=2)[0] != texts


def test_poolings_do_not_see_padding():
    states = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    for pool in (needle.mean, needle.largest, needle.last, needle.LearntWeights(8), needle.Graph(8, 0.2, 2, 4)):
        together = pool(states, mask)
        torch.testing.assert_close(together[1:], pool(states[1:, :4], mask[1:, :4]), atol=1e-5, rtol=1e-4)


def test_a_pooling_learns_what_can_be_learnt(monkeypatch):
    monkeypatch.setattr(needle, "SPLITS", (120, 40, 40))
    generator = torch.Generator().manual_seed(0)
    labels = [number % 2 for number in range(200)]
    states = [torch.randn(5, 6, generator=generator) + 2 * label for label in labels]
    assert needle.accuracy(needle.mean, states, labels, 20, 1e-2, 0) > 85
    noise = [torch.randn(5, 6, generator=generator) for _ in range(200)]
    assert needle.accuracy(needle.mean, noise, labels, 5, 1e-2, 0) < 75


def test_ranks_count_ties_against_the_answer():
    encoder = Encoder.load(EncoderSpec("mean"), device="cpu")
    texts = ["a cat", "a cat", "the storm"]
    assert keywords.ranks_of(encoder, texts, texts).tolist() == [2, 2, 1]
    figures = keywords.figures(np.array([1, 2, 11]))
    assert figures["nDCG@1"] == pytest.approx(100 / 3)
    assert figures["MRR@10"] == pytest.approx(50)


def test_spread_of_a_cone_and_of_a_ball():
    rng = np.random.default_rng(0)
    ball = rng.standard_normal((4000, 16))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    cone = ball + 5 * ball[0]
    cone /= np.linalg.norm(cone, axis=1, keepdims=True)
    even, narrow = anisotropy.spread(ball), anisotropy.spread(cone)
    assert abs(even["mean cosine"]) < 0.01 < 0.9 < narrow["mean cosine"]
    assert even["dimensions"] == pytest.approx(16, abs=0.2)
    assert even["top 10 share"] == pytest.approx(10 / 16, abs=0.05)
    assert anisotropy.shares_of(ball).sum() == pytest.approx(1)


def test_vectors_that_point_at_frequent_tokens_stop_to_when_their_direction_is_dropped():
    rng = np.random.default_rng(0)
    entries, frequent = rng.standard_normal((500, 8)), np.zeros(500, dtype=bool)
    frequent[:20] = True
    entries[frequent, 0] += 20
    vectors = rng.standard_normal((40, 8)) + 5 * np.eye(8)[0]
    assert anisotropy.frequent_share(vectors, entries, frequent) == 1
    kept = np.eye(8)[1:]
    behind = anisotropy.filtered_by(vectors, kept)
    np.testing.assert_allclose(np.linalg.norm(behind, axis=1), 1)
    assert anisotropy.frequent_share(behind, entries @ kept.T, frequent) < 0.2


def test_frequent_tokens_are_those_of_the_texts(monkeypatch):
    monkeypatch.setattr(anisotropy, "FREQUENT", 1)
    found = anisotropy.frequent_tokens(["rain rain rain", "the rain"], find_folder("nano"), 14_000)
    encoder = Encoder.load(EncoderSpec("mean"), device="cpu")
    ids = encoder.tokenize(["the rain rain rain"]).ids[0].tolist()
    assert found.sum() == 1
    assert ids.count(int(found.argmax())) >= 2


def test_anisotropy_is_measured_before_and_after_the_filter_and_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'embedserve[mteb]'")
    (tmp_path / "sts" / "stsb").mkdir(parents=True)
    rows = [f"{n % 6}	a cat number {n}	the storm of {n * 7} letters\n" for n in range(30)]
    (tmp_path / "sts" / "stsb" / "test.tsv").write_text("".join(rows))
    arguments = ["--data", str(tmp_path), "--encoders", "mean", "mean+embedfilter:2", "--plot", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["anisotropy", *arguments])
    anisotropy.main()
    _, before, after, own = capsys.readouterr().out.splitlines()
    for text in ("frequent ", "kept d/2", "d  320"):
        assert text in before
    measured = after.partition("  frequent")[0].split()
    assert measured[2:] == own.split()[1:][1:]
    images = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(images) == {"spectrum.png", "spectrum-dark.png"}
    assert all(image.startswith(b"\x89PNG") for image in images.values())


def test_the_speed_table_measures_every_strategy_that_it_names(monkeypatch, capsys):
    names = ["last_token", "token_prepending, early exit", "glot as shipped", "causal2vec, decoder alone", "promptreps"]
    arguments = ["--texts", "4", "--rounds", "1", "--only", *names]
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    strategy_speed.main()
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        assert any(line.startswith(name) for line in lines), name


def test_a_random_decoder_of_a_size(tmp_path):
    folder = strategy_speed.random_decoder("2x128", tmp_path)
    encoder = Encoder.load(EncoderSpec("mean", folder), device="cpu")
    assert encoder.dim == 128
    assert encoder.embed(["a cat"]).vectors.shape == (1, 128)


def test_kept_variance_is_that_of_the_directions_that_stay():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 4)) * [3, 1, 1, 1] + 5
    whole, first = anisotropy.kept_variance(vectors, np.eye(4)), anisotropy.kept_variance(vectors, np.eye(4)[:1])
    assert whole == pytest.approx(1)
    assert first == pytest.approx(9 / 12, abs=0.05)
