"""Records of evaluations that nobody ran."""

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from benchmarks.harness.score_records import ScoreRecord

RUN = {
    "date": "2026-11-25T21:58:19+00:00",
    "machine": "A processor, 2 cores, 2 torch threads, load 0.5, torch 2.13.0, 2026-11-25",
    "seed": 42,
    "versions": {"mteb": "2.26.24"},
    "arguments": ["bench", "mteb", "-e", "mean", "--data", "EVAL_DIR"],
}
KINDS = {
    "SciFact": ("Retrieval", "ndcg_at_10"),
    "LocalTrecQAReranking": ("Reranking", "map_at_1000"),
    "STSBenchmark": ("STS", "cosine_spearman"),
    "LocalMSRPPairClassification": ("PairClassification", "max_ap"),
    "Banking77Classification": ("Classification", "accuracy"),
}
GOLD = np.random.default_rng(1).uniform(0, 5, 60).round(1)


def record(system="mean", task="SciFact", level=0.5, seed=0, **fields):
    """Return a record whose score is that of its items, around ``level``."""
    rng = np.random.default_rng([seed, *task.encode()])
    kind, metric = KINDS[task]
    if kind in ("STS", "PairClassification"):
        gold = GOLD if kind == "STS" else (GOLD > 2.5).astype(float)
        predicted = (level * GOLD / 5 + rng.normal(0, 0.2, len(gold))).round(3)
        items = {"kind": "pair", "groups": [{"predicted": predicted.tolist(), "gold": gold.tolist()}]}
        score = spearmanr(predicted, gold).statistic if kind == "STS" else average_precision_score(gold, predicted)
    else:
        searches = kind in ("Retrieval", "Reranking")
        values = np.clip(level + rng.normal(0, 0.2 if searches else 0.02, 40 if searches else 10), 0, 1).round(5)
        items = {"kind": "query" if searches else "experiment", "groups": [{"values": values.tolist()}]}
        score = values.mean()
    documents = 100 if kind in ("Retrieval", "Reranking") else 0
    values = {
        "model": "embedserve/mean", "revision": "a" * 32, "dim": 8, "spec": {"strategy": "mean", "backbone": "nano"},
        "tokens_per_s": 1000.0, "documents": documents, "run": RUN,
    }  # fmt: skip
    return ScoreRecord(
        system, task=task, type=kind, metric=metric, score=float(score), items=items, **{**values, **fields}
    )


def words(task, **fields):
    """Return a record of BM25."""
    none = {"dim": None, "spec": None, "tokens_per_s": None, "engine": {"name": "bm25"}, "index_bytes": 5000}
    return record("bm25", task, 0.6, 3, model="embedserve/bm25", revision="b" * 12, **{**none, **fields})


def some_records():
    """Return those of three systems: one with all tasks, one that only searches, and one that lacks a task."""
    whole = [record(task=task) for task in KINDS]
    other = [record("glot", task, 0.55, 1, model="embedserve/glot") for task in KINDS if task != "SciFact"]
    return [*whole, *other, *(words(task) for task in ("SciFact", "LocalTrecQAReranking"))]
