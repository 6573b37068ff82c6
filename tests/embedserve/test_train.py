"""Training: heads over cached states, adapters, all weights; losses, resuming and output files."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="training needs accelerate and datasets: pip install 'embedserve[train]'")
pytest.importorskip("datasets", reason="training needs accelerate and datasets: pip install 'embedserve[train]'")

from embedserve import Encoder, EncoderSpec, InputError, LoadError, SpecError
from embedserve.compat import LIBRARY_VERSION, decoder_of
from embedserve.lora import add_adapters, trained_adapters, with_adapters
from embedserve.strategies import STRATEGIES, is_fitted, is_trained
from embedserve.training.cached_states import CachedStates, StateStore
from embedserve.training.hyperparameters import TrainSettings, settings_for
from embedserve.training.pairs import TrainingPair, split_dev
from embedserve.training.train import train
from tests.api.conftest import wait_until

pytestmark = pytest.mark.skipif(LIBRARY_VERSION < 6, reason="training needs sentence-transformers 6")

WORDS = "cat dog bridge evening garden storm engine judge map letter rain lunch array axis number item".split()  # noqa: SIM905
SETTINGS = TrainSettings(batch_size=16, steps=12, eval_steps=4, lr=3e-3, max_tokens=64, dev_share=0.2)


def made_up_pairs(count=240, seed=0):
    """Return queries of two words and texts that contain them: learnable by a linear head."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        words = rng.choice(WORDS, 5, replace=False)
        pairs.append(TrainingPair(f"the {words[0]} {words[1]}", f"a {' '.join(words)} of {number}"))
    return pairs


PAIRS = made_up_pairs()


@pytest.fixture(autouse=True)
def linear_head(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "linear_head", "tests.embedserve.linear_head:LinearHeadStrategy")


def spec_of(folder, strategy="linear_head", **fields):
    return EncoderSpec(strategy, str(folder), **fields)


def test_a_head_learns_and_is_served_like_any_encoder(tiny_llama, tmp_path):
    judged = []
    found = train(
        spec_of(tiny_llama, prompts={"query": "find: "}),
        PAIRS,
        SETTINGS,
        tmp_path / "out",
        sources=["made-up.jsonl"],
        device="cpu",
        judged=lambda step, quality: judged.append((step, quality)),
    )
    assert found.after > found.before
    assert [step for step, _ in judged] == [4, 8, 12]
    assert found.after == max(quality for _, quality in judged)
    assert found.kept == next(step for step, quality in judged if quality == found.after)
    encoder = Encoder.load(tmp_path / "out", device="cpu")
    assert encoder.fingerprint == found.fingerprint
    assert encoder.spec.prompts == {"query": "find: "}
    assert encoder.max_tokens == Encoder.load(tiny_llama, device="cpu").max_tokens
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "embedserve.json", "head.safetensors"}
    assert not (tmp_path / "out.work").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{found.before:.4f} before training, {found.after:.4f} after" in card
    assert "made-up.jsonl" in card
    assert "lora_rank" not in card
    assert str(tmp_path) not in card


def test_cached_states_equal_those_of_the_decoder(tiny_models, tmp_path):
    for family in ("llama", "gpt2"):
        encoder = Encoder.load(spec_of(tiny_models[family], head="random", prompts={"query": "find: "}), device="cpu")
        texts = [("query", pair.query) for pair in PAIRS[:9]] + [("document", pair.positive) for pair in PAIRS[:9]]
        store = StateStore.build(encoder, texts, tmp_path)
        cached = CachedStates(store, encoder.model.tokenizer, multi_vector=False)
        for task, attribute in (("query", "query"), ("document", "positive")):
            inputs = [getattr(pair, attribute) for pair in PAIRS[:9]]
            features = cached.preprocess(inputs, task=task)
            for module in list(encoder.model)[1:]:
                features = module(features)
            expected = encoder.embed(inputs, task).vectors
            np.testing.assert_allclose(features["sentence_embedding"].detach().numpy(), expected, atol=2e-3)


def test_a_cache_is_reused_only_for_the_same_texts_and_decoder(tiny_models, tmp_path):
    texts = [("document", pair.positive) for pair in PAIRS[:5]]
    calls = []

    def build(family, texts, **fields):
        encoder = Encoder.load(spec_of(tiny_models[family], head="random", **fields), device="cpu")
        before = len(calls)
        StateStore.build(encoder, texts, tmp_path, lambda *_: calls.append(1))
        return len(calls) > before

    assert build("llama", texts)
    assert not build("llama", texts)
    assert build("llama", texts[:4])
    assert build("qwen2", texts)
    assert build("llama", texts, attention="bidirectional")
    assert build("llama", texts, prompts={"document": "read: "})


@pytest.mark.parametrize("tune", ["lora", "all"])
@pytest.mark.parametrize("strategy", ["mean", "linear_head"])
def test_the_backbone_can_be_trained_too(tiny_llama, tmp_path, strategy, tune):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'embedserve[train]'")
    rank = {"lora_rank": 4} if tune == "lora" else {}
    settings = TrainSettings(tune=tune, batch_size=16, steps=6, eval_steps=3, lr=1e-2, max_tokens=64, **rank)
    found = train(spec_of(tiny_llama, strategy), PAIRS, settings, tmp_path / "out", device="cpu")
    encoder = Encoder.load(tmp_path / "out", device="cpu")
    start = Encoder.load(spec_of(tiny_llama, strategy, head="random" if strategy != "mean" else None), device="cpu")
    assert encoder.fingerprint == found.fingerprint != start.fingerprint
    trained, before = (decoder_of(one.model[0]) for one in (encoder, start))
    assert (trained.layers[0].mlp.up_proj.weight - before.layers[0].mlp.up_proj.weight).abs().max() > 1e-4
    assert trained.embed_tokens.weight.equal(before.embed_tokens.weight) == (tune == "lora")
    assert ("lora_rank 4" in (tmp_path / "out" / "README.md").read_text()) == (tune == "lora")
    if tune == "lora":
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "README.md",
            "embedserve.json",
            "head.safetensors",
        }


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 stores its weights transposed
def test_adapters_are_saved_apart_from_the_backbone_and_can_be_trained_further(tiny_models, tmp_path, family):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'embedserve[train]'")
    settings = TrainSettings(tune="lora", batch_size=16, steps=4, eval_steps=2, lr=1e-2, max_tokens=64, lora_rank=2)
    texts = [pair.positive for pair in PAIRS[:7]]
    vectors = [Encoder.load(str(tiny_models[family]), device="cpu").embed(texts).vectors]
    spec = spec_of(tiny_models[family], "mean")
    for number in range(2):
        found = train(spec, PAIRS, settings, tmp_path / str(number), device="cpu", dev=[])
        encoder = Encoder.load(tmp_path / str(number), device="cpu")
        vectors.append(encoder.embed(texts).vectors)
        assert np.abs(vectors[-1] - vectors[-2]).max() > 1e-3
        assert {adapter.shape[0] for name, adapter in encoder.adapters.items() if name.endswith(".a")} == {
            2 + 2 * number
        }
        spec = replace(spec, head=str(tmp_path / str(number)))
    encoder.save_head(tmp_path / "again")
    encoder.save(tmp_path / "whole")
    for folder in ("again", "whole"):
        again = Encoder.load(tmp_path / folder, device="cpu")
        np.testing.assert_allclose(again.embed(texts).vectors, vectors[-1], atol=1e-6)
    assert Encoder.load(tmp_path / "again", device="cpu").fingerprint == found.fingerprint


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_added_adapters_equal_the_trained_ones(tiny_models, family):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'embedserve[train]'")
    trained, plain = (Encoder.load(str(tiny_models[family]), device="cpu") for _ in range(2))
    decoder = with_adapters(decoder_of(trained.model[0]), 3)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    add_adapters(decoder_of(plain.model[0]), trained_adapters(decoder))
    ids = torch.arange(5, 17)[None]
    expected = decoder.eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(decoder_of(plain.model[0])(input_ids=ids).last_hidden_state, expected, atol=1e-4, rtol=0)
    untouched = decoder_of(Encoder.load(str(tiny_models[family]), device="cpu").model[0])(input_ids=ids)
    assert (untouched.last_hidden_state - expected).abs().max() > 1e-2


def test_a_new_run_deletes_checkpoints_and_a_different_run_is_not_resumed(tiny_llama, tmp_path):
    settings = replace(SETTINGS, steps=8)

    def run(lr, resume=False, stop=None, dev=None):
        def judged(step, quality):
            if step == stop:
                raise KeyboardInterrupt

        chosen = replace(settings, lr=lr)
        return train(
            spec_of(tiny_llama), PAIRS, chosen, tmp_path / "out", device="cpu", resume=resume, judged=judged, dev=dev
        ).fingerprint

    with pytest.raises(KeyboardInterrupt):
        run(1e-3, stop=8)
    with pytest.raises(SpecError, match="another lr"):
        run(3e-3, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(3e-3, stop=8)
    with pytest.raises(SpecError, match="another dev"):
        run(3e-3, resume=True, dev=PAIRS[:9])
    resumed = run(3e-3, resume=True)
    assert resumed == run(3e-3)


def test_a_head_trained_over_adapters_uses_and_saves_them(tiny_llama, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'embedserve[train]'")
    settings = TrainSettings(tune="lora", batch_size=16, steps=4, eval_steps=2, lr=1e-2, max_tokens=64, lora_rank=2)
    train(spec_of(tiny_llama), PAIRS, settings, tmp_path / "first", device="cpu", dev=[])
    further = replace(settings, tune="head", lora_rank=TrainSettings().lora_rank, lr=1e-3)
    train(spec_of(tiny_llama, head=str(tmp_path / "first")), PAIRS, further, tmp_path / "next", device="cpu", dev=[])
    first, then = (Encoder.load(tmp_path / name, device="cpu") for name in ("first", "next"))
    for one, other in zip(*(decoder_of(e.model[0]).parameters() for e in (first, then)), strict=True):
        assert one.equal(other)
    store = [StateStore.build(one, [("document", "a cat")], tmp_path / one.fingerprint) for one in (first, then)]
    assert np.array_equal(store[0].states, store[1].states)
    plain = Encoder.load(spec_of(tiny_llama, head="random"), device="cpu")
    assert not np.allclose(
        StateStore.build(plain, [("document", "a cat")], tmp_path / "states").states, store[0].states
    )


def test_a_frozen_backbone_does_not_change(tiny_llama, tmp_path):
    train(spec_of(tiny_llama), PAIRS, SETTINGS, tmp_path / "out", device="cpu")
    plain = Encoder.load(tiny_llama, device="cpu")
    encoder = Encoder.load(tmp_path / "out", device="cpu")
    for one, other in zip(*(decoder_of(e.model[0]).parameters() for e in (encoder, plain)), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize(
    "changed",
    [
        {"mini_batch_size": 4},
        {"matryoshka": (16, 8)},
        {"symmetric": True},
    ],
    ids=str,
)
def test_training_improves_mrr_with_every_variant_of_the_loss(tiny_llama, tmp_path, changed):
    settings = TrainSettings(batch_size=16, steps=24, eval_steps=8, lr=3e-3, max_tokens=64, dev_share=0.2, **changed)
    found = train(spec_of(tiny_llama), PAIRS, settings, tmp_path / "out", device="cpu")
    assert found.after > found.before


def test_hard_negatives_change_the_weights(tiny_llama, tmp_path):
    found = []
    for negatives in (0, 2):
        settings = TrainSettings(batch_size=4, steps=8, lr=3e-3, max_tokens=64, dev_share=0, negatives=negatives)
        found.append(train(spec_of(tiny_llama), PAIRS, settings, tmp_path / str(negatives), device="cpu"))
    assert [one.steps for one in found] == [8, 8]
    assert found[0].fingerprint != found[1].fingerprint


def test_pseudo_queries_add_training_pairs(tiny_llama, tmp_path):
    pairs = [replace(pair, positive=f"{pair.positive} {' '.join(WORDS)}") for pair in PAIRS]
    settings = TrainSettings(batch_size=16, epochs=1, max_tokens=64, dev_share=0)
    steps = []
    for kinds in ((), ("keywords", "part")):
        chosen = replace(settings, pseudo_queries=kinds)
        steps.append(train(spec_of(tiny_llama), pairs, chosen, tmp_path / str(len(kinds)), device="cpu").steps)
    assert steps == [15, 45]
    assert "pseudo_queries ('keywords', 'part')" in (tmp_path / "2" / "README.md").read_text()


def test_gradient_caching_gives_the_same_update(tiny_llama, tmp_path):
    heads = []
    for name, mini in (("whole", None), ("parts", 4)):
        settings = TrainSettings(
            batch_size=32, mini_batch_size=mini, steps=2, warmup=0, lr=1e-2, dev_share=0, max_tokens=64
        )
        train(spec_of(tiny_llama), PAIRS, settings, tmp_path / name, device="cpu")
        heads.append(Encoder.load(tmp_path / name, device="cpu").model[2].linear.weight.detach().numpy())
    np.testing.assert_allclose(heads[0], heads[1], atol=2e-3)  # weights are stored in half precision


def test_distillation_brings_similarities_closer_to_the_teacher(tiny_models, tmp_path):
    teacher = Encoder.load(tiny_models["qwen3"], device="cpu")
    settings = TrainSettings(
        loss="distillation", teacher=str(tiny_models["qwen3"]), temperature=0.1, batch_size=32, steps=60,
        eval_steps=60, lr=1e-2, dev_share=0, max_tokens=64,
    )  # fmt: skip
    others = [pair.positive for pair in PAIRS]
    pairs = [replace(pair, negatives=tuple(others[n - 4 : n] or others[4:8])) for n, pair in enumerate(PAIRS)]
    train(spec_of(tiny_models["llama"]), pairs, settings, tmp_path / "out", device="cpu")

    def agreement(student):
        texts = [pair.positive for pair in PAIRS]
        one, two = (e.embed(texts).vectors for e in (teacher, student))
        upper = np.triu_indices(len(texts), 1)
        return np.corrcoef((one @ one.T)[upper], (two @ two.T)[upper])[0, 1]

    start = Encoder.load(spec_of(tiny_models["llama"], head="random"), device="cpu")
    assert agreement(Encoder.load(tmp_path / "out", device="cpu")) > agreement(start) + 0.05


def test_training_stops_early_without_improvement(tiny_llama, tmp_path):
    settings = TrainSettings(batch_size=16, steps=200, eval_steps=2, patience=2, lr=0.0, max_tokens=64, dev_share=0.2)
    found = train(spec_of(tiny_llama), PAIRS, settings, tmp_path / "out", device="cpu")
    assert found.steps == 6  # the first evaluation is the best one
    assert found.kept == 2
    assert "updates: 6, of which the first 2 were kept" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("strategy", "changed", "word"),
    [
        ("mean", {}, "no trained weights"),
        ("linear_head", {"batch_size": 500}, "fewer than one batch"),
        ("linear_head", {"batch_size": 200, "negatives": 200}, "200 negatives each are fewer"),
        ("linear_head", {"batch_size": 100, "negatives": 50}, "only different texts"),
        ("linear_head", {"loss": "distillation", "teacher": "nano"}, "negatives"),
        ("whitening", {"max_tokens": 64}, "max_tokens has no effect"),
    ],
)
def test_invalid_training_arguments_are_rejected(tiny_llama, tmp_path, strategy, changed, word):
    with pytest.raises((SpecError, InputError), match=word):
        train(
            spec_of(tiny_llama, strategy),
            PAIRS,
            TrainSettings(**{"max_tokens": 64, **changed}),
            tmp_path / "out",
            device="cpu",
        )
    assert not (tmp_path / "out").exists()


def not_read():
    raise AssertionError("the data was read first")


@pytest.mark.parametrize(
    ("strategy", "changed", "word"),
    [
        ("linear_head", {"matryoshka": (16, 33)}, "matryoshka must be from 1 to 32"),
        ("lexsembridge", {"options": {"mode": "training"}}, "options.mode=training serves the backbone alone"),
        ("meen", {}, "did you mean 'mean'"),
        ("linear_head", {"negatives": 1, "teacher": "meen"}, "did you mean 'mean'"),
        ("linear_head", {"options": {"bia": True}}, "did you mean 'bias'"),
    ],
)
def test_invalid_settings_are_rejected_before_the_data_is_read(tiny_llama, tmp_path, strategy, changed, word):
    with pytest.raises(SpecError, match=word):
        train(spec_of(tiny_llama, strategy), not_read, TrainSettings(**changed), tmp_path / "out", device="cpu")
    with pytest.raises(AssertionError, match="read first"):
        train(spec_of(tiny_llama), not_read, SETTINGS, tmp_path / "out", device="cpu")


def test_a_multi_vector_teacher_is_rejected_before_the_data_is_read(tiny_llama, tmp_path):
    settings = TrainSettings(negatives=1, teacher=f"colbert:dim=null@{tiny_llama}")
    with pytest.raises(SpecError, match="vector for each token") as caught:
        train(spec_of(tiny_llama), not_read, settings, tmp_path / "out", device="cpu")
    assert caught.value.field == "teacher"


def test_a_teacher_is_a_folder_or_a_spec(tiny_models, tmp_path):
    pairs = [replace(pair, negatives=(PAIRS[n - 1].positive, PAIRS[n - 2].positive)) for n, pair in enumerate(PAIRS)]
    train(spec_of(tiny_models["qwen2"]), PAIRS, SETTINGS, tmp_path / "head", device="cpu")
    qwen2 = tiny_models["qwen2"]
    teachers = [str(qwen2), f"mean@{qwen2}", f"last_token@{qwen2}", str(tmp_path / "head")]
    prints = []
    for number, teacher in enumerate(teachers):
        settings = TrainSettings(loss="distillation", teacher=teacher, batch_size=16, steps=4, max_tokens=64)
        spec = spec_of(tiny_models["llama"])
        prints.append(train(spec, pairs, settings, tmp_path / str(number), device="cpu", dev=[]).fingerprint)
    assert prints[0] == prints[1]
    assert len({*prints}) == 3


def test_a_head_finds_a_backbone_given_as_a_relative_path(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_llama.parent)
    found = train(spec_of(tiny_llama.name), PAIRS, SETTINGS, tmp_path / "out", device="cpu", dev=[])
    monkeypatch.chdir(tmp_path)
    assert Encoder.load("out", device="cpu").fingerprint == found.fingerprint
    absolute = train(spec_of(tiny_llama), PAIRS, SETTINGS, tmp_path / "absolute", device="cpu", dev=[])
    assert absolute.fingerprint == found.fingerprint


def test_whitening_is_fitted_to_texts_without_pairs(tiny_llama, tmp_path):
    pytest.importorskip("typer")
    from api.cli.train import train as command

    texts = [pair.positive for pair in PAIRS]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command("whitening", [str(tmp_path / "texts.jsonl")], tmp_path / "out", backbone=str(tiny_llama), device="cpu")
    spec = spec_of(tiny_llama, "whitening")
    alone = train(spec, texts, TrainSettings(), tmp_path / "alone", device="cpu")
    assert Encoder.load(tmp_path / "out", device="cpu").fingerprint == alone.fingerprint
    as_pairs = [TrainingPair(one, other) for one, other in zip(texts[::2], texts[1::2], strict=True)]
    pairs = train(spec, as_pairs, TrainSettings(), tmp_path / "pairs", device="cpu")
    assert pairs.fingerprint == alone.fingerprint
    assert "data: 240 texts from texts.jsonl" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="texts alone"):
        train(spec_of(tiny_llama), texts, SETTINGS, tmp_path / "none", device="cpu")
    with pytest.raises(SpecError, match="omit dev"):
        train(spec, not_read, TrainSettings(), tmp_path / "none", device="cpu", dev=PAIRS)


def test_saved_files_follow_the_umask(tiny_llama, tmp_path):
    before = os.umask(0o027)
    try:
        train(spec_of(tiny_llama), PAIRS, SETTINGS, tmp_path / "head", device="cpu", dev=[])
        Encoder.load(tmp_path / "head", device="cpu").save(tmp_path / "whole")
    finally:
        os.umask(before)
    files = [path for name in ("head", "whole") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) >= 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_folder_with_other_files_is_not_overwritten(tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("dear")
    with pytest.raises(LoadError, match="exists"):
        train(spec_of(tiny_llama), PAIRS, SETTINGS, tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "dear"
    assert not (tmp_path / "out.work").exists()


COMMAND = """
import sys, torch
torch.set_num_threads(1)
from embedserve.strategies import STRATEGIES
STRATEGIES["linear_head"] = "tests.embedserve.linear_head:LinearHeadStrategy"
from api.cli.main import main
main(sys.argv[1:])
"""


def test_a_killed_run_resumes_to_the_same_weights(tiny_llama, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"query": p.query, "positive": p.positive}) + "\n" for p in PAIRS))

    def command(name, *more):
        options = ["--strategy", "linear_head", "--backbone", str(tiny_llama), "--data", str(data), "--steps", "40"]
        options += ["--batch-size", "16", "--eval-steps", "4", "--lr", "0.003", "--max-tokens", "64", "--device", "cpu"]
        return [
            sys.executable,
            "-c",
            COMMAND,
            "train",
            *options,
            "-o",
            str(tmp_path / name),
            "--patience",
            "100",
            *more,
        ]

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "cut.work" / "checkpoints"
    saved = checkpoints / "checkpoint-8" / "trainer_state.json"
    assert wait_until(lambda: saved.exists() or process.poll() is not None, 120), "no checkpoint was written"
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    last = max(int(path.parent.name.partition("-")[2]) for path in checkpoints.glob("*/trainer_state.json"))
    again = subprocess.run(command("cut", "--resume"), check=True, capture_output=True, timeout=120, text=True)
    assert f"update {last + 4}:" in again.stderr
    assert "update 4:" not in again.stderr
    one, two = ((tmp_path / name / "head.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two
    refused = subprocess.run(command("whole"), capture_output=True, timeout=120, text=True)
    assert refused.returncode == 2
    assert "is not empty; choose a new folder, or add --overwrite" in refused.stderr


def test_dev_pairs_are_never_trained_on(tiny_llama, tmp_path):
    learn, dev = split_dev(PAIRS, 0.2)
    one = train(spec_of(tiny_llama), PAIRS, SETTINGS, tmp_path / "one", device="cpu")
    two = train(spec_of(tiny_llama), learn, SETTINGS, tmp_path / "two", dev=dev, device="cpu")
    assert (one.before, one.after) == (two.before, two.after)
    weights = [Encoder.load(tmp_path / name, device="cpu").model[2].linear.weight for name in ("one", "two")]
    assert torch.equal(*weights)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if is_trained(name)])
def test_every_recipe_trains_and_its_head_is_served(tiny_llama, tmp_path, strategy):
    given = {"batch_size": 16, "steps": 8, "eval_steps": 4, "max_tokens": 64, "dev_share": 0.2}
    settings = settings_for(strategy, {} if is_fitted(strategy) else given)
    found = train(spec_of(tiny_llama, strategy), PAIRS, settings, tmp_path / "out", device="cpu")
    encoder = Encoder.load(tmp_path / "out", device="cpu")
    assert encoder.fingerprint == found.fingerprint
    fresh = Encoder.load(spec_of(tiny_llama, strategy, head="random", options=settings.options), device="cpu")
    queries = [pair.query for pair in PAIRS[:4]]
    trained, untrained = (vectors_of(one, queries) for one in (encoder, fresh))
    assert np.abs(trained - untrained).max() > 1e-4
    if found.after is not None:
        assert found.after > found.before - 0.01


def vectors_of(encoder, texts):
    found = encoder.encode(texts, "query")
    return found.multi.vectors if found.dense is None else found.dense.vectors


@pytest.mark.parametrize("changed", [{"mini_batch_size": 4}, {"loss": "distillation", "negatives": 2}])
def test_token_vectors_train_with_every_loss(tiny_models, tmp_path, changed):
    teacher = str(tiny_models["qwen2"])
    settings = replace(
        SETTINGS, temperature=1.0, options={"dim": 8}, **changed, **({"teacher": teacher} if "loss" in changed else {})
    )
    found = train(spec_of(tiny_models["llama"], "colbert"), PAIRS, settings, tmp_path / "out", device="cpu")
    assert found.after >= found.before
    assert found.steps >= 2


def test_resuming_without_an_earlier_run_is_rejected(tiny_llama, tmp_path):
    with pytest.raises(SpecError, match="holds no run to resume; check output"):
        train(spec_of(tiny_llama), PAIRS, SETTINGS, tmp_path / "out", device="cpu", resume=True)


def test_hard_negatives_for_only_some_pairs_are_rejected(tiny_llama, tmp_path):
    pairs = [replace(pair, negatives=("rain",)) for pair in PAIRS[:-1]] + PAIRS[-1:]
    with pytest.raises(InputError, match=f"1 of {len(PAIRS)} pairs have no hard negative.*set negatives"):
        train(spec_of(tiny_llama), pairs, replace(SETTINGS, dev_share=0), tmp_path / "out", device="cpu", dev=[])


def test_fitted_strategies_reject_resume_and_cache(tiny_llama, tmp_path):
    for given in ({"resume": True}, {"cache": tmp_path}):
        with pytest.raises(SpecError, match="fitted in one pass"):
            train(spec_of(tiny_llama, "whitening"), PAIRS, TrainSettings(), tmp_path / "out", device="cpu", **given)
