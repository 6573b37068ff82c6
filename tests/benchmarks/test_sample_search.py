"""The labelled queries of the sample collection, and the places of their answers."""

import pytest

from benchmarks.encoding.sample_search import QUERIES, places, summary
from embedserve import Encoder
from indexing import Document
from indexing.sources.python_docs import python_documents


def test_each_query_has_an_answer_in_the_collection():
    ids = {document.id for document in python_documents()}
    assert not [query for query, answers in QUERIES.items() if not ids & set(answers.split())]


def test_places_are_those_of_the_best_answer():
    documents = [Document("a", "rain falls on the hills"), Document("b", "arrays joined along an axis")]
    queries = {"arrays joined along an axis": "a b", "rain falls on the hills": "b", "no answer": "x"}
    found = places(Encoder.load("nano", device="cpu"), documents, queries)
    assert list(found.values()) == [1, 2, 0]
    assert summary(found) == {
        "MRR@10": pytest.approx(0.5),
        "hit@1": pytest.approx(1 / 3),
        "hit@10": pytest.approx(2 / 3),
    }


def test_a_place_beyond_k_counts_nothing():
    assert summary({"q": 11, "r": 10}) == {"MRR@10": pytest.approx(0.05), "hit@1": 0, "hit@10": 0.5}


def test_the_first_query_finds_numpy_stack():
    query = "join arrays along a new axis"
    found = places(Encoder.load("nano", device="cpu"), list(python_documents()), {query: "numpy.stack"})
    assert 1 <= found[query] <= 3
