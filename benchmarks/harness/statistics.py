"""How sure a score is, and whether a system is better than a baseline: from the items that records keep.

Three kinds of items are resampled. The queries of a search task and the pairs of STS and pair classification are a
sample of those that could have been asked, so their intervals say how far the score could be on others of their like.
The experiments of classification and clustering are no such sample: ten times another training set (or another part of
the texts) was drawn, and the same test texts were judged. Intervals and p values over them say how much hangs on that
draw and nothing about other test texts: they are too narrow, and marked in reports.

Draws are seeded by nothing but ``SEED`` and the number of items, so two systems on one task get the same draws, and the
difference of their resampled scores is a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from benchmarks.harness.score_records import ScoreRecord

DRAWS = 2_000
SEED = 20_240_902
LEVEL = 0.95
CELLS = 250_000  # draws x items of a block, so that it fits a cache
# Largest accepted gap, in points, between the score recomputed from the items and the one mteb reports; beyond it the
# items do not explain the score, and no interval is given.
MAX_GAP = 1.0

Resampled = Callable[[np.ndarray], np.ndarray]  # counts of each item (B, N) -> scores (B,)


@dataclass(frozen=True)
class Interval:
    """A confidence interval of level `LEVEL`, in the unit of the value."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """A bootstrap of one score, in per cent.

    Attributes:
        record: The record.
        score: Score of all items.
        drawn: (draws,) score of each bootstrap sample.
        count: Number of items.
    """

    record: ScoreRecord
    score: float
    drawn: np.ndarray
    count: int


@dataclass(frozen=True)
class Difference:
    """How far a system is above a baseline on one task, in points (per cent).

    Attributes:
        value: Of the scores that the items give.
        interval: Percentile bootstrap over the same queries, pairs or experiments.
        p: Two-sided, not corrected for the number of comparisons.
        kind: query, pair or experiment.
        count: Items.
    """

    value: float
    interval: Interval
    p: float
    kind: str
    count: int


@dataclass(frozen=True)
class Overall:
    """How a system does against a baseline over the tasks that both have.

    Attributes:
        tasks: Shared.
        value: Mean difference in points.
        better, worse: Tasks on which the system has a higher or a lower score.
        p: Of Wilcoxon's signed-rank test, two-sided; 1 where no task differs.
        holm: The same after Holm's correction over all systems that were compared.
    """

    tasks: int
    value: float
    better: int
    worse: int
    p: float
    holm: float


def spearman_of(predicted: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation (B,) of ``predicted`` (N,) and ``gold`` (N,), pair i drawn counts[b, i] times.

    Ties share the mean of their ranks; NaN where a draw has one value only.
    """
    one, two = _centred_ranks(predicted, counts), _centred_ranks(gold, counts)
    both, first, second = ((counts * left * right).sum(axis=1) for left, right in ((one, two), (one, one), (two, two)))
    with np.errstate(invalid="ignore"):
        found: np.ndarray = both / np.sqrt(first * second)
    return found


def average_precision_of(predicted: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the average precision (B,) of ``predicted`` (N,) for the label 1 in ``gold`` (N,), counted as above.

    As scikit-learn has it: the precision at each distinct prediction, weighed by the recall that it adds; NaN where a
    draw has no pair with the label 1.
    """
    order = np.argsort(-predicted, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(predicted[order])), len(order) - 1)
    drawn = counts[:, order]
    hits = np.cumsum(drawn * (gold[order] == 1), axis=1)[:, ends]
    seen = np.cumsum(drawn, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, hits / np.maximum(seen, 1), 0.0)
        found: np.ndarray = (precision * gained).sum(axis=1) / hits[:, -1]
    return found


def mean_of(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean (B,) of ``values`` (N,), value i drawn counts[b, i] times."""
    mean: np.ndarray = (counts @ values) / counts.sum(axis=1)
    return mean


def sample(record: ScoreRecord, draws: int = DRAWS) -> Sample | None:
    """Return a bootstrap over the items of a record; None if they do not explain its score (`MAX_GAP`).

    Splits and subsets of a task are resampled separately and have equal weight, as in mteb. The score of pair
    classification is the average precision of cosine; mteb's ``max_ap`` is the best of five similarities, equal up to
    rounding for unit vectors unless the city-block distance is better.
    """
    scorers = _scorers(record)
    if scorers is None:
        return None
    score = 100 * float(np.mean([score(np.ones((1, size)))[0] for score, size in scorers]))
    if not abs(score - 100 * record.score) <= MAX_GAP:  # NaN too
        return None
    parts = [
        np.concatenate([score(counts) for counts in _counts(size, draws, place)])
        for place, (score, size) in enumerate(scorers)
    ]
    return Sample(record, score, 100 * np.mean(parts, axis=0), sum(size for _, size in scorers))


def interval_of(resampled: np.ndarray) -> Interval:
    """Return the percentile interval of resampled scores (draws,)."""
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Interval(float(low), float(high))


def mean_interval(scores: np.ndarray) -> Interval:
    """Return the interval of the mean of ``scores`` (tasks,), by a bootstrap over the tasks.

    It estimates the spread over other tasks of the same mixture. It is rough below about ten tasks, and assumes
    independent tasks, which tasks on similar texts are not.
    """
    return interval_of(np.concatenate([mean_of(scores, counts) for counts in _counts(len(scores), DRAWS, 0)]))


def compare(one: Sample, two: Sample) -> Difference | None:
    """Return the difference of two systems on the same task; None if their items differ.

    For means, p is that of a paired randomisation test, which exchanges the two scores of a query or experiment.
    Predictions of pairs have a scale of their own in each system and cannot be exchanged: there p is that of the paired
    bootstrap, twice the smaller share of draws on one side of zero.
    """
    if not _paired(one.record, two.record):
        return None
    spread, items = one.drawn - two.drawn, one.record.items
    if items["kind"] == "pair":
        sides = [int((spread <= 0).sum()), int((spread >= 0).sum())]
        p = min(1.0, 2 * (1 + min(sides)) / (1 + len(spread)))
    else:
        both = zip(items["groups"], two.record.items["groups"], strict=True)
        p = randomisation_p([np.subtract(a["values"], b["values"]) for a, b in both], len(spread))
    return Difference(one.score - two.score, interval_of(spread), p, items["kind"], one.count)


def randomisation_p(gaps: Sequence[np.ndarray], draws: int = DRAWS) -> float:
    """Return the two-sided p of a mean difference by a randomisation test (random signs).

    Args:
        gaps: Differences of each group; groups have equal weight.
        draws: Random sets of signs; the observed set is added to them.
    """
    seen = abs(np.mean([gap.mean() for gap in gaps]))
    means = []
    for place, gap in enumerate(gaps):
        step = max(1, CELLS // len(gap))
        signs = _signs(len(gap), draws, place)
        means.append(np.concatenate([signs[first : first + step] @ gap for first in range(0, draws, step)]) / len(gap))
    drawn = np.abs(np.mean(means, axis=0))
    return float((1 + (drawn >= seen - 1e-12).sum()) / (1 + draws))


def compare_all(scores: np.ndarray, baseline: int) -> dict[int, Overall]:
    """Compare each system with the baseline over their shared tasks; systems without a shared task are omitted.

    Wilcoxon's signed-rank test has one observation per task, as "Pooling and Attention" (Tang and Yang, arXiv
    2409.02727) recommends. It assumes symmetric, independent differences, and cannot reach 0.05 below six tasks.

    Args:
        scores: (systems, tasks) in per cent; NaN if missing.
        baseline: Row of the baseline.
    """
    gaps = {row: values[~np.isnan(values)] for row, values in enumerate(scores - scores[baseline]) if row != baseline}
    gaps = {row: values for row, values in gaps.items() if len(values)}
    p_values = {row: float(wilcoxon(values).pvalue) if values.any() else 1.0 for row, values in gaps.items()}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {
        row: Overall(
            len(values), float(values.mean()), int((values > 0).sum()), int((values < 0).sum()), p_values[row],
            corrected[row],
        )
        for row, values in gaps.items()
    }  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down correction (Holm 1979), which bounds the family-wise error rate."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected


def _scorers(record: ScoreRecord) -> list[tuple[Resampled, int]] | None:
    """Return the scoring function and the number of items of each split and subset."""
    groups: list[dict[str, Any]] = record.items.get("groups", [])
    found: list[tuple[Resampled, int]] = []
    for group in groups:
        if record.items.get("kind") != "pair":
            found.append((partial(mean_of, np.asarray(group["values"], dtype=np.float64)), len(group["values"])))
            continue
        score = next((make for end, make in PAIR_SCORES.items() if record.metric.endswith(end)), None)
        if score is None:
            return None
        predicted, gold = (np.asarray(group[name], dtype=np.float64) for name in ("predicted", "gold"))
        found.append((partial(score, predicted, gold), len(gold)))
    return found if found and all(size for _, size in found) else None


PAIR_SCORES = {"spearman": spearman_of, "_ap": average_precision_of}  # by the end of mteb's name


def _paired(one: ScoreRecord, two: ScoreRecord) -> bool:
    """Return whether the items of two records are the same queries, pairs or experiments."""
    first, second = one.items, two.items
    if (one.task, first["kind"], len(first["groups"])) != (two.task, second["kind"], len(second["groups"])):
        return False
    name = "gold" if first["kind"] == "pair" else "values"
    both = zip(first["groups"], second["groups"], strict=True)
    return all(len(a[name]) == len(b[name]) and (name == "values" or a[name] == b[name]) for a, b in both)


def _counts(size: int, draws: int, group: int) -> Iterator[np.ndarray]:
    """Yield blocks (B, size) float64: the count of each item in each of ``draws`` samples with replacement."""
    rng = np.random.default_rng([SEED, group])
    step = max(1, CELLS // size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


@lru_cache(maxsize=2)
def _signs(size: int, draws: int, group: int) -> np.ndarray:
    """Return random signs (draws, size) int8; cached for the next system on the same task."""
    bits = np.random.default_rng([SEED + 1, group]).integers(0, 2, (draws, size), dtype=np.int8)
    return 2 * bits - 1


def _centred_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the centred ranks (B, N) of ``values`` (N,) in each draw; ties share their mean rank."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # of each distinct value
    ranks = np.cumsum(drawn, axis=1) - drawn / 2
    found: np.ndarray = (ranks - ranks[:, -1:] / 2 - drawn[:, -1:] / 4)[:, place]
    return found
