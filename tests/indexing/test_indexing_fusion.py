"""Fusion of rankings, reranking, and exact search by sparse vectors."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.errors import InputError
from embedserve.scoring import maxsim
from embedserve.types import SparseEmbeddings, TokenEmbeddings
from indexing import ExactIndex
from indexing.base import make_hits
from indexing.query.fusion import (
    METHODS,
    as_impacts,
    distribution_based,
    fuse,
    min_max_fusion,
    reciprocal_rank,
    rerank,
    sparse_scores,
    weighted_sum,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "promptreps" / "index.json"


def test_fusion_is_the_published_one():
    run = next(run for run in json.loads(GOLDEN.read_text()) if run["name"] == "fusion")
    dense, sparse = (ranking["q"]["docs"] for ranking in run["runs"])
    assert min_max_fusion(dense, sparse, run["weights"][0]) == pytest.approx(run["fused"]["q"])


def test_best_is_1_worst_is_0_and_the_order_is_by_score():
    fused = min_max_fusion({"a": 3.0, "b": 2.0, "c": -1.0}, {"b": 5.0, "d": 4.0}, alpha=1)
    assert list(fused) == ["a", "b", "c", "d"]
    assert (fused["a"], fused["c"]) == (1, 0)
    assert min_max_fusion({}, {"only": 7.0}) == {"only": 0.0}
    mixed = min_max_fusion({"a": 3.0, "b": 2.0, "c": -1.0}, {"b": 5.0, "d": 4.0}, alpha=0.3)
    assert all(0 <= score <= 1 for score in mixed.values())
    assert list(mixed.values()) == sorted(mixed.values(), reverse=True)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(InputError) as caught:
        min_max_fusion({}, {}, alpha)
    assert caught.value.field == "alpha"


def test_sparse_scores_are_dot_products():
    rng = np.random.default_rng(0)

    def random(count):
        counts = rng.integers(0, 6, count)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        indices = np.concatenate([np.sort(rng.choice(20, size, replace=False)) for size in counts]).astype(np.int64)
        values = rng.random(offsets[-1]).astype(np.float32)
        return SparseEmbeddings(indices, values, offsets, counts, counts > 99)

    queries, documents = random(4), random(9)
    expected = [
        [sum(w * documents[d].get(entry, 0) for entry, w in queries[q].items()) for d in range(9)] for q in range(4)
    ]
    np.testing.assert_allclose(sparse_scores(queries, documents), expected, rtol=1e-5)


def test_impacts_round_half_to_even():
    assert as_impacts(np.array([0.005, 0.015, 1.234])).tolist() == [0, 2, 123]


SCORES = st.integers(-50, 50).map(lambda n: n / 4)
RANKINGS = st.lists(st.dictionaries(st.integers(0, 15), SCORES, max_size=10), min_size=1, max_size=4)
FUSIONS = st.sampled_from(list(METHODS.values()))


def test_reciprocal_ranks_by_hand():
    fused = reciprocal_rank([{"a": 9.0, "b": 5.0}, {"b": 0.1, "c": 0.0}])
    assert fused == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})
    assert list(fused) == ["b", "a", "c"]
    assert reciprocal_rank([{"a": 1.0}, {"a": 1.0}], [2, 0.5], k=0) == {"a": 2.5}


def test_distributions_by_hand():
    scores = {"a": 4.0, "b": 7.0, "c": 1.0, "d": 100.0}
    mean, deviation = statistics.mean(scores.values()), statistics.stdev(scores.values())
    fused = distribution_based([scores, {"a": 5.0}])
    for key, score in scores.items():
        limits = mean - 3 * deviation, mean + 3 * deviation
        expected = (score - limits[0]) / (limits[1] - limits[0]) + (0.5 if key == "a" else 0)
        assert fused[key] == pytest.approx(expected)
    assert distribution_based([{"x": 0.1, "y": 0.1, "z": 0.1}]) == {"x": 0.5, "y": 0.5, "z": 0.5}


@given(FUSIONS, RANKINGS, st.randoms(use_true_random=False))
def test_fusion_does_not_depend_on_any_order(fusion, rankings, random):
    shuffled = [dict(random.sample(list(ranking.items()), len(ranking))) for ranking in rankings]
    random.shuffle(shuffled)
    assert list(fusion(rankings).items()) == list(fusion(shuffled).items())


@given(FUSIONS, RANKINGS)
def test_everything_found_is_ranked_once_and_ties_go_to_the_lower_key(fusion, rankings):
    fused = fusion(rankings)
    assert set(fused) == {key for ranking in rankings for key in ranking}
    assert list(fused.items()) == sorted(fused.items(), key=lambda item: (-item[1], item[0]))


@given(FUSIONS, st.dictionaries(st.integers(0, 30), SCORES, max_size=15))
def test_one_ranking_stays_in_its_order(fusion, ranking):
    assert list(fusion([ranking])) == sorted(ranking, key=lambda key: (-ranking[key], key))


@given(FUSIONS, RANKINGS, st.data())
def test_who_is_better_everywhere_is_better_in_the_end(fusion, rankings, data):
    fused = fusion(rankings)
    one, other = (data.draw(st.integers(0, 15)) for _ in range(2))
    if all(one in ranking and other in ranking and ranking[one] > ranking[other] for ranking in rankings):
        assert fused[one] > fused[other]


@given(RANKINGS, st.integers(0, 100))
def test_reciprocal_ranks_know_no_scores_but_their_order(rankings, k):
    stretched = [{key: score**3 * 7 + 2 for key, score in ranking.items()} for ranking in rankings]
    assert reciprocal_rank(stretched, k=k) == reciprocal_rank(rankings, k=k)


@given(RANKINGS, st.sampled_from([0.25, 2.0, 64.0]), st.integers(-20, 20))
def test_scales_and_offsets_of_a_retriever_do_not_matter(rankings, scale, offset):
    moved = [{key: score * scale + offset for key, score in ranking.items()} for ranking in rankings]
    for fusion in (weighted_sum, distribution_based):
        assert fusion(moved) == pytest.approx(fusion(rankings), abs=1e-9)


@pytest.mark.parametrize("fusion", METHODS.values())
@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_do_not_fit_are_refused(fusion, weights):
    with pytest.raises(InputError, match="weights must be 2 finite numbers, none negative") as caught:
        fusion([{"a": 1.0}, {"b": 1.0}], weights)
    assert caught.value.field == "weights"


@pytest.mark.parametrize("fusion", METHODS.values())
def test_a_weight_of_0_leaves_a_ranking_out(fusion):
    fused = fusion([{"a": 3.0, "b": 2.0, "c": 1.0}, {"c": 9.0, "b": 8.0, "d": 1.0}], [1, 0])
    assert list(fused)[:2] == ["a", "b"]
    assert fused["d"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_hits_are_fused_query_by_query(method):
    one = make_hits(np.array([[4, 2, 9], [1, -1, -1]]), np.array([[3, 2, 1], [5, 0, 0]], np.float32))
    two = make_hits(np.array([[2, 7], [-1, -1]]), np.array([[0.5, 0.25], [0, 0]], np.float32))
    hits = fuse([one, two], 3, method)
    assert hits.counts.tolist() == [3, 1]
    for query, rankings in enumerate([[{4: 3.0, 2: 2.0, 9: 1.0}, {2: 0.5, 7: 0.25}], [{1: 5.0}, {}]]):
        expected = list(METHODS[method](rankings).items())[:3]
        assert hits.of(query)[0].tolist() == [row for row, _ in expected]
        assert hits.of(query)[1] == pytest.approx([score for _, score in expected])


def test_unusable_fusions_are_named():
    hits = make_hits(np.array([[1]]), np.array([[1.0]], np.float32))
    none = make_hits(np.empty((0, 1), np.int64), np.empty((0, 1), np.float32))
    for call, field in (
        (lambda: fuse([hits], 1, "mean"), "method"),
        (lambda: fuse([], 1), "rankings"),
        (lambda: fuse([hits, none], 1), "rankings"),
        (lambda: fuse([hits], 0), "top_k"),
        (lambda: reciprocal_rank([{}], k=-1), "k"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.field == field
    assert fuse([none], 5).rows.shape == (0, 0)


@pytest.fixture
def tokens():
    """Queries and documents of 1 to 5 token vectors."""
    rng = np.random.default_rng(4)

    def ragged(count):
        lengths = rng.integers(1, 6, count)
        vectors = rng.normal(size=(lengths.sum(), 8)).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return TokenEmbeddings(vectors, offsets, np.zeros(len(vectors), np.int64), lengths, lengths < 0)

    return ragged(3), ragged(30)


def test_candidates_are_reranked_by_maxsim(tokens):
    queries, documents = tokens
    means = [np.stack([part[n].mean(axis=0) for n in range(len(part))]) for part in tokens]
    candidates = ExactIndex(means[1]).search(means[0], 12)

    def score(query, rows):
        chosen = [documents[row] for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in chosen])])
        vectors = np.concatenate(chosen)
        ids = np.zeros(len(vectors), np.int64)
        return maxsim(queries[query], TokenEmbeddings(vectors, offsets, ids, np.ones(len(rows)), rows < 0))

    hits = rerank(candidates, score, 5)
    assert hits.rows.shape == (3, 5)
    for query in range(3):
        every = {
            int(row): float((queries[query] @ documents[row].T).max(axis=1).sum()) for row in candidates.rows[query]
        }
        best = sorted(every, key=lambda row: -every[row])[:5]
        assert hits.of(query)[0].tolist() == best
        np.testing.assert_allclose(hits.of(query)[1], [every[row] for row in best], rtol=1e-5)


def test_reranking_leaves_missing_hits_out_and_names_wrong_scores():
    candidates = make_hits(np.array([[3, 1, -1], [-1, -1, -1]]), np.array([[2, 1, 0], [0, 0, 0]], np.float32))
    hits = rerank(candidates, lambda _, rows: np.ones(len(rows)), 9)
    assert hits.counts.tolist() == [2, 0]
    assert hits.of(0)[0].tolist() == [1, 3]
    for wrong, words in ((np.ones(3), r"scores of shape \(3,\)"), (np.array([1, np.nan]), "NaN")):
        with pytest.raises(InputError, match=words) as caught:
            rerank(candidates, lambda *_, wrong=wrong: wrong, 9)
        assert caught.value.field == "score"
