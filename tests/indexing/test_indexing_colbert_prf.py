"""ColBERT-PRF: parity with the published code from the centroids on, its invariants, and a search that gains by it."""

from pathlib import Path

import numpy as np
import pytest

from embedserve.errors import InputError
from embedserve.scoring import maxsim
from embedserve.types import TokenEmbeddings
from indexing.late_interaction.colbert_prf import (
    cluster,
    document_frequencies,
    expand,
    nearest_tokens,
    search_with_feedback,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "colbert_prf" / "prf.npz"


def collection(vectors, ids):
    counts = np.array([len(rows) for rows in vectors])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    joined = np.concatenate(ids).astype(np.int64)
    return TokenEmbeddings(np.concatenate(vectors), offsets, joined, counts, np.zeros(len(counts), dtype=bool))


@pytest.fixture
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def documents(golden):
    return collection(list(golden["docs"]), list(golden["doc_tokens"]))


def test_the_expanded_query_is_the_published_one(golden, documents):
    frequencies = document_frequencies(documents, 40)
    np.testing.assert_array_equal(frequencies, golden["df"])
    found = expand(golden["query"], golden["centroids"], nearest_tokens(documents), frequencies, 30, rows=5, beta=0.5)
    np.testing.assert_allclose(found.rows, golden["new_query"], atol=1e-6)
    np.testing.assert_allclose(found.weights, golden["weights"], atol=1e-6)
    assert found.tokens.tolist() == golden["exp_tokens"].tolist()
    np.testing.assert_allclose(maxsim(golden["query"], documents), golden["first_scores"], rtol=1e-4)
    np.testing.assert_allclose(maxsim(found.rows, documents, found.weights), golden["final_scores"], rtol=1e-4)
    best = np.argsort(-golden["first_scores"], kind="stable")[:3]
    assert best.tolist() == golden["feedback_docids"].tolist()
    np.testing.assert_array_equal(np.concatenate([documents[place] for place in best]), golden["prf_embs"])


def test_clusters_are_the_same_every_time_and_no_more_than_rows(golden):
    one, other = (cluster(golden["prf_embs"], 12) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (12, 8)
    assert len(cluster(golden["prf_embs"][:5], 12)) == 5


def test_lookup_in_blocks_is_lookup_at_once(golden, documents):
    at_once, in_blocks = nearest_tokens(documents)(golden["centroids"]), nearest_tokens(documents, rows=7)
    np.testing.assert_array_equal(at_once, in_blocks(golden["centroids"]))


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
def test_weights_follow_beta_and_none_changes_nothing(golden, documents, beta):
    frequencies, lookup = golden["df"], nearest_tokens(documents)
    found = expand(golden["query"], golden["centroids"], lookup, frequencies, 30, rows=5, beta=beta)
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights[6:], beta * np.log(31 / (frequencies[found.tokens] + 1)), rtol=1e-5)
    plain = maxsim(golden["query"], documents)
    if beta == 0:
        np.testing.assert_allclose(maxsim(found.rows, documents, found.weights), plain, rtol=1e-5)
    nothing = expand(golden["query"], golden["centroids"], lookup, frequencies, 30, rows=0)
    np.testing.assert_array_equal(nothing.rows, golden["query"])


def test_entries_that_are_no_words_are_skipped(golden, documents):
    arguments = golden["query"], golden["centroids"], nearest_tokens(documents), golden["df"], 30
    first = expand(*arguments, rows=5).tokens
    again = expand(*arguments, rows=5, skips=first.tolist())
    assert not set(first.tolist()) & set(again.tokens.tolist())
    assert len(expand(*arguments, rows=5, skips=range(40)).tokens) == 0


def test_what_makes_no_sense_is_refused(golden, documents):
    arguments = golden["query"], golden["centroids"], nearest_tokens(documents), golden["df"], 30
    with pytest.raises(InputError, match="clusters"):
        expand(*arguments, rows=13)
    with pytest.raises(InputError, match="beta"):
        expand(*arguments, beta=-1)


def test_a_document_that_shares_no_word_with_the_query_is_found_through_one_that_does():
    words = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)
    noise = [[8 + place % 8, 8 + (place + 3) % 8] for place in range(20)]
    texts = [[0, 1, 2], [0, 1, 3], [2, 3, 4], *noise]  # 2 and 3 occur with the query's words 0 and 1
    documents = collection([words[text] for text in texts], [np.array(text) for text in texts])
    query = words[[0, 1]]
    assert np.argsort(-maxsim(query, documents), kind="stable")[:2].tolist() == [0, 1]
    lookup = nearest_tokens(documents, count=3)
    order, scores = search_with_feedback(
        query, documents, lookup, document_frequencies(documents, 16), feedback=2, clusters=4, rows=4
    )
    assert order[:3].tolist() in ([0, 1, 2], [1, 0, 2])
    assert (np.diff(scores) <= 0).all()
    assert scores[2] > scores[3] + 1
