"""Token prepending: parity with the published code, and the invariants of the method."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.compat import decoder_of
from embedserve.decoder import decoder_layers, final_norm, hooked
from embedserve.prompts import PROMPTS
from embedserve.strategies.token_prepending import PLACEHOLDER, as_sentence, split_rows
from tests.embedserve.golden_files import GOLDEN, TEXTS, arrays, backbone
from tests.tiny import FAMILIES, SENTENCES, SHARED, tokenizer

RUNS = json.loads((GOLDEN / "token_prepending" / "index.json").read_text())


def load(model, post=(), max_tokens=None, **options):
    return Encoder.load(
        EncoderSpec("token_prepending", str(model), options, post=post, max_tokens=max_tokens), device="cpu"
    )


def raw(encoder, texts, task="document"):
    """Vectors before normalisation, through the library's own preprocessing, padded on the left."""
    encoder.model.tokenizer.padding_side = "left"
    with torch.no_grad():
        features = encoder.model[0](encoder.model[0].preprocess(list(texts), task=task))
    return features["token_embeddings"][:, 0].numpy()


def hidden(encoder, text, number):
    """The hidden state (T, D) of that number as the decoder computes it, and its ids."""
    found = []
    ids = torch.from_numpy(encoder.tokenize([text]).ids[0])[None]
    decoder = encoder.model[0]
    with torch.no_grad(), hooked(decoder_of(decoder), {number: found.append}):
        decoder.states(ids, torch.ones_like(ids), {})
    return found[-1][0], ids[0].tolist()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_vectors_and_ids_are_the_published_ones(run):
    name = {"ke": "knowledge"}.get(run["prompt_method"], run["prompt_method"])
    tp = run["plan"] == "tp"
    encoder = load(
        backbone(run["name"]),
        prompt=name,
        start=run["tp_starting_index"] if tp else None,
        exit=run["tp_exiting_index"] if tp else None,
        output_layer=run["output_layer"],
    )
    expected = arrays(f"token_prepending/{run['name']}.npz")
    np.testing.assert_allclose(raw(encoder, TEXTS), expected["embeddings"], atol=2e-5, rtol=1e-5)
    unit = expected["embeddings"] / np.linalg.norm(expected["embeddings"], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(TEXTS).vectors, unit, atol=1e-5)
    golden = [
        row[mask == 1].tolist() for row, mask in zip(expected["input_ids"], expected["attention_mask"], strict=True)
    ]
    per_text = len(golden) // len(TEXTS)
    for place, ids in enumerate(encoder.tokenize(TEXTS).ids):
        joined = [i for part in golden[place * per_text : (place + 1) * per_text] for i in [-1, *part]][1:]
        own = encoder.model[0].placeholder_id()
        assert [560 if i == own else i for i in ids.tolist()] == joined
    if tp:
        np.testing.assert_array_equal(encoder.model[0].placeholder, expected["pst_embedding"])


@pytest.mark.parametrize("family", FAMILIES)
def test_start_null_is_a_plain_run_of_the_same_prompt(tiny_models, family):
    never = load(tiny_models[family], start=9, exit=99, output_layer=3)
    nothing = load(tiny_models[family], start=2, exit=2, output_layer=3)
    expected = raw(never, SENTENCES)
    np.testing.assert_allclose(raw(nothing, SENTENCES), expected, atol=1e-6)
    decoder = never.model[0]
    for text, found in zip(SENTENCES, expected, strict=True):
        ids = torch.from_numpy(never.tokenize([text]).ids[0])
        with torch.no_grad():
            rows = decoder_of(decoder).get_input_embeddings()(ids.clamp(max=399))
            rows[ids == decoder.placeholder_id()] = decoder.placeholder
            states = decoder_of(decoder)(inputs_embeds=rows[None], output_hidden_states=True).hidden_states
        np.testing.assert_allclose(found, states[3][0, -1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_placeholder_has_the_last_tokens_state_and_earlier_tokens_are_unchanged(tiny_models, family):
    applied, never = (load(tiny_models[family], start=s, exit=4, output_layer=4) for s in (1, 4))
    for text in SENTENCES[:3]:
        for number in (1, 2, 3):
            plain, ids = hidden(never, text, number)
            found, same = hidden(applied, text, number)
            assert ids == same
            place = ids.index(applied.model[0].placeholder_id())
            np.testing.assert_allclose(found[:place], plain[:place], atol=1e-5)
            moved = (found[place + 1 :] - plain[place + 1 :]).abs().max()
            assert moved < 1e-5 if number == 1 else moved > 1e-3


def test_layer_start_reads_the_last_state_at_the_placeholder(tiny_models):
    encoder = load(tiny_models["llama"], start=1, exit=3, output_layer=4)
    decoder, seen = encoder.model[0], []
    ids = torch.from_numpy(encoder.tokenize(SENTENCES[:1]).ids[0])[None]
    layers = decoder_layers(decoder_of(decoder))
    handles = [
        layer.self_attn.register_forward_pre_hook(lambda _, a, k: seen.append(k["hidden_states"][0]), with_kwargs=True)
        for layer in layers
    ]
    with torch.no_grad():
        decoder.states(ids, torch.ones_like(ids), {})
    for handle in handles:
        handle.remove()
    place = ids[0].tolist().index(decoder.placeholder_id())
    same = [torch.equal(states[place], states[-1]) for states in seen]
    assert same == [False, True, True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_with_start_0_the_placeholders_row_has_no_effect(tiny_models, family):
    encoder = load(tiny_models[family], start=0, exit=2)
    expected = encoder.embed(SENTENCES).vectors
    encoder.model[0].placeholder.mul_(-3)
    np.testing.assert_array_equal(encoder.embed(SENTENCES).vectors, expected)


def test_with_start_1_the_norm_of_the_placeholders_row_has_no_effect(tiny_models):
    encoder = load(tiny_models["llama"], start=1, exit=2)
    expected = encoder.embed(SENTENCES).vectors
    encoder.model[0].placeholder.mul_(2)  # the norm before the first layer takes it away
    np.testing.assert_allclose(encoder.embed(SENTENCES).vectors, expected, atol=1e-4)
    encoder.model[0].placeholder.copy_(encoder.model[0].placeholder.flip(0))
    assert np.abs(encoder.embed(SENTENCES).vectors - expected).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_after_the_output_layer_are_skipped(tiny_models, family):
    encoder = load(tiny_models[family], output_layer=2)
    expected = encoder.embed(SENTENCES).vectors
    with torch.no_grad():
        for layer in decoder_layers(decoder_of(encoder.model[0]))[2:]:
            for weight in layer.parameters():
                weight.fill_(float("nan"))
    np.testing.assert_array_equal(encoder.embed(SENTENCES).vectors, expected)


def test_metaeol_is_the_mean_over_its_prompts_each_with_the_full_token_limit():
    meta = load(backbone("qwen2"), prompt="metaeol", max_tokens=450)
    parts = [load(backbone("qwen2"), prompt=prompt, max_tokens=450) for prompt in PROMPTS["metaeol"]]
    texts = [*SENTENCES, "the dog sleeps " * 200]
    mean = np.mean([raw(part, texts) for part in parts], axis=0)
    np.testing.assert_allclose(raw(meta, texts), mean, atol=1e-5)
    np.testing.assert_allclose(meta.embed(texts).vectors, functional.normalize(torch.from_numpy(mean)), atol=1e-5)
    rows = meta.tokenize(texts)
    assert rows.tokens.tolist() == sum(part.tokenize(texts).tokens for part in parts).tolist()
    assert rows.truncated.tolist() == [False] * len(SENTENCES) + [True]
    for ids in rows.ids:
        assert (ids == meta.model[0].placeholder_id()).sum() == 8


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_split_for_either_padding_side(side):
    rows = [[5, 6, -1, 7], [8, -1, 9, 10, 11]]
    pads = [[0] * (6 - len(row)) for row in rows]
    ids, mask = (
        torch.tensor([pad + row if side == "left" else row + pad for row, pad in zip(values, pads, strict=True)])
        for values in (rows, [[1] * len(row) for row in rows])
    )
    found, found_mask = split_rows(ids, mask, 2)
    assert [row[keep == 1].tolist() for row, keep in zip(found, found_mask, strict=True)] == [
        [5, 6], [7], [8], [9, 10, 11],
    ]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_cue_and_the_placeholder_survive_truncation(prompt):
    encoder = load(backbone("llama"), prompt=prompt, max_tokens=300)
    tokenizer = encoder.model[0].text_tokenizer().backend
    ids = encoder.tokenize(["the dog sleeps " * 200]).ids[0].tolist()
    parts = [[]]
    for number in ids:
        parts = [*parts, []] if number == -1 else [*parts[:-1], [*parts[-1], number]]
    assert len(parts) == len(PROMPTS[prompt])
    for part, text in zip(parts, PROMPTS[prompt], strict=True):
        before, after = text.split("{text}")
        read = tokenizer.decode(part, skip_special_tokens=False)
        assert read.replace("<s>", "").startswith(before.replace("{placeholder}", PLACEHOLDER + " "))
        assert read.endswith(after)
        assert len(part) <= 300


def test_a_placeholder_in_a_text_is_removed(tiny_models):
    encoder = load(tiny_models["llama"], clean=False)
    own = encoder.model[0].placeholder_id()
    for text in (f"a {PLACEHOLDER} b", f"{PLACEHOLDER}a"):
        assert (encoder.tokenize([text]).ids[0] == own).sum() == 1
    prompted = Encoder.load(
        EncoderSpec("token_prepending", str(tiny_models["llama"]), prompts={"query": f"{PLACEHOLDER} find: "}), "cpu"
    )
    assert (prompted.tokenize(["a"], "query").ids[0] == own).sum() == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("rain", "rain."), ("Why?", "Why."), ('say "no"', "say 'no'"), ("a\n  b.", "a b."), ("it's 'so'", "it's 'so'")],
)
def test_clean_rewrites_texts_as_sentences(tiny_models, text, sentence):
    assert as_sentence(text) == sentence
    cleaned, plain = (load(tiny_models["llama"], clean=clean) for clean in (True, False))
    assert cleaned.tokenize([text]).ids[0].tolist() == plain.tokenize([sentence]).ids[0].tolist()


def test_the_final_norm_is_an_option_and_the_last_layer_always_has_it(tiny_models):
    model = tiny_models["llama"]
    plain, normed = (load(model, output_layer=-2, norm=norm) for norm in ("none", "final"))
    with torch.no_grad():
        expected = final_norm(decoder_of(plain.model[0]))(torch.from_numpy(raw(plain, SENTENCES)))
    np.testing.assert_allclose(raw(normed, SENTENCES), expected, atol=1e-5)
    last = [raw(load(model, output_layer=4, norm=norm), SENTENCES) for norm in ("none", "final")]
    np.testing.assert_array_equal(*last)


def test_post_transforms_apply(tiny_models):
    encoder = load(tiny_models["llama"], post=("embedfilter:2", "truncate:8"), norm="final")
    assert encoder.embed(SENTENCES).vectors.shape == (len(SENTENCES), 8)


def test_embedfilter_and_truncate_apply_with_the_defaults_on_nano(tmp_path):
    width = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    config = LlamaConfig(**{**SHARED, **width}, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer(bos=True).save_pretrained(tmp_path)
    spec = EncoderSpec(strategy="token_prepending", backbone=str(tmp_path), post=["embedfilter:4", "truncate:128"])
    found = Encoder.load(spec, device="cpu").embed(SENTENCES).vectors
    assert found.shape == (len(SENTENCES), 128)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    with pytest.raises(SpecError, match="1 to 80 dimensions"):  # nano is 320 wide: a quarter is 80
        Encoder.load(replace(spec, backbone="nano"), device="cpu")


def test_the_default_exit_is_a_quarter_of_the_layers(tiny_models):
    assert (load(tiny_models["llama"]).model[0].start, load(tiny_models["llama"]).model[0].exit) == (1, 2)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": "no"}, "options.prompt"),
        ({"prompt": "{text} means"}, "options.prompt"),
        ({"prompt": "{text} {placeholder}"}, "options.prompt"),
        ({"prompt": "{placeholder}{text}{text}"}, "options.prompt"),
        ({"prompt": 5}, "options.prompt"),
        ({"start": -1}, "options.start"),
        ({"start": True}, "options.start"),
        ({"exit": 0}, "options.exit"),
        ({"exit": "all"}, "options.exit"),
        ({"output_layer": 0}, "options.output_layer"),
        ({"output_layer": 5}, "options.output_layer"),
        ({"output_layer": -5}, "options.output_layer"),
        ({"norm": "l2"}, "options.norm"),
        ({"norm": True}, "options.norm"),
        ({"clean": 1}, "options.clean"),
        ({"clean": "no"}, "options.clean"),
    ],
)
def test_invalid_options_are_refused(tiny_models, options, field):
    with pytest.raises(SpecError) as caught:
        load(tiny_models["llama"], **options)
    assert caught.value.field == field


def test_bidirectional_attention_is_refused(tiny_models):
    with pytest.raises(SpecError, match="bidirectional"):
        Encoder.load(EncoderSpec("token_prepending", str(tiny_models["llama"]), attention="bidirectional"), "cpu")
