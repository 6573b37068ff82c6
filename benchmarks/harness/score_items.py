"""The items of a score: queries, pairs or experiments, as `statistics` resamples them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

# Prefix of mteb's main score -> prefix of the score of a query in pytrec_eval.
PER_QUERY = {"ndcg_at_": "ndcg_cut_", "map_at_": "map_cut_", "recall_at_": "recall_", "precision_at_": "P_"}


@contextmanager
def per_query(task: AbsTask) -> Iterator[dict[str, Any]]:
    """Yield a dictionary filled with the main score of each query; it stays empty for tasks without queries."""
    items: dict[str, Any] = {}
    prefix = next((prefix for prefix in PER_QUERY if task.metadata.main_score.startswith(prefix)), None)
    if not isinstance(task, AbsTaskRetrieval) or prefix is None:
        yield items
        return
    key = PER_QUERY[prefix] + task.metadata.main_score.removeprefix(prefix)
    original: Any = task.task_specific_scores

    def record_scores(scores: dict[str, dict[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
        values = [round(scores[query][key], 5) for query in sorted(scores)]
        items.setdefault("groups", []).append({"values": values})
        items["kind"] = "query"
        extra: dict[str, float] = original(scores, *args, **kwargs)
        return extra

    patched: Any = task
    patched.task_specific_scores = record_scores
    try:
        yield items
    finally:
        del patched.task_specific_scores


def items_of(task: AbsTask, result: Any, folder: Path) -> dict[str, Any]:
    """Return the items of a score that is not a mean over queries: pairs or experiments."""
    groups: list[dict[str, Any]] = []
    if task.metadata.type in ("STS", "PairClassification"):
        predictions = json.loads((folder / task.prediction_file_name).read_text(encoding="utf-8"))
        column = "score" if task.metadata.type == "STS" else "labels"
        column = getattr(task, "label_column_name", column) if column == "labels" else column
        for subset, splits in predictions.items():
            for split, scores in splits.items() if subset != "mteb_model_meta" else ():
                data: Any = task.dataset
                rows = data.get(subset, data)[split]
                gold = rows[column]
                gold = gold[0] if len(gold) == 1 and isinstance(gold[0], list) else list(gold)
                names = ("cosine_scores", "similarity_scores")
                predicted = next(scores[name] for name in names if scores.get(name))
                groups.append({"predicted": [round(float(v), 5) for v in predicted], "gold": [float(v) for v in gold]})
        return {"kind": "pair", "groups": groups}
    for entries in result.scores.values():
        for entry in entries:
            if "scores_per_experiment" in entry:
                values = [row[task.metadata.main_score] for row in entry["scores_per_experiment"]]
            else:
                levels = entry.get("v_measures", {})  # a list, or lists by level
                parts = levels.values() if isinstance(levels, dict) else [levels]
                values = [value for part in parts for value in part]
            groups.append({"values": [float(value) for value in values]})
    return {"kind": "experiment", "groups": groups}
