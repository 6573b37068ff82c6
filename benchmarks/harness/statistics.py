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

from benchmarks.harness.score_records import Record

DRAWS = 2_000
SEED = 20_240_902
LEVEL = 0.95
CELLS = 250_000  # of one block of draws x items: what stays in a cache
APART = 1.0  # points between the score of the items and the task's own: beyond, they are not what it is made of

Resampled = Callable[[np.ndarray], np.ndarray]  # how often each item was drawn (B, N) -> scores (B,)


@dataclass(frozen=True)
class Interval:
    """The range of a value, in the value's unit; of `LEVEL` unless said otherwise."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """A bootstrap of one score, in per cent.

    Attributes:
        record: What was resampled.
        score: What all items give.
        drawn: (draws,) what the samples of them give.
        count: Items.
    """

    record: Record
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


def sample(record: Record, draws: int = DRAWS) -> Sample | None:
    """Return a bootstrap over the record's items; None where they are not what its score is made of.

    The splits and subsets of a task are resampled each for itself, and count alike, as in mteb. For pair classification
    the score is the average precision of cosine, where mteb's ``max_ap`` is that of the best of five comparisons: equal
    to within rounding for unit vectors, unless the city-block distance does better.
    """
    scorers = _scorers(record)
    if scorers is None:
        return None
    score = 100 * float(np.mean([score(np.ones((1, size)))[0] for score, size in scorers]))
    if not abs(score - 100 * record.score) <= APART:  # NaN too
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

    It says how far the mean could be on other tasks of this mixture. With fewer than about ten tasks it is rough, and
    it takes tasks for independent draws, which those over like texts are not.
    """
    return interval_of(np.concatenate([mean_of(scores, counts) for counts in _counts(len(scores), DRAWS, 0)]))


def compare(one: Sample, two: Sample) -> Difference | None:
    """Return how far the first system is above the second on the same task; None where their items are not the same.

    For means p is that of a randomisation test: under the hypothesis of no difference each query's (experiment's) two
    scores could be the other way round. Predictions of pairs are on each system's own scale and cannot be exchanged:
    there p is that of the paired bootstrap, twice the smaller share of draws on one side of zero.
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
    """Return the two-sided p of a mean difference: how often random signs of its parts give one as large.

    Args:
        gaps: The differences of each group, which count alike.
        draws: Sets of signs; the set that was seen counts as one more.
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
    """Return how each system does against the one in row ``baseline``, over the tasks that both have.

    Wilcoxon's signed-rank test takes a task for one observation, as "Pooling and Attention" (Tang and Yang, arXiv
    2409.02727) asks for: it ranks the differences and assumes no more than that they are symmetric and independent.
    Below six tasks it cannot reach 0.05 whatever the scores. Systems that share no task are left out.

    Args:
        scores: (systems, tasks) in per cent; NaN where there is none.
        baseline: The row of the baseline.
    """
    gaps = {row: values[~np.isnan(values)] for row, values in enumerate(scores - scores[baseline]) if row != baseline}
    gaps = {row: values for row, values in gaps.items() if len(values)}
    found = {row: float(wilcoxon(values).pvalue) if values.any() else 1.0 for row, values in gaps.items()}
    corrected = dict(zip(found, holm(list(found.values())), strict=True))
    return {
        row: Overall(
            len(values), float(values.mean()), int((values > 0).sum()), int((values < 0).sum()), found[row],
            corrected[row],
        )
        for row, values in gaps.items()
    }  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, step down (Holm 1979): the chance of any false one is bounded."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected


def _scorers(record: Record) -> list[tuple[Resampled, int]] | None:
    """Return for each split and subset how its score is made, and of how many items."""
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


def _paired(one: Record, two: Record) -> bool:
    """Say whether the items of two records are the same queries, pairs or experiments."""
    first, second = one.items, two.items
    if (one.task, first["kind"], len(first["groups"])) != (two.task, second["kind"], len(second["groups"])):
        return False
    name = "gold" if first["kind"] == "pair" else "values"
    both = zip(first["groups"], second["groups"], strict=True)
    return all(len(a[name]) == len(b[name]) and (name == "values" or a[name] == b[name]) for a, b in both)


def _counts(size: int, draws: int, group: int) -> Iterator[np.ndarray]:
    """Yield blocks (B, size) float64 of how often each item is in each of ``draws`` samples with replacement."""
    rng = np.random.default_rng([SEED, group])
    step = max(1, CELLS // size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


@lru_cache(maxsize=2)
def _signs(size: int, draws: int, group: int) -> np.ndarray:
    """Return random signs (draws, size) int8, kept for the next system on the same task."""
    bits = np.random.default_rng([SEED + 1, group]).integers(0, 2, (draws, size), dtype=np.int8)
    return 2 * bits - 1


def _centred_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the ranks (B, N) of ``values`` (N,) in each draw, less their mean; those of one value share theirs."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # of each distinct value
    ranks = np.cumsum(drawn, axis=1) - drawn / 2
    found: np.ndarray = (ranks - ranks[:, -1:] / 2 - drawn[:, -1:] / 4)[:, place]
    return found
