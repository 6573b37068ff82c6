"""Intervals and p values are what slow and obvious code gives."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import spearmanr, wilcoxon
from sklearn.metrics import average_precision_score

from benchmarks.harness.statistics import (
    average_precision_of,
    compare,
    compare_all,
    holm,
    interval_of,
    mean_interval,
    mean_of,
    randomisation_p,
    sample,
    spearman_of,
)
from tests.benchmarks.made_up import record

RNG = np.random.default_rng(0)
COUNTS = RNG.multinomial(50, [1 / 50] * 50, size=20).astype(float)


def repeated(values, counts):
    return np.repeat(values, counts.astype(int))


@pytest.mark.parametrize("decimals", [1, 9], ids=["ties", "no ties"])
def test_scores_of_draws_are_those_of_the_pairs_written_out(decimals):
    predicted, gold = RNG.normal(size=50).round(decimals), RNG.uniform(0, 5, 50).round(decimals)
    labels = (gold > 2.5).astype(float)
    spearman, precision = spearman_of(predicted, gold, COUNTS), average_precision_of(predicted, labels, COUNTS)
    means = mean_of(gold, COUNTS)
    for place, counts in enumerate(COUNTS):
        drawn, right, label = (repeated(values, counts) for values in (predicted, gold, labels))
        assert spearman[place] == pytest.approx(spearmanr(drawn, right).statistic)
        assert precision[place] == pytest.approx(average_precision_score(label, drawn))
        assert means[place] == pytest.approx(right.mean())


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    made = record()
    values = 100 * np.array(made.items["groups"][0]["values"])
    found, error = interval_of(sample(made).drawn), values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


@pytest.mark.parametrize("task", ["SciFact", "STSBenchmark", "LocalMSRPPairClassification", "Banking77Classification"])
def test_a_sample_is_around_the_score_and_the_same_each_time(task):
    made = record(task=task)
    first, again = sample(made), sample(made)
    assert first.score == pytest.approx(100 * made.score)
    assert np.array_equal(first.drawn, again.drawn)
    found = interval_of(first.drawn)
    assert found.low < first.score < found.high


def test_splits_count_alike_whatever_their_size():
    groups = [{"values": [0.0] * 30}, {"values": [1.0] * 2}]
    made = replace(record(), items={"kind": "query", "groups": groups}, score=0.5)
    assert sample(made).score == 50
    assert set(sample(made).drawn) == {50.0}


def test_no_sample_where_the_items_are_not_what_the_score_is_made_of():
    made = record()
    assert sample(replace(made, score=made.score + 0.02)) is None
    assert sample(replace(made, score=float("nan"))) is None
    assert sample(replace(made, items={})) is None
    assert sample(replace(made, items={"kind": "experiment", "groups": [{"values": []}]})) is None
    assert sample(replace(record(task="STSBenchmark"), metric="cosine_pearson")) is None


def test_a_comparison_is_paired():
    one = record()
    shifted = [min(1.0, value + 0.05) for value in one.items["groups"][0]["values"]]
    better = replace(one, items={"kind": "query", "groups": [{"values": shifted}]}, score=float(np.mean(shifted)))
    found = compare(sample(better), sample(one))
    assert found.value == pytest.approx(100 * (better.score - one.score))
    assert found.interval.high - found.interval.low < 3  # that of each alone is 12 wide
    assert found.p < 0.001
    same = compare(sample(one), sample(one))
    assert (same.value, same.interval.low, same.interval.high, same.p) == (0, 0, 0, 1)


def test_pairs_are_compared_by_the_same_draws():
    good, bad = record(task="STSBenchmark", level=2.0), record(task="STSBenchmark", level=0.1, seed=1)
    found, back = compare(sample(good), sample(bad)), compare(sample(bad), sample(good))
    assert found.interval.low > 0
    assert found.p < 0.01
    assert (found.value, found.interval.low) == pytest.approx((-back.value, -back.interval.high))
    assert compare(sample(good), sample(good)).p == 1


def test_items_that_are_not_the_same_are_not_compared():
    one, two = record(), record(seed=1)
    fewer = two.items["groups"][0]["values"][:-1]
    shorter = replace(two, items={"kind": "query", "groups": [{"values": fewer}]}, score=float(np.mean(fewer)))
    assert compare(sample(one), sample(shorter)) is None
    assert compare(sample(one), sample(record(task="LocalTrecQAReranking"))) is None


def test_the_randomisation_test_is_that_of_all_signs():
    gap = RNG.normal(0.3, 1, 10)
    every = [abs(np.mean(gap * signs)) for signs in product((1, -1), repeat=10)]
    exact = np.mean([value >= abs(gap.mean()) - 1e-12 for value in every])
    assert randomisation_p([gap], 20_000) == pytest.approx(exact, abs=0.01)
    assert randomisation_p([np.ones(10)]) < 0.01
    assert randomisation_p([np.zeros(5)]) == 1


def test_holm_corrects_as_its_definition_says():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    p = RNG.uniform(size=9)
    order = np.argsort(p)
    for rank, place in enumerate(order):
        expected = max(min(1, (9 - before) * p[order[before]]) for before in range(rank + 1))
        assert holm(list(p))[place] == pytest.approx(expected)
    assert holm([]) == []


def test_over_tasks_only_shared_ones_count():
    scores = RNG.uniform(20, 80, (4, 9))
    scores[1, 0] = scores[2, 1] = np.nan
    scores[3] = scores[0]
    found = compare_all(scores, 0)
    gaps = scores[1, 1:] - scores[0, 1:]
    assert found[1].tasks == 8
    assert found[1].value == pytest.approx(gaps.mean())
    assert found[1].p == pytest.approx(wilcoxon(gaps).pvalue)
    assert (found[1].better, found[1].worse) == ((gaps > 0).sum(), (gaps < 0).sum())
    assert (found[3].p, found[3].value) == (1, 0)
    assert [found[row].holm for row in (1, 2, 3)] == pytest.approx(holm([found[row].p for row in (1, 2, 3)]))
    scores[1, 1:] = np.nan
    scores[0, 0] = np.nan
    assert 1 not in compare_all(scores, 0)


def test_the_interval_of_a_mean_over_tasks_resamples_tasks():
    found = mean_interval(np.array([40.0, 60.0]))
    assert (found.low, found.high) == (40, 60)
    assert mean_interval(np.full(5, 50.0)).low == 50
