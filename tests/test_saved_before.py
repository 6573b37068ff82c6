"""Folders written by version 0.1.0 (2026-11), before modules moved: class paths and file formats stay readable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedserve import Encoder
from indexing import Collection, Document, verify

SAVED = Path(__file__).parent / "golden" / "saved_2026_11"
TEXTS = json.loads((SAVED / "texts.json").read_text(encoding="utf-8"))
VECTORS = np.load(SAVED / "vectors.npz")
FOLDERS = sorted({name.split(".")[0] for name in VECTORS.files})


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_saved_encoder_gives_the_vectors_it_gave_when_it_was_saved(folder):
    encoded = Encoder.load(SAVED / folder, device="cpu").encode(TEXTS, "query")
    checked = 0
    for output in ("dense", "multi", "sparse"):
        key = f"{folder}.{output}"
        if key in VECTORS:
            part = getattr(encoded, output)
            actual = part.values if output == "sparse" else part.vectors
            np.testing.assert_allclose(actual, VECTORS[key], atol=1e-5)
            checked += 1
    assert checked


def test_a_collection_is_searched_and_written_to(tmp_path):
    folder = shutil.copytree(SAVED / "collection", tmp_path / "collections" / "collection")
    assert all(check.ok for check in verify(folder))
    encoder = Encoder.load(SAVED / "promptreps", device="cpu")
    with Collection.open(folder, encoder=encoder, writable=True) as collection:
        expected = json.loads((SAVED / "hits.json").read_text())
        hits = collection.search(["a small dog"], 3)[0]
        assert [hit.id for hit in hits] == [hit_id for hit_id, _ in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-4)
        assert collection.get(["late", "d0"])[1] is None  # deleted through the log
        collection.upsert([Document("new", "a new dog")])
        collection.flush()
    with Collection.open(folder, encoder=encoder) as collection:
        assert collection.get(["new"])[0].text == "a new dog"
