"""Records -> a report: tables with intervals, a comparison with a baseline, figures, and what the run was.

It reads nothing but the records: no model, no data set, no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness.costs import Cost, costs_of
from benchmarks.harness.figures import Plot
from benchmarks.harness.page import Block, Cell, Heading, Items, Table, Text, to_html, to_markdown
from benchmarks.harness.plots import plots_of
from benchmarks.harness.provenance import run_blocks
from benchmarks.harness.records import Record, load_records
from benchmarks.harness.statistics import (
    DRAWS,
    Interval,
    Sample,
    compare,
    compare_all,
    interval_of,
    mean_interval,
    sample,
)
from benchmarks.harness.table import Scores, cell_of, check_system, label_of, names_of, parts_of, scores_of, summary_of

MINUS = "\N{MINUS SIGN}"
OVERALL = ("mean of tasks", "mean of kinds", "Borda rank")  # columns of `summary_of` that are not of one kind of task


@dataclass(frozen=True)
class Results:
    """All that a report speaks of.

    Attributes:
        records: By system, the best first.
        names: Of their systems in tables.
        scores: Of the records.
        samples: Of each system and task, by name; None where the record's items are not what its score is made of.
    """

    records: list[Record]
    names: list[str]
    scores: Scores
    samples: dict[tuple[str, str], Sample | None]


def write_report(results: Path, output: Path, baseline: str | None = None) -> list[Path]:
    """Write ``report.md``, ``report.html`` and the figures into the folder ``output``, and return their paths.

    Args:
        results: Folder of an evaluation, see `records`.
        output: Folder, made where it is missing; files of these names are replaced.
        baseline: The system that all others are compared with, by its name in tables.

    Raises:
        InputError: There are no records, or none of that baseline.
        CorruptFileError: A file is no record.
    """
    records = load_records(results)
    if baseline is not None:
        check_system(baseline, records, "baseline")
    found = _results(records)
    plots = plots_of(found.records, baseline)
    blocks: list[Block] = [
        *_opening(found),
        Heading("Means"),
        *_summary(found),
        Heading("Scores by task"),
        *_tasks(found),
        *(_against(found, baseline) if baseline is not None else []),
        *_figures(plots),
        Heading("Cost"),
        *_costs(costs_of(found.records)),
        *_missing(found),
        Heading("What was run"),
        *run_blocks(found.records, found.names),
        Heading("How to read this"),
        Items(READING),
    ]
    output.mkdir(parents=True, exist_ok=True)
    files = {"report.md": to_markdown(blocks).encode(), "report.html": to_html(blocks).encode()}
    files |= {f"{plot.name}{end}.png": image for plot in plots for end, image in plot.images.items()}
    for name, data in files.items():
        (output / name).write_bytes(data)
    return [output / name for name in files]


READING = [
    "Scores are mteb's main scores in per cent. A mean counts only where every task of it was measured.",
    f"Below a score stands its 95 % interval: {DRAWS:,} bootstrap samples of the queries or pairs of the task, the "
    "systems drawn alike. It says how far the score could be on other queries or pairs of the same kind.",
    "† Classification and clustering are repeated with other training sets or parts of the same texts. Their intervals "
    "and p values say how much hangs on that draw, and nothing about other test texts: they are too narrow.",
    "The interval of a mean over tasks is a bootstrap over the tasks, as if they were drawn from many of their like. "
    "With fewer than about ten tasks it is rough.",
    "Borda rank: on each task a system gets a point for each other one that it beats; ranks are among systems with all "
    "tasks.",
]
READING_BASELINE = (
    "Differences are in points. A task's interval is a paired bootstrap, its p a randomisation test over the same "
    "queries or experiments, for pairs of the bootstrap; both are of this task alone. Bold: p below 0.05, "
    "which one in twenty comparisons is by chance. Where a score is the best of several "
    "ways to compare, the difference is that of cosine."
)


def _results(records: list[Record]) -> Results:
    """Return what a report speaks of, systems with all tasks first, then by their mean."""
    scores = scores_of(records)
    order = sorted(
        range(len(scores.systems)),
        key=lambda row: (np.isnan(scores.values[row]).any(), -np.nanmean(scores.values[row])),
    )
    place = {scores.systems[row]: rank for rank, row in enumerate(order)}
    named = sorted(zip(names_of(records), records, strict=True), key=lambda pair: place[pair[0]])
    ordered, names = [record for _, record in named], [name for name, _ in named]
    samples = {(name, record.task): sample(record) for name, record in named}
    return Results(ordered, names, scores_of(ordered), samples)


def _opening(found: Results) -> list[Block]:
    scores = found.scores
    dates = sorted(str(record.run["date"])[:10] for record in found.records if record.run.get("date"))
    when = "" if not dates else f", {dates[0]}" if dates[0] == dates[-1] else f", {dates[0]} to {dates[-1]}"
    heading = Heading("Evaluation of text encoders", 1)
    counted = [_count(len(scores.systems), "system"), _count(len(scores.tasks), "task")]
    text = f"{' on '.join(counted)} of mteb{when}."
    means = scores.values.mean(axis=1)
    if len(scores.systems) > 1 and not np.isnan(means).all():
        best = int(np.nanargmax(means))
        text += f" Highest mean over all tasks: {scores.systems[best]} ({means[best]:.1f})."
    return [heading, Text(text)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _summary(found: Results) -> list[Block]:
    scores = found.scores
    heads, values = summary_of(scores)
    kinds = len(heads) - len(OVERALL)
    order = [*(heads.index(head) for head in OVERALL), *range(kinds)]  # the last ones say most
    heads, values = [*OVERALL, *scores.means()[0]], values[:, order]
    rows = []
    for name, dim, row, own in zip(scores.systems, scores.dims, values, scores.values, strict=True):
        cells = [_name(name), Cell("" if dim is None else str(dim), value=dim)]
        for column, (head, value) in enumerate(zip(heads, row, strict=True)):
            note = "" if head != OVERALL[0] or np.isnan(value) or len(own) < 2 else _range(mean_interval(own))
            cells.append(_score(head, value, note, values[:, column]))
        rows.append(cells)
    return [Table(["system", "d", *heads], rows)]


def _tasks(found: Results) -> list[Block]:
    scores, blocks = found.scores, list[Block]()
    for columns in parts_of(scores):
        heads = [_head(found, scores.tasks[column]) for column in columns]
        rows = []
        for row, name in enumerate(scores.systems):
            cells = [_name(name)]
            for column in columns:
                drawn = found.samples.get((name, scores.tasks[column]))
                note = "" if drawn is None else _range(interval_of(drawn.drawn))
                cells.append(_score("", scores.values[row, column], note, scores.values[:, column]))
            if any(cell.text for cell in cells[1:]):
                rows.append(cells)
        blocks.append(Table(["system", *heads], rows))
    return blocks


def _head(found: Results, task: str) -> str:
    """Return a task's name for a column, with a mark where its items are experiments."""
    kinds = {record.items.get("kind") for record in found.records if record.task == task}
    return f"{label_of(task)} †" if "experiment" in kinds else label_of(task)


def _against(found: Results, baseline: str) -> list[Block]:
    scores = found.scores
    overall = compare_all(scores.values, scores.systems.index(baseline))
    heads = ["system", "tasks of both", "mean difference", "better", "worse", "p", "p, Holm"]
    rows = []
    for row, entry in sorted(overall.items(), key=lambda item: -item[1].value):
        value = Cell(_signed(entry.value), value=entry.value)
        counts = [Cell(str(n), value=n) for n in (entry.better, entry.worse)]
        ps = [Cell(_p(entry.p), value=entry.p), Cell(_p(entry.holm), value=entry.holm, is_strong=entry.holm < 0.05)]
        rows.append([_name(scores.systems[row]), Cell(str(entry.tasks), value=entry.tasks), value, *counts, *ps])
    over = (
        "Over the tasks that a system shares with the baseline: Wilcoxon's signed-rank test, a task one observation, "
        "then Holm's correction over the systems. With fewer than six tasks no p can be below 0.05."
    )
    blocks: list[Block] = [Heading(f"Against {baseline}"), Text(over), Table(heads, rows)]
    blocks += [Heading("By task", 3), Text(READING_BASELINE)]
    for columns in parts_of(scores):
        rows = []
        for row in (row for row in range(len(scores.systems)) if scores.systems[row] != baseline):
            name = scores.systems[row]
            cells = [_difference(found, name, baseline, scores.tasks[column]) for column in columns]
            if any(cell.text for cell in cells):
                rows.append([_name(name), *cells])
        if rows:
            blocks.append(Table(["system", *(_head(found, scores.tasks[column]) for column in columns)], rows))
    return blocks


def _difference(found: Results, system: str, baseline: str, task: str) -> Cell:
    one, two = (found.samples.get((name, task)) for name in (system, baseline))
    gap = None if one is None or two is None else compare(one, two)
    if gap is None:
        return Cell("")
    note = f"{_signed(gap.interval.low)} to {_signed(gap.interval.high)}, p {_p(gap.p)}"
    return Cell(_signed(gap.value), note, gap.value, gap.p < 0.05)


def _costs(costs: dict[str, Cost]) -> list[Block]:
    heads = ["system", "searches", "d", "tokens/s", "index bytes/document"]
    rows = []
    for name, cost in costs.items():
        speed, size = cost.tokens_per_s, cost.bytes_per_document
        rows.append([
            _name(name),
            Cell(cost.kind),
            Cell("" if cost.dim is None else str(cost.dim), value=cost.dim),
            Cell("" if speed is None else f"{speed:,.0f}", value=speed),
            Cell("" if size is None else f"{size:,.0f}", value=size),
        ])  # fmt: skip
    text = (
        "Tokens that the encoder alone reads in a second, on one fixed sample. Index: files as saved where an engine "
        "searched (on small collections much of that is fixed), else 4 bytes a dimension, and for exact token vectors "
        "2 a dimension and token."
    )
    return [Text(text), Table(heads, rows, texts=2)]


def _figures(plots: list[Plot]) -> list[Block]:
    return [Heading("Figures"), *plots] if plots else []


def _missing(found: Results) -> list[Block]:
    scores = found.scores
    lacking = {
        name: [task for task, value in zip(scores.tasks, row, strict=True) if np.isnan(value)]
        for name, row in zip(scores.systems, scores.values, strict=True)
    }
    items = [f"{name}: {', '.join(tasks)}" for name, tasks in lacking.items() if tasks]
    if not items:
        return []
    text = "These systems lack tasks that others have, and the means that those belong to."
    return [Heading("What is missing"), Text(text), Items(items)]


def _name(name: str) -> Cell:
    return Cell(name)


def _score(head: str, value: float, note: str, column: np.ndarray) -> Cell:
    """Return a score; the best of its column is strong, where there is another one."""
    if np.isnan(value):
        return Cell("")
    best = np.nanmin(column) if head == "Borda rank" else np.nanmax(column)
    return Cell(cell_of(head, value), note, float(value), bool(value == best and (~np.isnan(column)).sum() > 1))


def _range(interval: Interval) -> str:
    return f"{interval.low:.1f}–{interval.high:.1f}"


def _signed(value: float) -> str:
    text = f"{abs(value):.1f}"
    return text if float(text) == 0 else f"{MINUS if value < 0 else '+'}{text}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
