"""The facade: bad input, batching, memory, dimensions, truncation."""

import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedserve import Encoder, EncoderSpec, InputError, LoadError, SpecError
from embedserve import encoder as encoder_module
from embedserve.batching import OVERHEAD, pad_right, token_batches
from embedserve.compat import decoder_of
from embedserve.decoder import pooled_positions
from tests.tiny import SENTENCES


@pytest.fixture(scope="module")
def encoder(tiny_llama):
    return Encoder.load(str(tiny_llama), device="cpu")


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ("one text", "list of strings"),
        ([""], r"texts\[0\] is empty"),
        (["a", " \n\t "], r"texts\[1\] is empty"),
        (["a", 3], r"texts\[1\] must be a string, got int"),
        (["a", None], "NoneType"),
        (["a\ud800"], "surrogate"),
        (None, "list of strings, got NoneType"),
        ({"a": 1}, "list of strings"),
    ],
)
def test_texts_that_cannot_be_read_are_named(encoder, texts, word):
    with pytest.raises(InputError, match=word):
        encoder.embed(texts)


def test_no_texts_give_no_vectors(encoder):
    found = encoder.embed([])
    assert found.vectors.shape == (0, encoder.dim)
    assert len(found) == 0


@pytest.mark.parametrize("dimensions", [0, -1, 33, 2.5, True])
def test_dimensions_out_of_range_are_refused(encoder, dimensions):
    with pytest.raises(InputError, match="from 1 to 32"):
        encoder.embed(["a"], dimensions=dimensions)


def test_fewer_dimensions_are_the_first_ones_normalised_again(encoder):
    whole, short = encoder.embed(SENTENCES).vectors, encoder.embed(SENTENCES, dimensions=8).vectors
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)


def test_an_unknown_task_is_refused(encoder):
    with pytest.raises(InputError, match="query or document"):
        encoder.embed(["a"], "passage")


def test_odd_texts_are_read(encoder):
    odd = ["\x00", "a\x00b", "🙂", "ㅤ", "<s></s><pad>", "\u200b.", "a" * 5000, "—", "x" * 300_000]
    found = encoder.embed(odd)
    assert np.isfinite(found.vectors).all()
    assert found.truncated.tolist() == [False] * 6 + [True, False, True]


def test_progress_counts_to_the_end(encoder):
    seen = []
    encoder.embed(SENTENCES, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(SENTENCES), len(SENTENCES))


def test_the_pad_token_is_never_read(encoder):
    expected = encoder.embed(SENTENCES).vectors
    weight = decoder_of(encoder.model[0]).get_input_embeddings().weight
    kept = weight[0].clone()
    with torch.no_grad():
        weight[0] = 1e3
        found = encoder.embed(SENTENCES).vectors
        weight[0] = kept
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("strategy", ["mean", "echo", "prompteol"])
def test_a_text_of_long_tokens_is_read_whole_and_one_of_short_ones_is_cut(tiny_llama, strategy):
    encoder = Encoder.load(EncoderSpec(strategy, str(tiny_llama), max_tokens=256), device="cpu")
    found = encoder.tokenize(["rain", " ValueError" * 200, "the dog sleeps " * 5000, "the dog sleeps " * 100])
    assert found.truncated.tolist() == [False, strategy == "echo", True, True]
    assert found.ids[2].tolist() == found.ids[3].tolist()
    if strategy != "echo":  # which reads it twice
        token = encoder.model.tokenizer.convert_tokens_to_ids("ĠValueError")
        assert (found.ids[1] == token).sum() == 200


def test_loading_warns_of_nothing(tiny_models, caplog, monkeypatch):
    from transformers.utils import logging as library

    library.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    caplog.set_level(logging.WARNING, "transformers")
    Encoder.load(str(tiny_models["gpt2"]), device="cpu").embed(SENTENCES)
    assert caplog.text == ""


def test_numbers_that_are_not_finite_are_never_returned(tiny_llama):
    encoder = Encoder.load(EncoderSpec("mean", str(tiny_llama), dtype="float16"), device="cpu")
    with torch.no_grad():
        decoder_of(encoder.model[0]).get_input_embeddings().weight[:] = torch.inf
    with pytest.raises(LoadError, match="use bfloat16 or float32"):
        encoder.embed(["a small dog"])


def test_a_bidirectional_model_gets_its_mask(tmp_path):
    from transformers import BertConfig, BertModel

    from tests.tiny import tokenizer

    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.5,
        )
    ).save_pretrained(tmp_path)
    tokenizer(bos=True).save_pretrained(tmp_path)
    encoder = Encoder.load(str(tmp_path), device="cpu")
    alone = np.concatenate([encoder.embed([text]).vectors for text in SENTENCES])
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, alone, atol=1e-5)


def test_a_batch_too_large_for_the_memory_is_halved(tiny_llama):
    encoder = Encoder.load(str(tiny_llama), device="cpu")
    expected = encoder.embed(SENTENCES).vectors

    class SmallMemory(torch.nn.Module):
        def forward(self, features):
            if len(features["sentence_embedding"]) > 2:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return features

    encoder._modules.append(SmallMemory())
    halved = []
    encoder.on_halved = lambda: halved.append(1)
    np.testing.assert_allclose(encoder.embed(SENTENCES[:2]).vectors, expected[:2], atol=1e-5)
    assert not halved
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, expected, atol=1e-5)
    assert halved


def test_blocks_that_are_read_ahead_keep_their_order(tiny_llama, monkeypatch):
    encoder = Encoder.load(str(tiny_llama), device="cpu")
    monkeypatch.setattr(encoder_module, "BLOCK", 4)
    encoder.device = torch.device("cuda")  # where blocks are read ahead
    for count in (0, 1, 4, 9):
        blocks = list(encoder._token_blocks(SENTENCES[:count], "document"))
        assert [start for start, _ in blocks] == list(range(0, count, 4))
        ids = [row.tolist() for _, rows in blocks for row in rows.ids]
        assert ids == [row.tolist() for row in encoder.tokenize(SENTENCES[:count]).ids]


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_refused(tiny_llama, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SpecError, match=device if device == "tpu" else "torch sees"):
        Encoder.load(str(tiny_llama), device=device)


def test_max_tokens_too_small_for_the_template_is_refused(tiny_llama):
    for strategy in ("prompteol", "echo"):
        spec = EncoderSpec(strategy, str(tiny_llama), max_tokens=8)
        with pytest.raises(SpecError, match="max_tokens"):
            Encoder.load(spec, device="cpu").embed(["the dog sleeps " * 30])


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 512))
def test_batches_cover_every_row_once_within_the_budget(lengths, budget):
    found = list(token_batches(np.array(lengths, dtype=np.int64), budget))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200))
def test_rows_are_parted_where_that_costs_least(lengths, budget):
    """Beside every way to part rows that are sorted by length."""
    rows = sorted(lengths, reverse=True)

    def cost(parts):
        return sum(len(part) * max(part) + OVERHEAD * budget for part in parts)

    ways = []
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        starts = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(rows)]
        parts = [rows[start:end] for start, end in itertools.pairwise(starts)]
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            ways.append(cost(parts))
    found = [[lengths[row] for row in batch] for batch in token_batches(np.array(lengths), budget)]
    assert cost(found) == pytest.approx(min(ways))


def test_thousands_of_rows_are_parted_as_well_as_by_filling_each_batch():
    lengths = np.random.default_rng(0).integers(5, 300, 5000)
    for budget in (1024, 65_536):
        found = list(token_batches(lengths, budget))
        filled, start, rows = 0.0, 0, np.sort(lengths)[::-1]
        while start < len(rows):
            stop = min(len(rows), start + budget // int(rows[start]))
            filled += (stop - start) * int(rows[start]) + OVERHEAD * budget
            start = stop
        assert sum(len(batch) * int(lengths[batch].max()) + OVERHEAD * budget for batch in found) <= filled


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=8))
def test_padding_keeps_every_token(rows):
    ids, mask = pad_right([np.array(row) for row in rows])
    assert [ids[n][mask[n] == 1].tolist() for n in range(len(rows))] == rows
    assert (np.diff(mask, axis=1) <= 0).all()


@given(st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_pooled_positions_do_not_depend_on_the_padding_side(length, start, left):
    start = min(start, length - 1)
    pad = [0] * 3
    mask = torch.tensor([pad + [1] * length if left else [1] * length + pad])
    kept = pooled_positions(mask, torch.tensor([start]))[0]
    real = kept[3:] if left else kept[:length]
    assert real.tolist() == [int(place >= start) for place in range(length)]
    assert kept.sum() == length - start


@pytest.mark.parametrize("strategy", ["mean", "prompteol", "glot", "promptreps"])
def test_other_prompts_share_the_weights_and_are_another_fingerprint(strategy):
    plain = Encoder.load(EncoderSpec(strategy), device="cpu")
    prompts = {"query": "find: ", "document": "text: "}
    other, loaded = plain.with_prompts(prompts), Encoder.load(EncoderSpec(strategy, prompts=prompts), device="cpu")
    assert other.fingerprint == loaded.fingerprint != plain.fingerprint
    assert other.spec == loaded.spec
    assert other.model[0] is plain.model[0]
    for task in ("query", "document"):
        np.testing.assert_array_equal(
            other.encode(["a cat"], task).dense.vectors, loaded.encode(["a cat"], task).dense.vectors
        )
    assert np.abs(other.embed(["a cat"]).vectors - plain.embed(["a cat"]).vectors).max() > 1e-4
    assert other.with_prompts({}).fingerprint == plain.fingerprint
    with pytest.raises(SpecError, match="the tasks are query and document"):
        plain.with_prompts({"passage": "x"})


def test_other_prompts_of_a_saved_encoder_are_another_fingerprint(tmp_path):
    Encoder.load("nano", device="cpu").save(tmp_path / "saved")
    saved = Encoder.load(tmp_path / "saved", device="cpu")
    prints = {saved.with_prompts({"query": text}).fingerprint for text in ("", "find: ", "seek: ")}
    assert len(prints) == 3
    assert saved.fingerprint in prints
    assert saved.with_prompts({"query": "find: "}).with_prompts({}).fingerprint == saved.fingerprint


def test_weights_that_changed_are_told_from_those_that_were_loaded_with_other_prompts_too(tmp_path):
    encoder = Encoder.load("nano", device="cpu")
    with torch.no_grad():
        next(encoder.model.parameters()).mul_(1.5)
    other = encoder.with_prompts({"query": "find: "})
    other.save(tmp_path / "saved")
    assert Encoder.load(tmp_path / "saved", device="cpu").fingerprint != other.fingerprint
