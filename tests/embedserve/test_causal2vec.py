"""Causal2Vec: what its paper says must hold, on every family, with a small and with a given pre-encoder."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from embedserve import Encoder, EncoderSpec, LoadError, SpecError
from embedserve.compat import decoder_of
from embedserve.heads import head_state
from embedserve.strategies.causal2vec import prepend
from tests.tiny import BERT_SPECIAL, FAMILIES, SENTENCES, tokenizer, word_tokenizer

WORDS = sorted({word for text in SENTENCES for word in text.lower().replace(",", "").replace(".", "").split()})


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    """Folders of a tiny BERT with a vocabulary of words, and of a tiny RoBERTa, whose positions begin at 2."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    folders = {name: tmp_path_factory.mktemp(name) for name in ("bert", "roberta")}
    vocabulary = [*BERT_SPECIAL, *WORDS]
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, **sizes)).save_pretrained(
        folders["bert"]
    )
    word_tokenizer(WORDS, positions=40).save_pretrained(folders["bert"])
    config = RobertaConfig(vocab_size=400, max_position_embeddings=40, pad_token_id=0, **sizes)
    RobertaModel(config).save_pretrained(folders["roberta"])
    tokenizer(bos=True).save_pretrained(folders["roberta"])
    return {name: str(folder) for name, folder in folders.items()}


def load(tiny_models, family="llama", options=None, **fields):
    fields = {"head": "random", **fields}
    return Encoder.load(EncoderSpec("causal2vec", str(tiny_models[family]), options or {}, **fields), device="cpu")


def ids_of(encoder, text, task="document"):
    """The ids (1, T) that the decoder reads, and those (1, M) that the pre-encoder reads."""
    rows = encoder.tokenize([text], task)
    return torch.from_numpy(rows.ids[0])[None], torch.from_numpy(rows.context_ids[0])[None]


def halves(encoder, ids, context_ids):
    """The last states (D,) of the contextual token and of the end, before they are joined."""
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "context_ids": context_ids}
    with torch.no_grad():
        return encoder.model[0](features)["token_embeddings"][0]


def plain_states(encoder, embeddings):
    """The decoder's own last states (T, D) over embeddings (T, D), by its own call."""
    with torch.no_grad():
        return decoder_of(encoder.model[0])(inputs_embeds=embeddings[None]).last_hidden_state[0]


def embedded(encoder, ids):
    with torch.no_grad():
        return decoder_of(encoder.model[0]).get_input_embeddings()(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_half_is_a_function_of_the_contextual_token_alone(tiny_models, family):
    encoder = load(tiny_models, family)
    (ids, context), (other, _) = ids_of(encoder, SENTENCES[0]), ids_of(encoder, SENTENCES[4])
    first = halves(encoder, ids, context)
    np.testing.assert_allclose(first[0], halves(encoder, other, context)[0], atol=1e-5)
    with torch.no_grad():
        alone = plain_states(encoder, encoder.model[0].context(context))
    np.testing.assert_allclose(first[0], alone[0], atol=1e-5)
    moved = halves(encoder, ids, ids_of(encoder, SENTENCES[4])[1]) - first
    assert moved.abs().amax(dim=1).min() > 1e-2  # the context reaches both halves


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_instead_of_the_contextual_one_is_a_plain_run(tiny_models, family):
    encoder = load(tiny_models, family)
    ids, context = ids_of(encoder, SENTENCES[0])
    word = torch.tensor([[37]])
    encoder.model[0].context = lambda _: embedded(encoder, word)[:, 0]
    with torch.no_grad():
        plain = decoder_of(encoder.model[0])(torch.cat([word, ids], dim=1)).last_hidden_state[0]
    np.testing.assert_allclose(halves(encoder, ids, context), plain[[0, -1]], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_attention_to_the_context_the_end_half_is_plain(tiny_models, family):
    encoder = load(tiny_models, family)
    decoder = encoder.model[0]
    ids, context = ids_of(encoder, SENTENCES[0])
    with torch.no_grad():
        embeddings, mask = prepend(decoder.context(context), embedded(encoder, ids), torch.ones_like(ids))
        mask[:, 0] = 0
        found = decoder.run(None, mask, embeddings)[0, -1]
    np.testing.assert_allclose(found, plain_states(encoder, embedded(encoder, ids)[0])[-1], atol=1e-5)


@pytest.mark.parametrize("name", ["small", "bert", "roberta"])
def test_the_vector_is_both_halves_normalised(tiny_models, berts, name):
    options = {"pre_encoder": berts.get(name, name)}
    encoder = load(tiny_models, options=options)
    parts = [halves(encoder, *ids_of(encoder, text)).numpy() for text in SENTENCES]
    for kind, raw in (
        ("both", [part.reshape(-1) for part in parts]),
        ("context", [part[0] for part in parts]),
        ("eos", [part[1] for part in parts]),
        ("mean", [part.mean(axis=0) for part in parts]),
    ):
        encoder = load(tiny_models, options={**options, "halves": kind})
        assert encoder.dim == (64 if kind == "both" else 32)
        expected = np.array([one / np.linalg.norm(one) for one in raw])
        np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["small", "bert", "roberta"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_vector_does_not_depend_on_its_batch_or_the_padding_side(tiny_models, berts, family, name, side):
    encoder = load(tiny_models, family, {"pre_encoder": berts.get(name, name)})
    expected = np.concatenate([encoder.embed([text]).vectors for text in SENTENCES])
    encoder.model.tokenizer.padding_side = side
    np.testing.assert_allclose(encoder.model.encode(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, expected, atol=1e-5)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
def test_the_contextual_token_is_directly_before_the_first_real_token(mask):
    mask = torch.tensor([mask])
    embeddings = torch.arange(1.0, 6.0)[None, :, None]
    found, longer = prepend(torch.tensor([[-1.0]]), embeddings, mask)
    real = embeddings[mask.bool()].flatten().tolist()
    assert found[longer.bool()].flatten().tolist() == [-1.0, *real]
    assert longer.shape == (1, 6)
    assert longer.sum() == mask.sum() + 1


@pytest.mark.parametrize("halves_option", ["both", "context", "eos"])
@pytest.mark.parametrize("name", ["small", "bert"])
def test_every_trained_weight_learns_with_a_frozen_decoder(tiny_models, berts, name, halves_option):
    encoder = load(tiny_models, options={"pre_encoder": berts.get(name, name), "halves": halves_option})
    model = encoder.model.train()
    decoder_of(model[0]).requires_grad_(False)
    features = model[0].preprocess(SENTENCES[:4], task="query")
    for module in model:
        features = module(features)
    target = torch.randn(features["sentence_embedding"].shape, generator=torch.Generator().manual_seed(0))
    (features["sentence_embedding"] * target).sum().backward()
    trained = {name: weight for name, weight in model[0].named_parameters() if f"0.{name}" in head_state(list(model))}
    assert {name.split(".")[0] for name in trained} == {"pre_encoder", "projection"}
    for weight_name, weight in trained.items():
        assert weight.grad is not None, weight_name
        if not weight_name.endswith("key.bias"):  # the same for all keys, so softmax takes it away
            assert weight.grad.abs().max() > 0, weight_name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["small", "bert"])
def test_an_untrained_contextual_token_has_the_norm_of_a_token_embedding(tiny_models, berts, family, name):
    """Also where the model scales its embeddings inside, as Gemma does."""
    encoder = load(tiny_models, family, {"pre_encoder": berts.get(name, name)})
    decoder = encoder.model[0]
    with torch.no_grad():
        lengths = torch.cat([decoder.context(ids_of(encoder, text)[1]) for text in SENTENCES]).norm(dim=1)
        table = embedded(encoder, torch.arange(400)).norm(dim=1).mean()
    assert 0.5 < float(lengths.mean() / table) < 2


@pytest.mark.parametrize("keep_begin", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rows_end_in_the_end_token_and_keep_begin_controls_the_begin_token(tiny_models, family, keep_begin):
    encoder = load(tiny_models, family, {"keep_begin": keep_begin}, max_tokens=32)
    rows = encoder.tokenize(["the dog sleeps " * 100, "rain"])
    assert [len(rows.ids[0]), rows.truncated.tolist()] == [32, [True, False]]
    for ids in rows.ids:
        assert ids[-1] == 2
        assert (ids[0] == 1) == (keep_begin and family == "llama")
        assert 2 not in ids[:-1]


def test_an_end_token_of_the_tokenizer_is_not_added_twice(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models["llama"], tmp_path / "model")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    values["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    encoder, plain = load({"llama": folder}), load(tiny_models)
    for text in (SENTENCES[0], "the dog sleeps " * 200):
        assert encoder.tokenize([text]).ids[0].tolist() == plain.tokenize([text]).ids[0].tolist()


@pytest.mark.parametrize("name", ["small", "bert"])
def test_the_pre_encoder_reads_the_prompt_only_with_encoder_sees_prompt(tiny_models, berts, name):
    options, prompts = {"pre_encoder": berts.get(name, name)}, {"query": "the cat watches "}
    blind = load(tiny_models, options=options, prompts=prompts, template="say: {text}")
    seeing = load(tiny_models, options={**options, "encoder_sees_prompt": True}, prompts=prompts)
    bare, of_query = (blind.tokenize(["rain"], task).context_ids[0].tolist() for task in ("document", "query"))
    assert of_query == bare == seeing.tokenize(["rain"]).context_ids[0].tolist()
    read = seeing.tokenize(["rain"], "query").context_ids[0].tolist()
    assert read == seeing.tokenize(["the cat watches rain"]).context_ids[0].tolist() != bare


def test_a_pre_encoder_reads_at_most_its_positions(tiny_models, berts):
    for name, limit in (("bert", 38), ("roberta", 38)):
        encoder = load(tiny_models, options={"pre_encoder": berts[name]})
        (long,) = encoder.tokenize(["the dog sleeps " * 60]).context_ids
        assert len(long) == limit
        assert np.isfinite(encoder.embed(["the dog sleeps " * 60]).vectors).all()
    bert = load(tiny_models, options={"pre_encoder": berts["bert"]})
    assert bert.tokenize(["the dog sleeps " * 60]).context_ids[0][-1] == 3  # [SEP] survives the cut


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_contextual_token_takes_one_position(tiny_models, family, tmp_path):
    encoder = load(tiny_models, family)
    assert encoder.max_tokens == 255
    encoder.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved", device="cpu")
    long = ["the dog sleeps " * 200]
    assert again.tokenize(long).tokens == 255
    np.testing.assert_array_equal(again.embed(long).vectors, encoder.embed(long).vectors)
    with pytest.raises(SpecError, match="contextual token"):
        load(tiny_models, family, max_tokens=256)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_pre_encoder_is_saved_with_the_encoder_and_with_its_head(tiny_models, berts, name, tmp_path):
    encoder = load(tiny_models, options={"pre_encoder": berts[name]})
    with torch.no_grad():
        for part in (encoder.model[0].pre_encoder, encoder.model[0].projection):
            for weight in part.parameters():
                weight.mul_(1.1)
    expected = encoder.embed(SENTENCES).vectors
    encoder.save(tmp_path / "saved")
    encoder.save_head(tmp_path / "head", half=False)
    for folder in ("saved", "head"):
        again = Encoder.load(tmp_path / folder, device="cpu")
        np.testing.assert_allclose(again.embed(SENTENCES).vectors, expected, atol=1e-6)


def test_the_fingerprint_depends_on_the_pre_encoders_files_not_their_path(tiny_models, berts, tmp_path):
    copy = shutil.copytree(berts["bert"], tmp_path / "copy")
    prints = [
        load(tiny_models, options={"pre_encoder": str(folder)}).fingerprint
        for folder in (berts["bert"], copy, berts["roberta"])
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_head_on_nano_is_small(tmp_path):
    encoder = Encoder.load(EncoderSpec("causal2vec", head="random"), device="cpu")
    encoder.save_head(tmp_path / "head")
    assert (tmp_path / "head" / "head.safetensors").stat().st_size < 2 << 20


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"options": {"halves": "first"}}, "options.halves"),
        ({"options": {"halves": ["both"]}}, "options.halves"),
        ({"options": {"keep_begin": 1}}, "options.keep_begin"),
        ({"options": {"encoder_sees_prompt": "no"}}, "options.encoder_sees_prompt"),
        ({"options": {"pre_encoder": 5}}, "options.pre_encoder"),
        ({"options": {"width": 0}}, "options.width"),
        ({"options": {"width": 32}}, "options.width"),
        ({"options": {"heads": True}}, "options.heads"),
        ({"options": {"layers": "two"}}, "options.layers"),
        ({"attention": "bidirectional"}, "attention"),
        ({"template": "{text} again: {text}"}, "template"),
        ({"post": ("embedfilter:2",)}, "post[0]"),
    ],
)
def test_invalid_specs_are_refused(tiny_models, fields, field):
    with pytest.raises(SpecError) as caught:
        load(tiny_models, **fields)
    assert caught.value.field == field


def test_sizes_of_a_small_pre_encoder_are_refused_with_another_one(tiny_models, berts):
    with pytest.raises(SpecError, match="width"):
        load(tiny_models, options={"pre_encoder": berts["bert"], "width": 64, "heads": 4})


def test_a_pre_encoder_with_foreign_code_is_refused(tiny_models, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(LoadError, match="auto_map"):
        load(tiny_models, options={"pre_encoder": str(tmp_path)})


@pytest.mark.parametrize("kind", ["context", "eos", "mean"])
def test_embedfilter_follows_a_vector_of_the_backbones_width(tiny_models, kind):
    encoder = load(tiny_models, options={"halves": kind}, post=("embedfilter:2",))
    assert encoder.embed(SENTENCES).vectors.shape == (len(SENTENCES), 16)
