"""Markdown tables of scores: a row per system, a column per task, means over kinds of tasks, and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from benchmarks.harness.score_records import ScoreRecord
from embedserve.errors import InputError, did_you_mean

# Kinds of tasks per table: search; comparison and classification.
PARTS = (("Retrieval", "Reranking"), ("STS", "PairClassification", "Classification", "Clustering"))
DIAGNOSTIC = "LocalDiagnostic"  # prefix of the names of diagnostic tasks, which are excluded from means


@dataclass(frozen=True)
class Scores:
    """Main scores in per cent.

    Attributes:
        systems: Names, in the order of the table; with the revision if two systems share a name.
        tasks: Names, in the order of the table.
        types: The kind of each task.
        values: (systems, tasks) float64; NaN without a record.
        dims: Dimension of each system's vectors; None for words.
    """

    systems: list[str]
    tasks: list[str]
    types: list[str]
    values: np.ndarray
    dims: list[int | None]

    def means(self) -> tuple[list[str], np.ndarray]:
        """Return the kinds of tasks, and each system's mean by kind (systems, kinds); NaN if a task is missing."""
        kinds = list(dict.fromkeys(self.types))
        columns = [[column for column, type_ in enumerate(self.types) if type_ == kind] for kind in kinds]
        parts = [self.values[:, group].mean(axis=1) for group in columns]
        return kinds, np.stack(parts, axis=1) if parts else np.empty((len(self.systems), 0))

    def of_tasks(self, *, diagnostic: bool) -> Scores:
        """Return the scores of the diagnostic tasks alone, or of all others."""
        columns = [column for column, task in enumerate(self.tasks) if is_diagnostic(task) == diagnostic]
        tasks, types = ([values[column] for column in columns] for values in (self.tasks, self.types))
        return Scores(self.systems, tasks, types, self.values[:, columns], self.dims)


def is_diagnostic(task: str) -> bool:
    """Return whether a task is diagnostic."""
    return task.startswith(DIAGNOSTIC)


def names_of(records: Sequence[ScoreRecord]) -> list[str]:
    """Return the name in tables of each record's system, with the revision if two systems share a name."""
    revisions: dict[str, list[str]] = {}
    for record in records:
        known = revisions.setdefault(record.system, [])
        if _revision(record) not in known:
            known.append(_revision(record))

    def name(record: ScoreRecord) -> str:
        known = revisions[record.system]
        if len(known) == 1:
            return record.system
        short = len({revision[:8] for revision in known}) == len(known)
        return f"{record.system} ({_revision(record)[: 8 if short else None]})"

    return [name(record) for record in records]


def check_system(name: str, records: Sequence[ScoreRecord], field: str) -> None:
    """Raise `InputError` if no record is of the system ``name``."""
    known = list(dict.fromkeys(names_of(records)))
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"unknown system {name!r}; {hint}known: {', '.join(known)}", field=field)


def scores_of(records: Sequence[ScoreRecord]) -> Scores:
    """Return the scores of ``records``, systems and tasks in the order of their first record."""
    names = names_of(records)
    systems = {name: record.dim for name, record in zip(names, records, strict=True)}
    order = {kind: number for number, kind in enumerate(kind for part in PARTS for kind in part)}
    tasks = {record.task: record.type for record in records}
    named = sorted(tasks.items(), key=lambda item: order.get(item[1], len(order)))
    row, column = ({key: index for index, key in enumerate(keys)} for keys in (systems, [task for task, _ in named]))
    values = np.full((len(row), len(column)), np.nan)
    for name, record in zip(names, records, strict=True):
        values[row[name], column[record.task]] = 100 * record.score
    types = [kind for _, kind in named]
    return Scores(list(systems), list(column), types, values, list(systems.values()))


def borda(values: np.ndarray) -> np.ndarray:
    """Return the rank (systems,) int64 of each system by Borda count, as on the leaderboard; 1 is the best.

    On each task a system gets one point for each system that it beats, half a point for each tie.

    Args:
        values: (systems, tasks), all measured.
    """
    points = sum(rankdata(column) for column in values.T)
    ranks: np.ndarray = rankdata(-np.asarray(points), method="min").astype(np.int64)
    return ranks


def tables(records: Sequence[ScoreRecord], labels: Mapping[str, str] | None = None) -> str:
    """Return one Markdown table for each of `PARTS`, and one of all means with the rank by Borda count.

    Diagnostic tasks come last, in separate tables, and are excluded from means.

    Args:
        records: Records of any systems and tasks; a cell without a record is empty, and so is a mean that needs it.
        labels: Short names of tasks. Default: names without their prefix and kind.
    """
    scores = scores_of(records)
    usual, diagnostic = (scores.of_tasks(diagnostic=value) for value in (False, True))
    texts = _tables_of(usual, labels or {})
    if len(usual.tasks) > 1:
        texts.append(_markdown(usual, *summary_of(usual)))
    return "\n\n".join([*texts, *_tables_of(diagnostic, labels or {})])


def _tables_of(scores: Scores, labels: Mapping[str, str]) -> list[str]:
    texts = []
    for columns in parts_of(scores):
        heads = [labels.get(task := scores.tasks[column], label_of(task)) for column in columns]
        texts.append(_markdown(scores, heads, scores.values[:, columns]))
    return texts


def parts_of(scores: Scores) -> list[list[int]]:
    """Return the columns of each table of tasks: those of `PARTS`, and of all other kinds."""
    known = [kind for part in PARTS for kind in part]
    others = tuple(kind for kind in dict.fromkeys(scores.types) if kind not in known)
    parts = ([column for column, kind in enumerate(scores.types) if kind in part] for part in (*PARTS, others))
    return [columns for columns in parts if columns]


def summary_of(scores: Scores) -> tuple[list[str], np.ndarray]:
    """Return the heads and the columns of the last table: means by kind, over kinds, over tasks, and the rank.

    Values with missing tasks are NaN.
    """
    kinds, means = scores.means()
    whole = ~np.isnan(scores.values).any(axis=1)
    ranks = np.full(len(whole), np.nan)
    if whole.any():
        ranks[whole] = borda(scores.values[whole])
    heads = [f"mean {kind}" for kind in kinds] + ["mean of kinds", "mean of tasks", "Borda rank"]
    return heads, np.column_stack([means, means.mean(axis=1), scores.values.mean(axis=1), ranks])


def _markdown(scores: Scores, heads: list[str], values: np.ndarray) -> str:
    lines = [f"| system | d | {' | '.join(map(escape, heads))} |", "|---|" + "---:|" * (len(heads) + 1)]
    for name, dim, row in zip(scores.systems, scores.dims, values, strict=True):
        cells = [cell_of(head, value) for head, value in zip(heads, row, strict=True)]
        if any(cells):
            lines.append(f"| {escape(name)} | {'' if dim is None else dim} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell_of(head: str, value: float) -> str:
    """Return the text of a value: "" for NaN, ranks without a fraction."""
    return "" if np.isnan(value) else f"{value:.0f}" if head == "Borda rank" else f"{value:.1f}"


def escape(text: str) -> str:
    """Escape ``text`` for Markdown, table cells included."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|*`[]" else {"<": "&lt;", "&": "&amp;"}.get(c, c) for c in text)


def _revision(record: ScoreRecord) -> str:
    """Return the revision without prompts by task."""
    return record.variant or record.revision


def label_of(task: str) -> str:
    """Return a task's name for a narrow column: ``LocalTrecQAReranking`` -> ``TrecQA``."""
    for kind in (kind for part in PARTS for kind in part):
        task = task.removesuffix(kind)
    return task.removeprefix(DIAGNOSTIC).removeprefix("Local") or task
