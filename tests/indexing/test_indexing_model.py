"""Random operations on a collection and on a dictionary: at every moment both hold the same."""

import os
import random
from collections import Counter

import pytest

from indexing import Collection, create_collection, verify
from indexing.collections.catalog import collection_path
from indexing.collections.snapshots import restore
from indexing.segments.fields import BM25, WORDS, field_of
from tests.indexing.model import AWKWARD, ENCODER, Model, check_same, random_document, random_filter

OPERATIONS = int(os.environ.get("MODEL_OPERATIONS", "400"))  # make test-crash runs 10,000


class Run:
    """A collection, a model of it, and what may be done to both."""

    def __init__(self, data_dir, seed, index):
        self.rng = random.Random(seed)
        self.data_dir, self.directory = data_dir, collection_path(data_dir, "docs")
        create_collection(self.directory, {"dense": field_of(ENCODER, index=index), BM25: WORDS})
        self.model, self.snapshots = Model(), {}
        self.collection = self.opened()
        self.reader = Collection.open(self.directory, ENCODER)
        self.seen, self.cursor, self.unseen = [], None, []

    def opened(self):
        collection = Collection.open(self.directory, ENCODER, writable=True)
        collection._writer.flush_rows = 40  # so that segments are made and merged all the time
        return collection

    def upsert(self):
        documents = [random_document(self.rng, name) for name in self.rng.sample(AWKWARD, k=self.rng.randint(1, 6))]
        assert self.collection.upsert(documents) == len(documents)
        self.model.upsert(documents)
        self.touched({document.id for document in documents})

    def delete(self):
        names = self.rng.choices(AWKWARD, k=self.rng.randint(1, 3))
        assert self.collection.delete(names) == self.model.delete(names)
        self.touched(set(names))

    def delete_matching(self):
        wanted = {"and": [random_filter(self.rng), random_filter(self.rng)]}
        gone = {document.id for document in self.model.matching(wanted)}
        assert self.collection.delete(filter=wanted) == self.model.delete_matching(wanted), wanted
        self.touched(gone)

    def touched(self, names):
        self.unseen = [document for document in self.unseen if document.id not in names]

    def scroll(self):
        """One more page; documents that nobody touches come exactly once, whatever else happens between pages."""
        if self.cursor is None:
            self.seen, self.unseen = [], list(self.model.documents.values())
        page = self.collection.scroll(self.cursor, limit=3)
        assert not {document.id for document in page.documents} - self.model.documents.keys()
        self.seen += page.documents
        self.cursor = page.cursor
        if page.cursor is None:
            assert all(document in self.seen for document in self.unseen)
            assert (
                max(Counter(document.id for document in self.seen if document in self.unseen).values(), default=1) == 1
            )

    def flush(self):
        self.collection.flush()

    def compact(self):
        self.collection.compact(full=self.rng.random() < 0.3)

    def reopen(self):
        self.collection.close()
        self.collection = self.opened()

    def refresh(self):
        self.reader.refresh()
        check_same(self.reader, self.model, self.rng)

    def snapshot(self):
        if len(self.snapshots) < 20:
            self.snapshots[self.collection.snapshot(f"s{len(self.snapshots)}")] = self.model.copy()

    def restore(self):
        if not self.snapshots or self.rng.random() < 0.7:
            return
        name = self.rng.choice(list(self.snapshots))
        self.collection.close()
        restore(self.data_dir, "docs", name)
        self.model, self.cursor = self.snapshots[name].copy(), None
        self.collection = self.opened()

    def step(self, number):
        kinds = {
            self.upsert: 30, self.delete: 12, self.delete_matching: 4, self.scroll: 20, self.flush: 3, self.compact: 2,
            self.reopen: 5, self.refresh: 4, self.snapshot: 1, self.restore: 1,
        }  # fmt: skip
        self.rng.choices(list(kinds), weights=list(kinds.values()))[0]()
        if number % 5 == 0:
            check_same(self.collection, self.model, self.rng)


@pytest.mark.timeout(0 if OPERATIONS > 1000 else 600)
@pytest.mark.parametrize("index", ["exact", "flat"])
def test_any_operations_leave_what_a_dictionary_would_hold(data_dir, index):
    seed = int(os.environ.get("MODEL_SEED", random.randrange(2**32)))
    run = Run(data_dir, seed, index)
    for number in range(OPERATIONS if index == "exact" else OPERATIONS // 8):
        try:
            run.step(number)
        except BaseException as error:
            error.add_note(f"MODEL_SEED={seed}, index {index}, operation {number}")
            raise
    assert all(check.ok for check in verify(run.directory))
    run.collection.close()
    check_same(Collection.open(run.directory, ENCODER), run.model, run.rng)
