"""A real encoder that needs no model: every word is a random direction, a text the sum of its words."""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from embedserve.spec import EncoderSpec
from embedserve.types import Embeddings, Encoded, SparseEmbeddings, TokenEmbeddings
from indexing import Document

DIM = 16
VOCABULARY = 1000


class BagEncoder:
    outputs, max_tokens, device = ("dense",), 512, "cpu"

    def __init__(self, spec=None, *, weights="bag", dim=DIM):
        self.spec = spec or EncoderSpec(backbone="bag")
        self.name = "bag"
        self.dim = dim
        self.fingerprint = self.spec.fingerprint(weights)
        self.passes = 0

    def embed(self, texts, task="document", *, dimensions=None, progress=None):
        vectors = np.stack([self.vector(text) for text in texts])
        return Embeddings(vectors, *self._lengths(texts))

    def vector(self, text):
        total = np.sum([direction(word, self.dim) for word in text.lower().split()], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)

    def encode(self, texts, task="document", *, dimensions=None):
        """All three kinds of vectors: of the text, of each word, and the counts of its words by a small hash."""
        self.passes += 1
        words = [text.lower().split() for text in texts]
        rows = [direction(word, self.dim) for line in words for word in line]
        rows = np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)
        offsets = np.cumsum([0, *map(len, words)])
        lengths, cut = self._lengths(texts)
        entries = [np.unique([entry(word) for word in line], return_counts=True) for line in words]
        sparse = SparseEmbeddings(
            np.concatenate([found for found, _ in entries]), np.concatenate([n for _, n in entries]).astype(np.float32),
            np.cumsum([0, *(len(found) for found, _ in entries)]), lengths, cut,
        )  # fmt: skip
        ids = np.array([entry(word) for line in words for word in line], dtype=np.int64)
        return Encoded(self.embed(texts), TokenEmbeddings(rows, offsets, ids, lengths, cut), sparse)

    def _lengths(self, texts):
        return np.array([len(text.split()) for text in texts], dtype=np.int64), np.zeros(len(texts), dtype=bool)


@lru_cache(maxsize=10_000)
def direction(word, dim):
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
    return np.random.default_rng(seed).normal(size=dim)


def entry(word):
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) % VOCABULARY


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
        documents = list(collection.documents())
        tags = {document.metadata["tag"] for document in documents}
        assert len(tags) == 1
        assert documents == make_documents(len(documents), tags.copy().pop())
        for document in documents[:: max(1, len(documents) // 5)]:
            best = collection.search([document.content], k=1)[0][0]
            assert best.id == document.id
        return tags.pop(), len(documents)
