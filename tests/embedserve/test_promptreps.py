"""PromptReps: parity with the published code, and the invariants of its sparse vectors."""

import json

import numpy as np
import pytest
import torch

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.strategies.promptreps import expandable_entries
from indexing.query.fusion import as_impacts
from tests.embedserve.golden_files import GOLDEN, TEXTS, arrays, backbone
from tests.tiny import SENTENCES

RUNS = [run for run in json.loads((GOLDEN / "promptreps" / "index.json").read_text()) if run["name"] != "fusion"]


def load(model, **options):
    return Encoder.load(EncoderSpec("promptreps", str(model), options), device="cpu")


def golden_encoder(run):
    prompts = run["prompts"]
    templates = {
        f"{ours}_template": prompts[f"{name}_prefix"] + "{text}" + prompts[f"{name}_suffix"]
        for ours, name in (("query", "query"), ("document", "passage"))
    }
    templates = {name: text.removeprefix("<s>") for name, text in templates.items()}  # the tokenizers put it there
    words = [word for word in run["stopwords"] if word.isalpha()]
    return load(backbone(run["name"]), stop_words=words, expansion=int(run["name"][-1]), **templates)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_dense_and_sparse_vectors_are_the_published_ones(run):
    encoder, expected = golden_encoder(run), arrays(f"promptreps/{run['name']}.npz")
    task = "query" if "query" in run["name"] else "document"
    for ids, golden, mask in zip(
        encoder.tokenize(TEXTS, task).ids, expected["input_ids"], expected["attention_mask"], strict=True
    ):
        assert ids.tolist() == golden[mask == 1].tolist()
    found = encoder.encode(TEXTS, task)
    np.testing.assert_allclose(found.dense.vectors, expected["dense"], atol=1e-5)
    tokenizer = encoder.model.tokenizer
    for place, golden in enumerate(run["sparse"]):
        weights = found.sparse[place]
        np.testing.assert_allclose(list(weights.values()), expected["logsat"][place][list(weights)], atol=1e-5)
        impacts = {tokenizer.convert_ids_to_tokens(entry): int(as_impacts(w)) for entry, w in weights.items()}
        names = impacts.keys() | golden.keys()
        assert {name: impacts.get(name, 0) for name in names} == {name: golden.get(name, 0) for name in names}


def test_expandable_entries_are_the_published_ones():
    run = RUNS[-1]
    expected = arrays(f"promptreps/{run['name']}.npz")["filtered_ids"]
    assert expandable_entries(golden_encoder(run).model.tokenizer) == sorted(expected.tolist())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_weights_belong_to_the_texts_own_words(tiny_models, family):
    encoder = load(tiny_models[family])
    found = encoder.encode(SENTENCES).sparse
    tokenizer = encoder.model.tokenizer
    for place, text in enumerate(SENTENCES):
        words = [word.strip('.,;!?"') for word in text.lower().split()]
        own = {entry for word in words for entry in tokenizer(word, add_special_tokens=False)["input_ids"]}
        assert set(found[place]) <= own
        assert all(weight > 0 for weight in found[place].values())
        np.testing.assert_allclose(
            list(encoder.encode([text]).sparse[0].values()), list(found[place].values()), atol=1e-5
        )
    assert len(found) == len(SENTENCES)


def weights_by_hand(encoder, text, task="document"):
    with torch.no_grad():
        state = torch.from_numpy(encoder.tokenize([text], task).ids[0])[None]
        hidden = encoder.model[0].run(state, torch.ones_like(state))[0, -1]
        return torch.log1p(torch.relu(hidden @ encoder.model[2].unembedding.T)).numpy()


def test_a_text_of_stop_words_alone_gets_the_ten_largest_entries(tiny_models):
    encoder = load(tiny_models["llama"])
    found = encoder.encode(["before the of and"]).sparse[0]
    weights = weights_by_hand(encoder, "before the of and")
    assert sorted(found) == sorted(np.argsort(-weights)[:10].tolist())


def test_expansion_adds_entries_and_changes_none(tiny_models):
    plain, wider = load(tiny_models["qwen2"]), load(tiny_models["qwen2"], expansion=7)
    allowed = set(expandable_entries(plain.model.tokenizer))
    for text in SENTENCES[:4]:
        before, after = plain.encode([text]).sparse[0], wider.encode([text]).sparse[0]
        assert before == pytest.approx({entry: after[entry] for entry in before})
        new = set(after) - set(before)
        own = set(wider.model[0].lexical_ids([text])[0].tolist())
        assert len(new) == 7
        assert not new & own
        assert new <= allowed
        weights = weights_by_hand(wider, text)
        rest = sorted((weights[entry] for entry in allowed - own), reverse=True)
        assert sorted((after[entry] for entry in new), reverse=True) == pytest.approx(rest[:7], rel=1e-4)


def test_only_the_largest_terms_are_kept(tiny_models):
    many, few = load(tiny_models["llama"]), load(tiny_models["llama"], max_terms=3)
    for place in range(4):
        kept, whole = few.encode(SENTENCES).sparse[place], many.encode(SENTENCES).sparse[place]
        assert sorted(kept.values()) == pytest.approx(sorted(whole.values())[-3:], rel=1e-5)


def test_query_and_document_differ_by_their_prompt_alone(tiny_models):
    same = load(tiny_models["llama"], query_template='Say "{text}": "', document_template='Say "{text}": "')
    one, other = (same.encode(SENTENCES, task) for task in ("query", "document"))
    np.testing.assert_array_equal(one.dense.vectors, other.dense.vectors)
    np.testing.assert_array_equal(one.sparse.values, other.sparse.values)


def test_the_cue_survives_truncation(tiny_models):
    spec = EncoderSpec("promptreps", str(tiny_models["llama"]), max_tokens=128)
    encoder = Encoder.load(spec, device="cpu")
    rows = encoder.tokenize(["the dog sleeps " * 200, "rain"])
    cue = encoder.model.tokenizer.encode('The word is: "', add_special_tokens=False)
    for ids in rows.ids:
        assert encoder.model.tokenizer.decode(ids).endswith('The word is: "')
    assert rows.truncated.tolist() == [True, False]
    assert len(rows.ids[0]) == 128 > len(cue)
    with pytest.raises(SpecError, match="no room"):
        Encoder.load(EncoderSpec("promptreps", str(tiny_models["llama"]), max_tokens=16), device="cpu")


def test_the_library_gives_the_same_weights(tiny_models):
    encoder = load(tiny_models["llama"])
    found = encoder.model[0].preprocess(SENTENCES, task="document")
    with torch.no_grad():
        for module in encoder.model:
            found = module(found)
    expected = encoder.encode(SENTENCES).sparse
    for place in range(len(SENTENCES)):
        got = {
            int(e): float(w) for e, w in zip(found["lexical_ids"][place], found["sparse_weights"][place], strict=True)
        }
        assert {e: w for e, w in got.items() if e >= 0 and w > 0} == pytest.approx(expected[place], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"query_template": "say"}, "options.query_template"),
        ({"document_template": "{text}"}, "options.document_template"),
        ({"document_template": "{text}{text}"}, "options.document_template"),
        ({"stop_words": "german"}, "options.stop_words"),
        ({"stop_words": [1]}, "options.stop_words"),
        ({"expansion": -1}, "options.expansion"),
        ({"max_terms": 0}, "options.max_terms"),
        ({"max_terms": True}, "options.max_terms"),
    ],
)
def test_invalid_options_are_refused(tiny_llama, options, field):
    with pytest.raises(SpecError) as caught:
        load(tiny_llama, **options)
    assert caught.value.field == field
