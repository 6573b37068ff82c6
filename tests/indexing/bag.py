"""A real encoder that needs no model: every word is a random direction, a text the sum of its words."""

import hashlib
from pathlib import Path

import numpy as np

from embedserve.spec import EncoderSpec
from embedserve.types import Embeddings
from indexing import Document

DIM = 16


class BagEncoder:
    def __init__(self, spec=None, *, weights="bag", dim=DIM):
        self.spec = spec or EncoderSpec(backbone="bag")
        self.name = "bag"
        self.dim = dim
        self.fingerprint = self.spec.fingerprint(weights)

    def embed(self, texts, task="document", *, dimensions=None, progress=None):
        vectors = np.stack([self.vector(text) for text in texts])
        counts = np.array([len(text.split()) for text in texts], dtype=np.int64)
        return Embeddings(vectors, counts, np.zeros(len(texts), dtype=bool))

    def vector(self, text):
        total = np.zeros(self.dim)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
            total += np.random.default_rng(seed).normal(size=self.dim)
        return (total / np.linalg.norm(total)).astype(np.float32)


def make_documents(count, tag="old"):
    """Documents that say which corpus they are of."""
    return [
        Document(f"{tag}-{n}", f"{tag} text number{n} about topic{n % 7}", f"title{n}", {"n": n, "tag": tag})
        for n in range(count)
    ]


def contents(directory: Path) -> tuple[str, int]:
    """Open a collection, check it through and through, and return which corpus it holds and how much of it."""
    from indexing import Collection

    encoder = BagEncoder()
    with Collection.open(directory, encoder) as collection:
        documents = list(collection.documents)
        tags = {document.metadata["tag"] for document in documents}
        assert len(tags) == 1
        assert documents == make_documents(len(documents), tags.copy().pop())
        for document in documents[:: max(1, len(documents) // 5)]:
            best = collection.search([document.content], k=1)[0][0]
            assert best.id == document.id
        return tags.pop(), len(documents)
