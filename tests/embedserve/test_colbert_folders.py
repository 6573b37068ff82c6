"""ColBERT models of others come in as the library reads them, and ours go out to where PyLate reads them."""

import json
import string

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from embedserve import Encoder, EncoderSpec, LoadError, SpecError
from embedserve.compat import LIBRARY_VERSION
from embedserve.loading.colbert_folders import save_pylate
from tests.tiny import BERT_SPECIAL, SENTENCES, word_tokenizer

NATIVE = pytest.mark.skipif(LIBRARY_VERSION < 6, reason="sentence-transformers has no multi-vector models before 6")

WORDS = sorted({word for text in SENTENCES for word in text.lower().replace(",", "").replace(".", "").split()})
MARKS = ["[unused0]", "[unused1]", *string.punctuation]  # PyLate skips unknown words where it lacks one of these


@pytest.fixture
def stanford(tmp_path):
    """A tiny BERT as Stanford's ColBERT saves it: the projection among the weights, the rest in artifact.metadata."""
    folder = tmp_path / "stanford"
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(BERT_SPECIAL + MARKS + WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=48, max_position_embeddings=64, architectures=["HF_ColBERT"],
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    weights = {f"bert.{name}": weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file({**weights, "linear.weight": torch.randn(8, 24)}, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(values))
    word_tokenizer(MARKS + WORDS, positions=64).save_pretrained(folder)
    metadata = {"query_maxlen": 16, "doc_maxlen": 24, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def pylate(tiny_models, tmp_path):
    """A decoder in PyLate's layout, written by us."""
    encoder = colbert(tiny_models["llama"], query_length=12, query_expansion=True, document_length=20)
    save_pylate(encoder, tmp_path / "pylate")
    return tmp_path / "pylate"


def colbert(model, prompts=None, **options):
    spec = EncoderSpec("colbert", str(model), {"dim": 16, **options}, head="random", prompts=prompts or {})
    return Encoder.load(spec, device="cpu")


def multi(encoder, texts, task="document"):
    return list(encoder.encode(texts, task).multi)


def by_the_library(folder, texts):
    """Vectors of queries and documents by sentence-transformers 6; by PyLate where that is 5.3."""
    if LIBRARY_VERSION < 6:
        models = pytest.importorskip("pylate.models", reason="sentence-transformers 5.3 reads ColBERT with PyLate only")
        model = models.ColBERT(str(folder), device="cpu", local_files_only=True)
        return model.encode(texts, is_query=True), model.encode(texts, is_query=False)
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    model.tokenizer.padding_side = "right"
    return model.encode_query(texts, convert_to_numpy=True), model.encode_document(texts, convert_to_numpy=True)


def assert_read_alike(encoder, folder):
    queries, documents = by_the_library(folder, SENTENCES)
    for task, expected in (("query", queries), ("document", documents)):
        found = multi(encoder, SENTENCES, task)
        assert [rows.shape for rows in found] == [rows.shape for rows in expected]
        for rows, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(rows, other, atol=1e-5)


def test_a_stanford_checkpoint_gives_the_same_vectors_as_in_the_library(stanford):
    encoder = Encoder.load(stanford, device="cpu")
    assert_read_alike(encoder, stanford)
    assert (encoder.dim, encoder.outputs) == (8, ("multi",))
    assert encoder.encode(["a small dog"], "query").multi.vectors.shape == (16, 8)
    assert encoder.tokenize(["rain"], "query").ids[0][:2].tolist() == [2, 5]  # [CLS] [unused0]
    assert encoder.tokenize(["rain"]).ids[0][:2].tolist() == [2, 6]


def test_a_stanford_checkpoint_can_be_saved_in_both_formats(stanford, tmp_path):
    encoder = Encoder.load(stanford, device="cpu")
    expected = multi(encoder, SENTENCES, "query")
    encoder.save(tmp_path / "ours")
    for rows, other in zip(expected, multi(Encoder.load(tmp_path / "ours", "cpu"), SENTENCES, "query"), strict=True):
        np.testing.assert_array_equal(rows, other)


def test_a_folder_of_save_pylate_is_read_by_the_library_and_by_encoder_load(pylate, tiny_models):
    assert_read_alike(Encoder.load(pylate, device="cpu"), pylate)
    plain = colbert(tiny_models["llama"], query_length=12, query_expansion=True, document_length=20)
    again = Encoder.load(pylate, device="cpu")
    for task in ("query", "document"):
        for rows, other in zip(multi(plain, SENTENCES, task), multi(again, SENTENCES, task), strict=True):
            np.testing.assert_allclose(rows, other, atol=1e-6)
    assert not any("embedserve" in path.read_text() for path in pylate.glob("*.json"))


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"do_query_expansion": False}, None),
        ({"attend_to_expansion_tokens": True}, 12),
        ({"skiplist_words": ["."]}, 12),
    ],
)
def test_settings_of_pylate_are_applied(pylate, settings, length):
    path = pylate / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    encoder = Encoder.load(pylate, device="cpu")
    assert_read_alike(encoder, pylate)
    if length:
        assert all(len(rows) == length for rows in multi(encoder, SENTENCES, "query"))


@NATIVE
def test_a_folder_of_sentence_transformers_is_read(pylate, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    MultiVectorEncoder(str(pylate), device="cpu", local_files_only=True).save_pretrained(str(tmp_path / "native"))
    assert_read_alike(Encoder.load(tmp_path / "native", device="cpu"), tmp_path / "native")


def test_prefixes_in_the_vocabulary_survive_a_round_trip(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    tokenizer.add_tokens(["[Q] ", "[D] "])
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    model.resize_token_embeddings(max(len(tokenizer), 402))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    encoder = colbert(tmp_path / "model", {"query": "[Q] ", "document": "[D] "}, query_length=12, query_expansion=True)
    save_pylate(encoder, tmp_path / "out")
    again = Encoder.load(tmp_path / "out", device="cpu")
    assert dict(again.spec.prompts) == {"query": "[Q] ", "document": "[D] "}
    assert_read_alike(again, tmp_path / "out")


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        ({"query": "find: "}, {}, "prompts.query"),
        ({}, {"token_pooling": 2}, "options.token_pooling"),
    ],
)
def test_options_that_pylate_cannot_represent_are_refused(tiny_models, tmp_path, prompts, options, field):
    with pytest.raises(SpecError) as caught:
        save_pylate(colbert(tiny_models["llama"], prompts, **options), tmp_path / "out")
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_a_prefix_that_pylate_would_insert_elsewhere_is_refused(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["qwen2"])  # without begin token
    tokenizer.add_tokens(["[Q] "])
    model = AutoModelForCausalLM.from_pretrained(tiny_models["qwen2"])
    model.resize_token_embeddings(max(len(tokenizer), 402))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(SpecError, match="first token") as caught:
        save_pylate(colbert(tmp_path / "model", {"query": "[Q] "}), tmp_path / "out")
    assert caught.value.field == "prompts.query"


def test_an_existing_folder_is_not_overwritten(tiny_models, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(LoadError, match="not empty"):
        save_pylate(colbert(tiny_models["llama"]), tmp_path)


def test_a_stanford_checkpoint_without_projection_is_refused(stanford):
    weights = load_file(stanford / "model.safetensors")
    del weights["linear.weight"]
    save_file(weights, stanford / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"linear\.weight"):
        Encoder.load(stanford, device="cpu")


def test_unsupported_modules_are_refused(pylate):
    path = pylate / "modules.json"
    entries = json.loads(path.read_text())
    entries.append({"idx": 2, "name": "2", "path": "2_Pooling", "type": "sentence_transformers.models.Pooling"})
    path.write_text(json.dumps(entries))
    with pytest.raises(LoadError, match="Pooling"):
        Encoder.load(pylate, device="cpu")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"query_prefix": "", "document_prefix": ""},
        {"do_query_expansion": False, "skiplist_words": []},
        {"attend_to_expansion_tokens": True, "query_length": 12, "document_length": 10},
    ],
)
def test_a_folder_written_by_pylate_gives_the_same_vectors(tiny_models, tmp_path, family, options):
    models = pytest.importorskip("pylate.models", reason="needs PyLate: make test-pylate")
    torch.manual_seed(5)
    options = {"query_length": 16, "document_length": 24, **options}
    model = models.ColBERT(str(tiny_models[family]), device="cpu", embedding_size=16, **options)
    model.save_pretrained(str(tmp_path / "made"))
    encoder = Encoder.load(tmp_path / "made", device="cpu")
    texts = [*SENTENCES, "rain"]
    expected = {task: model.encode(texts, is_query=task == "query") for task in ("query", "document")}
    encoder.save(tmp_path / "ours")
    save_pylate(encoder, tmp_path / "again")
    for folder in ("made", "ours", "again"):
        encoder = Encoder.load(tmp_path / folder, device="cpu")
        for task, wanted in expected.items():
            found = multi(encoder, texts, task)
            assert [rows.shape for rows in found] == [rows.shape for rows in wanted]
            for rows, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(rows, other, atol=1e-5)
    back = models.ColBERT(str(tmp_path / "again"), device="cpu", local_files_only=True)
    for rows, other in zip(back.encode(texts, is_query=True), expected["query"], strict=True):
        np.testing.assert_allclose(rows, other, atol=1e-5)
