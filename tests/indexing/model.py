"""A collection as a plain dictionary: slow, obvious, and the judge of the real one."""

import math
from collections import Counter

import numpy as np

from indexing.engines.bm25_postings import words_of
from tests.indexing.bag import BagEncoder

ENCODER = BagEncoder()
AWKWARD = [
    "plain", "with space", " ", "ünï-cødé", "日本語", "🎉", "a'b\"c;--", "'; DROP TABLE documents; --", "%", "_",
    "\n\t", "\0", "x" * 10_000, "../../etc/passwd", "null", "0", "00", "A", "a", "é", "e\u0301", "\u202eright",
    "{}", "[]",
]  # fmt: skip
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sun", "moon", "star", "Äpfel", "42"]


class Model:
    """Documents by id, in the order of writing."""

    def __init__(self, documents=()):
        self.documents = {}
        self.upsert(documents)

    def copy(self):
        return Model(self.documents.values())

    def upsert(self, documents):
        for document in documents:
            self.documents.pop(document.id, None)
            self.documents[document.id] = document

    def delete(self, ids):
        return sum(self.documents.pop(name, None) is not None for name in set(ids))

    def delete_matching(self, wanted):
        return self.delete([document.id for document in self.matching(wanted)])

    def matching(self, wanted):
        return [document for document in self.documents.values() if wanted is None or passes(wanted, document)]

    def facet(self, path, wanted=None):
        counts = Counter()
        for document in self.matching(wanted):
            counts.update({(kind, value) for kind, value, _ in values_at(document.metadata, path) if kind != "object"})
        return counts

    def dense(self, query, wanted=None):
        """The score of each document that passes."""
        vector = ENCODER.vector(query)
        return {d.id: float(ENCODER.vector(d.content) @ vector) for d in self.matching(wanted)}

    def bm25(self, query, wanted=None):
        texts = {name: words_of(document.content) for name, document in self.documents.items()}
        average = sum(map(len, texts.values())) / max(len(texts), 1)
        scores = Counter()
        for word in set(words_of(query)):
            having = sum(word in words for words in texts.values())
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            for document in self.matching(wanted):
                words = texts[document.id]
                if f := words.count(word):
                    scores[document.id] += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(words) / average))
        return scores


def values_at(metadata, path):
    """Return kind, value and whether it is in a list for each value at a path; null is skipped."""

    def walk(name, value, listed):
        if isinstance(value, list):
            for element in value:
                yield from walk(name, element, True)
        elif isinstance(value, dict):
            if name == path:
                yield "object", "", listed
            for key, inner in value.items():
                yield from walk(f"{name}.{key}", inner, listed)
        elif value is not None and name == path:
            kind = "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
            yield kind, value, listed

    return [found for key, value in metadata.items() for found in walk(key, value, False)]


def kind_of(value):
    return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def passes(wanted, document):
    if "and" in wanted:
        return all(passes(part, document) for part in wanted["and"])
    if "or" in wanted:
        return any(passes(part, document) for part in wanted["or"])
    if "not" in wanted:
        return not passes(wanted["not"], document)
    (operator,) = set(wanted) - {"field"}
    value = wanted[operator]
    is_id = wanted["field"] == "id"
    found = [("text", document.id, False)] if is_id else values_at(document.metadata, wanted["field"])
    if operator == "exists":
        return bool(found) == value
    scalars = [(kind, one, listed) for kind, one, listed in found if kind != "object"]
    if operator == "in":
        return any(kind == kind_of(v) and one == v for kind, one, _ in scalars for v in value)
    same = [(one, listed) for kind, one, listed in scalars if kind == kind_of(value)]
    if operator == "gte":
        return any(one >= value for one, _ in same)
    if operator == "lte":
        return any(one <= value for one, _ in same)
    return any(one == value and (listed or operator == "eq") for one, listed in same)


def random_document(rng, name):
    from indexing import Document

    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
    return Document(name, text, rng.choice(["", "", "title", "Ünicode"]), random_metadata(rng))


def random_metadata(rng):
    choices = {
        "n": lambda: rng.choice([0, 1, 2, 3, 2.5, -1, 10**15, 2**63 - 1]),
        "tag": lambda: rng.choice(["red", "green", "Red", "", "ünï", "x" * 50, "'; --", "a\0b"]),
        "flag": lambda: rng.choice([True, False]),
        "tags": lambda: rng.sample(["a", "b", 1, True, None, 2.5], k=rng.randint(0, 3)),
        "deep": lambda: {"er": rng.choice([1, "one", None, [1, 2]]), "x": {}},
        "mixed": lambda: rng.choice([1, "1", True, None, [], {}, [{"y": 1}, {"y": 2}]]),
        "long": lambda: "y" * 10_000,
    }
    return {name: choices[name]() for name in rng.sample(list(choices), k=rng.choice([0, 1, 2, 3]))}


def random_filter(rng, depth=0):
    if depth < 3 and rng.random() < 0.4:
        kind = rng.choice(["and", "or", "not"])
        if kind == "not":
            return {"not": random_filter(rng, depth + 1)}
        return {kind: [random_filter(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    name = rng.choice(["n", "tag", "flag", "tags", "deep.er", "deep", "deep.x", "mixed", "mixed.y", "nothing", "id"])
    value = rng.choice([0, 1, 2, 2.5, "red", "green", "", "a", "1", True, False, "one", "a\0b", "'; --"])
    if name == "id":
        names = rng.sample(AWKWARD, k=3)
        return {"field": "id", **rng.choice([{"eq": names[0]}, {"in": names}, {"gte": names[0]}, {"lte": names[0]}])}
    operator = rng.choice(["eq", "in", "gte", "lte", "exists", "contains"])
    if operator == "exists":
        return {"field": name, "exists": rng.choice([True, False])}
    if operator == "in":
        return {"field": name, "in": rng.choices([0, 1, "red", "a", True, 2.5], k=3)}
    if operator in ("gte", "lte") and isinstance(value, bool):
        value = 2
    return {"field": name, operator: value}


def check_same(collection, model, rng):
    """Compare everything that can be read."""
    assert len(collection) == len(model.documents)
    assert list(collection.documents()) == list(model.documents.values())
    names = rng.sample(AWKWARD, k=4)
    assert collection.get(names) == [model.documents.get(name) for name in names]
    wanted = rng.choice([None, random_filter(rng)])
    expected = model.matching(wanted)
    assert collection.count(wanted) == len(expected), wanted
    assert collection.scroll(limit=1000, filter=wanted).documents == expected, wanted
    path = rng.choice(["n", "tag", "flag", "tags", "deep.er", "mixed"])
    found = {(kind_of(value), value): count for value, count in collection.facet(path, filter=wanted, limit=1000)}
    assert found == model.facet(path, wanted), (path, wanted)
    query = " ".join(rng.choices(WORDS, k=3))
    for mode, oracle in (("dense", model.dense), ("bm25", model.bm25)):
        scores = oracle(query, wanted)
        hits = collection.search([query], 5, mode=mode, filter=wanted)[0]
        best = sorted(scores.values(), reverse=True)[:5]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-5, err_msg=f"{mode} {wanted}")
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.id] for hit in hits], atol=1e-5)
        assert [model.documents[hit.id].text for hit in hits] == [hit.text for hit in hits]
