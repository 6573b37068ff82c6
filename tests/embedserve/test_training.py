"""Training of nano on a few texts: every step, resuming, and the losses."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedserve import Encoder, SpecError
from embedserve.training import nano, nano_model, nano_steps, vocabulary
from embedserve.training import text_folders as sources
from embedserve.training.batches import Batches, TokenizedPairs, false_negatives
from embedserve.training.losses import contrastive_loss, distillation_loss, next_token_loss
from embedserve.training.nano_recipe import NANO, Recipe, recipe_values
from embedserve.training.teacher import embed_by_exact_length, teacher_vectors
from tests.tiny import SENTENCES

TINY = Recipe(
    seed=0, data_scale=1.0, max_texts=500, running_chars=20_000,
    vocab_size=400, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48,
    rms_norm_eps=2.5, embedding_scale=16.0, max_tokens=64,
    train_tokens=32, passage_tokens=48, neighbours=4, questions_each=2, crops_each=1, crop_tokens=6,
    static_steps=30, static_tokens=400, static_lr=0.1,
    steps=6, warmup_steps=2, pair_tokens=200, single_tokens=200, lm_rows=2, lm_window=16,
    lm_weight=0.1, contrastive_weight=0.3, contrastive_temperature=0.05,
    layer_lr=1e-3, embedding_lr=1e-3, unembedding_lr=1e-2, weight_decay=0.01,
)  # fmt: skip


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training texts in the layout that `sources.collect` reads."""
    root = tmp_path_factory.mktemp("train")
    words = [
        "cat",
        "dog",
        "bridge",
        "storm",
        "array",
        "axis",
        "judge",
        "garden",
        "engine",
        "map",
        "reason",
        "winter",
        "lunch",
        "letter",
        "question",
        "rain",
    ]
    rng = np.random.default_rng(0)

    def sentence():
        return "The " + " ".join(rng.choice(words, 6)) + " stays in the old garden."

    apart = next(title for title in map(str, range(10_000)) if sources.is_held_out(title))
    titles = ["a", "b", "c", "d", apart]
    for name in sources.PAIR_SOURCES:
        rows = [
            {"query": f"{name} {rng.choice(words)} {n}", "pos": sentence(), "title": titles[n // 6]} for n in range(30)
        ]
        write(root / "pairs" / f"{name}.jsonl.gz", rows)
    for name in sources.TEXT_SOURCES:
        rows = [{"title": f"{name} {n}", "text": " ".join(sentence() for _ in range(8))} for n in range(120)]
        write(root / "text" / f"{name}.jsonl.gz", rows)
    return root


@pytest.fixture(scope="module")
def teacher(tiny_models):
    """The recipe takes any sentence encoder as its teacher; here a random one of 32 dimensions."""
    return str(tiny_models["qwen2"])


@pytest.fixture(scope="module")
def trained(data, teacher, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    nano.run(TINY, data, work, work / "out", teacher, "cpu")
    return work


def test_the_recipe_trains_a_working_encoder(trained):
    encoder = Encoder.load(str(trained / "out"), device="cpu")
    found = encoder.embed(SENTENCES)
    assert found.vectors.shape == (len(SENTENCES), 32)
    assert np.isfinite(found.vectors).all()
    record = json.loads((trained / "out" / "training.json").read_text())
    assert 0 < record["held_out_next_token_loss"] < 2 * np.log(400)
    assert len({path.stat().st_mode for path in (trained / "out").iterdir()}) == 1  # safetensors' own is the owner's
    assert all(weight.dtype == torch.float16 for weight in load_file(trained / "out" / "model.safetensors").values())


def test_a_second_run_of_the_same_seed_gives_the_same_weights(data, teacher, trained, tmp_path):
    nano.run(TINY, data, tmp_path, tmp_path / "out", teacher, "cpu")
    first = load_file(trained / "out" / "model.safetensors")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_work_folder_takes_one_recipe_and_one_teacher(data, teacher, trained):
    with pytest.raises(SpecError, match="another steps"):
        nano.run(replace(TINY, steps=7), data, trained, trained / "out", teacher, "cpu")
    with pytest.raises(SpecError, match="another teacher"):
        nano.run(TINY, data, trained, trained / "out", "minilm", "cpu")


def test_teacher_vectors_of_other_texts_are_never_reused(teacher, tmp_path):
    one = teacher_vectors(["the cat", "the dog"], tmp_path, teacher)
    other = teacher_vectors(["the rain", "the dog"], tmp_path, teacher)
    assert not np.array_equal(one[0], other[0])
    np.testing.assert_array_equal(teacher_vectors(["the cat", "the dog"], tmp_path, teacher), one)


def test_a_checkpoint_in_the_middle_continues_to_the_same_weights(data, teacher, trained, tmp_path, monkeypatch):
    import shutil

    work = Path(shutil.copytree(trained, tmp_path / "work"))
    (work / "decoder.pt").unlink()
    monkeypatch.setattr(nano_steps, "CHECKPOINT_STEPS", 2)
    real, calls = nano_steps.distillation_loss, []

    def stop_at_fourth(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(nano_steps, "distillation_loss", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        nano.run(TINY, data, work, work / "out", teacher, "cpu")
    monkeypatch.setattr(nano_steps, "distillation_loss", real)
    nano.run(TINY, data, work, work / "out", teacher, "cpu")
    first = load_file(trained / "out" / "model.safetensors")
    again = load_file(work / "out" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_sources_are_deterministic_and_hold_documents_out(data):
    one, two = sources.collect(data, seed=0), sources.collect(data, seed=0)
    assert one == two
    assert len(set(one.texts)) == len(one.texts)
    assert not set(one.held_out) & set(one.texts)


def test_whole_documents_are_held_out(data):
    pairs = sources.retrieval_pairs(data, seed=0)
    assert pairs == sources.retrieval_pairs(data, seed=0)
    assert {pair.source for pair in pairs} == set(sources.RETRIEVAL_SOURCES)
    assert all(pair.query != pair.passage for pair in pairs)
    apart = {
        (name, row["query"])
        for name in sources.RETRIEVAL_SOURCES
        for row in sources.read_gz(data / "pairs" / f"{name}.jsonl.gz")
        if sources.is_held_out(row["title"])
    }
    assert apart and not apart & {(pair.source, pair.query) for pair in pairs}
    assert sources.document_of({"query": "Rust Book: Slices", "pos": "A slice"}) == "Rust Book"


def test_a_gpu_trains_longer_on_more_with_the_same_model():
    slow, fast = (Recipe(**recipe_values(NANO, device)) for device in ("cpu", "cuda:0"))
    assert fast.steps > slow.steps and fast.data_scale > slow.data_scale
    assert (fast.vocab_size, fast.hidden_size, fast.num_layers) == (slow.vocab_size, slow.hidden_size, slow.num_layers)


def test_sentences_are_prose_only():
    text = (
        "# Heading\n\nThis is the first sentence of it. And here stands another one, no? Yes.\n\n| a | b |\n\n>>> f()"
    )
    assert sources.sentences(text) == ["This is the first sentence of it.", "And here stands another one, no?"]


def test_teacher_vectors_do_not_depend_on_the_batch(tiny_models):
    teacher = Encoder.load(str(tiny_models["qwen2"]), device="cpu").model
    together = embed_by_exact_length(teacher, SENTENCES)
    alone = np.concatenate([embed_by_exact_length(teacher, [text]) for text in SENTENCES])
    np.testing.assert_allclose(together.astype(np.float32), alone.astype(np.float32), atol=2e-3)  # float16


def test_distillation_loss_is_zero_only_at_the_teacher():
    torch.manual_seed(0)
    teacher = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1)
    other = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1)
    assert distillation_loss(teacher, teacher) == pytest.approx(0, abs=1e-5)
    assert distillation_loss(other, teacher) > 0.5


def test_contrastive_loss_equals_its_formula_and_masks_false_negatives():
    torch.manual_seed(0)
    queries, passages = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1)
    none = torch.zeros(4, 4, dtype=torch.bool)
    scores = (queries @ passages.T / 0.05).exp()
    own = scores.diagonal()
    expected = -((own / scores.sum(1)).log().mean() + (own / scores.sum(0)).log().mean()) / 2
    torch.testing.assert_close(contrastive_loss(queries, passages, none, 0.05), expected)
    same = none.clone()
    same[0, 1] = True
    assert contrastive_loss(queries, passages, same, 0.05) < contrastive_loss(queries, passages, none, 0.05)


def test_the_negatives_of_a_question_are_neighbours_of_its_passage():
    pairs = [sources.Pair("s", f"question {n}", f"passage number {n}") for n in range(63)]
    pairs.append(sources.Pair("s", "question 3", "another right answer to question 3"))
    tokenizer = vocabulary.train_tokenizer([pair.passage for pair in pairs], 300)
    encoded = TokenizedPairs.encode(tokenizer, pairs, 16)
    recipe = replace(TINY, neighbours=8)
    batches = Batches(encoded.questions, encoded, np.arange(100, dtype=np.int32), recipe)
    lengths = encoded.passages.lengths
    for seed in range(5):
        questions, passages = batches.pair_rows(np.random.default_rng(seed), 200)
        assert len(questions) == len(passages) == len(set(passages.tolist())) >= 8
        assert lengths[passages].sum() + encoded.questions.lengths[questions].sum() <= 200
        assert all(passages[:8] - passages[0] == np.arange(8))
        for question, passage in zip(questions, passages, strict=True):
            assert question in encoded.questions_of["s"][passage]


def test_a_passage_comes_with_several_of_its_questions():
    pairs = [sources.Pair("s", f"question {n} {m}", f"passage number {n}") for n in range(20) for m in range(5)]
    tokenizer = vocabulary.train_tokenizer([pair.passage for pair in pairs], 300)
    encoded = TokenizedPairs.encode(tokenizer, pairs, 16)
    batches = Batches(encoded.questions, encoded, np.arange(100, dtype=np.int32), replace(TINY, questions_each=3))
    questions, passages = batches.pair_rows(np.random.default_rng(0), 300)
    assert len(set(questions.tolist())) == len(questions)
    assert set(np.unique(passages, return_counts=True)[1]) == {3}
    assert all(q in encoded.questions_of["s"][p] for q, p in zip(questions, passages, strict=True))


def test_crops_are_spans_of_their_passages():
    pairs = [sources.Pair("s", f"question {n}", f"passage number {n} " * (2 + 9 * (n % 2))) for n in range(20)]
    tokenizer = vocabulary.train_tokenizer([pair.passage for pair in pairs], 300)
    encoded = TokenizedPairs.encode(tokenizer, pairs, 40)
    recipe = replace(TINY, crops_each=3, crop_tokens=9)
    batches = Batches(encoded.questions, encoded, np.arange(100, dtype=np.int32), recipe)
    spans, places = batches.crops(np.random.default_rng(0), np.arange(20))
    long = [row for row in range(20) if len(encoded.passages[row]) >= 18]
    assert 0 < len(long) < 20
    assert places.tolist() == np.repeat(long, 3).tolist()
    for span, place in zip(spans, places, strict=True):
        assert 3 <= len(span) <= 9
        assert span.tobytes() in encoded.passages[place].tobytes()


def test_passages_that_answer_the_same_question_are_false_negatives():
    assert false_negatives(np.array([4, 7, 4, 5]), np.array([0, 1, 2, 1])).tolist() == [
        [False, False, True, False],
        [False, False, False, True],
        [True, False, False, False],
        [False, True, False, False],
    ]


def test_texts_encoded_together_equal_texts_encoded_alone():
    model = nano_model.new_decoder(TINY).eval()
    rng = np.random.default_rng(0)
    rows = [rng.integers(2, 400, length).astype(np.int32) for length in (5, 30, 7, 1, 64, 30)]
    vectors, states, following = nano_model.encode(model, rows, "cpu", chunk_tokens=70)
    alone = [nano_model.encode(model, [row], "cpu") for row in rows]
    torch.testing.assert_close(vectors, torch.cat([vector for vector, _, _ in alone]))
    assert sorted(following.tolist()) == sorted(token for row in rows for token in row[1:].tolist())
    total = sum(
        model(input_ids=ids[None], labels=ids[None]).loss * (len(ids) - 1)
        for ids in (torch.from_numpy(row.astype(np.int64)) for row in rows)
        if len(ids) > 1
    )
    exact = next_token_loss(states, model.lm_head.weight, following, rng, frequent=400)
    torch.testing.assert_close(exact, total / len(following))


def test_the_estimate_of_the_next_token_loss_is_accurate_on_average():
    torch.manual_seed(0)
    states, unembedding, following = 0.3 * torch.randn(64, 8), torch.randn(400, 8), torch.randint(0, 400, (64,))
    rng = np.random.default_rng(0)
    exact = torch.nn.functional.cross_entropy(states @ unembedding.T, following).item()
    found = [next_token_loss(states, unembedding, following, rng, frequent=20).item() for _ in range(200)]
    assert np.std(found) > 0.001
    assert np.mean(found) == pytest.approx(exact, abs=0.02)  # the logarithm of an unbiased sum is a little low
