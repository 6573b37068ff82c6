"""Scores and differences as cells of a report's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.harness.page import Block, Cell, Table
from benchmarks.harness.score_records import ScoreRecord
from benchmarks.harness.statistics import Interval, Sample, interval_of, sample
from benchmarks.harness.table import Scores, cell_of, label_of, names_of, parts_of, scores_of

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Results:
    """Scores and samples of a report.

    Attributes:
        records: Records by system, best first.
        names: Name in tables of each record's system.
        scores: Scores of the records.
        samples: (system, task) -> sample; None if the items do not explain the score.
    """

    records: list[ScoreRecord]
    names: list[str]
    scores: Scores
    samples: dict[tuple[str, str], Sample | None]


def results_of(records: Sequence[ScoreRecord]) -> Results:
    """Return the results of ``records``: systems with all tasks first, then by mean."""
    scores = scores_of(records)
    order = sorted(
        range(len(scores.systems)),
        key=lambda row: (np.isnan(scores.values[row]).any(), -np.nanmean(scores.values[row])),
    )
    ranks = {scores.systems[row]: rank for rank, row in enumerate(order)}
    named = sorted(zip(names_of(records), records, strict=True), key=lambda pair: ranks[pair[0]])
    ordered, names = [record for _, record in named], [name for name, _ in named]
    samples = {(name, record.task): sample(record) for name, record in named}
    return Results(ordered, names, scores_of(ordered), samples)


def task_tables(results: Results, *, marks_best: bool = True) -> list[Block]:
    """Return a table of scores with their intervals for each of `parts_of`."""
    scores, blocks = results.scores, list[Block]()
    for columns in parts_of(scores):
        heads = [task_head(results, scores.tasks[column]) for column in columns]
        rows = []
        for row, name in enumerate(scores.systems):
            cells = [Cell(name)]
            for column in columns:
                drawn = results.samples.get((name, scores.tasks[column]))
                note = "" if drawn is None else range_of(interval_of(drawn.drawn))
                column_values = scores.values[:, column] if marks_best else np.empty(0)
                cells.append(score_cell("", scores.values[row, column], note, column_values))
            if any(cell.text for cell in cells[1:]):
                rows.append(cells)
        blocks.append(Table(["system", *heads], rows))
    return blocks


def task_head(results: Results, task: str) -> str:
    """Return a task's name for a column, marked with † if its items are experiments."""
    kinds = {record.items.get("kind") for record in results.records if record.task == task}
    return f"{label_of(task)} †" if "experiment" in kinds else label_of(task)


def score_cell(head: str, value: float, note: str, column: np.ndarray) -> Cell:
    """Return the cell of a score; the best of several in a column is strong."""
    if np.isnan(value):
        return Cell("")
    known = column[~np.isnan(column)]
    is_best = len(known) > 1 and value == (known.min() if head == "Borda rank" else known.max())
    return Cell(cell_of(head, value), note, float(value), bool(is_best))


def range_of(interval: Interval) -> str:
    """Return an interval of scores."""
    low, high = (f"{value:.1f}".replace("-", MINUS) for value in (interval.low, interval.high))
    return f"{low} to {high}" if MINUS in low else f"{low}–{high}"


def signed(value: float) -> str:
    """Return a difference with its sign, or 0.0 without one."""
    text = f"{abs(value):.1f}"
    return text if float(text) == 0 else f"{MINUS if value < 0 else '+'}{text}"


def p_of(value: float) -> str:
    """Return a p value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
