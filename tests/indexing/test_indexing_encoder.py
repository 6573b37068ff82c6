"""Collections built and searched by real encoders."""

import pytest

from embedserve import Encoder, EncoderSpec, IndexMismatchError
from indexing import Collection, Document, build_collection

TEXTS = ["join arrays along a new axis", "read a JSON document", "the cat sat on the mat", "42", "zwei Töne"]


def load(tiny_models, family="llama", **fields):
    return Encoder.load(EncoderSpec("mean", str(tiny_models[family]), **fields), device="cpu")


def test_every_text_finds_itself(tiny_models, tmp_path):
    encoder = load(tiny_models)
    documents = [Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
    manifest = build_collection(documents, encoder, tmp_path / "docs", batch_size=2)
    assert (manifest.fingerprint, manifest.dim, manifest.encoder) == (encoder.fingerprint, encoder.dim, encoder.name)
    with Collection.open(tmp_path / "docs", load(tiny_models)) as collection:
        for n, hits in enumerate(collection.search(TEXTS, k=3)):
            assert hits[0].id == f"d{n}"
            assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_only_the_encoder_it_was_built_by_may_search(tiny_models, tmp_path):
    build_collection([Document("a", "text")], load(tiny_models), tmp_path / "docs")
    with pytest.raises(IndexMismatchError, match="in prompts"):
        Collection.open(tmp_path / "docs", load(tiny_models, prompts={"query": "find: "}))
    other = next(family for family in tiny_models if family != "llama")
    with pytest.raises(IndexMismatchError, match="in backbone"):
        Collection.open(tmp_path / "docs", load(tiny_models, other))
