"""Report of an evaluation: tables with intervals, comparison with a baseline, figures, and details of the runs.

It needs only the records: no model, no data set, no network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness.costs import Cost, costs_of
from benchmarks.harness.diagnostic_blocks import diagnostic_blocks, in_order
from benchmarks.harness.figures import Plot
from benchmarks.harness.page import Block, Cell, Heading, Items, Table, Text, to_html, to_markdown
from benchmarks.harness.plots import plots_of
from benchmarks.harness.provenance import run_blocks
from benchmarks.harness.score_cells import (
    Results,
    p_of,
    range_of,
    results_of,
    score_cell,
    signed,
    task_head,
    task_tables,
)
from benchmarks.harness.score_records import ScoreRecord, load_records
from benchmarks.harness.statistics import DRAWS, compare, compare_all, mean_interval
from benchmarks.harness.table import check_system, is_diagnostic, names_of, parts_of, summary_of

OVERALL = ("mean of tasks", "mean of kinds", "Borda rank")  # columns of `summary_of` that are not of one kind of task


def write_report(results: Path, output: Path, baseline: str | None = None) -> list[Path]:
    """Write ``report.md``, ``report.html`` and the figures into the folder ``output``, and return their paths.

    Args:
        results: Results folder of an evaluation, see `score_records`.
        output: Folder, created if missing; existing files are replaced.
        baseline: Name in tables of the system to compare all others with.

    Raises:
        InputError: There are no records, or none of the baseline.
        CorruptFileError: A file is not a record.
    """
    records = load_records(results)
    if baseline is not None:
        check_system(baseline, records, "baseline")
    records = [replace(record, system=name) for name, record in zip(names_of(records), records, strict=True)]
    usual = [record for record in records if not is_diagnostic(record.task)]
    quality = results_of(usual) if usual else None
    others = in_order([record for record in records if is_diagnostic(record.task)])
    diagnostic = results_of(others) if others else None
    records = [record for part in (quality, diagnostic) if part is not None for record in part.records]
    plots = plots_of(quality.records, baseline) if quality is not None else []
    blocks: list[Block] = [
        *_opening(records, quality, diagnostic),
        *(_quality(quality, plots, baseline) if quality is not None else []),
        *(diagnostic_blocks(diagnostic) if diagnostic is not None else []),
        Heading("Cost"),
        *_costs(costs_of(usual or records)),
        *(_missing(quality) if quality is not None else []),
        Heading("What was run"),
        *run_blocks(records, [record.system for record in records]),
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
    "Scores are mteb's main scores in per cent. A mean is given only if all of its tasks were measured.",
    f"Each score has a 95 % interval from {DRAWS:,} bootstrap samples of the task's queries or pairs, the same "
    "samples for all systems. It estimates the variation over other queries or pairs of the same kind.",
    "† Classification and clustering are repeated with other training sets or subsets of the same texts. Their "
    "intervals and p values reflect only that sampling, not other test texts: they are too narrow.",
    "The interval of a mean over tasks is a bootstrap over the tasks, as if they were a random sample of similar "
    "tasks. With fewer than about ten tasks it is rough.",
    "Borda rank: on each task a system gets one point for each system that it beats; only systems with all tasks are "
    "ranked.",
]
READING_BASELINE = (
    "Differences are in points. A task's interval is a paired bootstrap, its p is from a randomisation test over the "
    "same queries or experiments, for pairs from the bootstrap; both apply to this task alone. Bold: p below 0.05, as "
    "one comparison in twenty is by chance. If a score is the best of several similarities, the difference is that of "
    "cosine."
)


def _opening(records: list[ScoreRecord], results: Results | None, diagnostic: Results | None) -> list[Block]:
    dates = sorted(str(record.run["date"])[:10] for record in records if record.run.get("date"))
    when = "" if not dates else f", {dates[0]}" if dates[0] == dates[-1] else f", {dates[0]} to {dates[-1]}"
    heading = Heading("Evaluation of text encoders", 1)
    systems = {record.system for record in records}
    counted = [] if results is None else [f"{_count(len(results.scores.tasks), 'task')} of mteb"]
    counted += [] if diagnostic is None else [_count(len(diagnostic.scores.tasks), "diagnostic task")]
    text = f"{_count(len(systems), 'system')} on {' and '.join(counted)}{when}."
    if results is None:
        return [heading, Text(text)]
    scores = results.scores
    means = scores.values.mean(axis=1)
    if len(scores.systems) > 1 and not np.isnan(means).all():
        best = int(np.nanargmax(means))
        tasks = "tasks" if diagnostic is None else "other tasks"
        text += f" Highest mean over all {tasks}: {scores.systems[best]} ({means[best]:.1f})."
    return [heading, Text(text)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _quality(results: Results, plots: list[Plot], baseline: str | None) -> list[Block]:
    """Return the blocks on all tasks except diagnostic ones."""
    compares = baseline is not None and baseline in results.scores.systems
    return [
        Heading("Means"),
        *_summary(results),
        Heading("Scores by task"),
        *task_tables(results),
        *(_against(results, str(baseline)) if compares else []),
        *_figures(plots),
    ]


def _summary(results: Results) -> list[Block]:
    scores = results.scores
    heads, values = summary_of(scores)
    kinds = len(heads) - len(OVERALL)
    order = [*(heads.index(head) for head in OVERALL), *range(kinds)]  # overall columns first
    heads, values = [*OVERALL, *scores.means()[0]], values[:, order]
    rows = []
    for name, dim, row, scored in zip(scores.systems, scores.dims, values, scores.values, strict=True):
        cells = [Cell(name), Cell("" if dim is None else str(dim), value=dim)]
        for column, (head, value) in enumerate(zip(heads, row, strict=True)):
            note = "" if head != OVERALL[0] or np.isnan(value) or len(scored) < 2 else range_of(mean_interval(scored))
            cells.append(score_cell(head, value, note, values[:, column]))
        rows.append(cells)
    return [Table(["system", "d", *heads], rows)]


def _against(results: Results, baseline: str) -> list[Block]:
    scores = results.scores
    overall = compare_all(scores.values, scores.systems.index(baseline))
    heads = ["system", "tasks of both", "mean difference", "better", "worse", "p", "p, Holm"]
    rows = []
    for row, entry in sorted(overall.items(), key=lambda item: -item[1].value):
        value = Cell(signed(entry.value), value=entry.value)
        counts = [Cell(str(n), value=n) for n in (entry.better, entry.worse)]
        ps = [Cell(p_of(entry.p), value=entry.p), Cell(p_of(entry.holm), value=entry.holm, is_strong=entry.holm < 0.05)]
        rows.append([Cell(scores.systems[row]), Cell(str(entry.tasks), value=entry.tasks), value, *counts, *ps])
    over = (
        "Over the tasks that a system shares with the baseline: Wilcoxon's signed-rank test with each task as one "
        "observation, then Holm's correction over the systems. With fewer than six tasks no p can be below 0.05."
    )
    blocks: list[Block] = [Heading(f"Against {baseline}"), Text(over), Table(heads, rows)]
    blocks += [Heading("By task", 3), Text(READING_BASELINE)]
    for columns in parts_of(scores):
        rows = []
        for row in (row for row in range(len(scores.systems)) if scores.systems[row] != baseline):
            name = scores.systems[row]
            cells = [_difference(results, name, baseline, scores.tasks[column]) for column in columns]
            if any(cell.text for cell in cells):
                rows.append([Cell(name), *cells])
        if rows:
            blocks.append(Table(["system", *(task_head(results, scores.tasks[column]) for column in columns)], rows))
    return blocks


def _difference(results: Results, system: str, baseline: str, task: str) -> Cell:
    sample, reference = (results.samples.get((name, task)) for name in (system, baseline))
    gap = None if sample is None or reference is None else compare(sample, reference)
    if gap is None:
        return Cell("")
    note = f"{signed(gap.interval.low)} to {signed(gap.interval.high)}, p {p_of(gap.p)}"
    return Cell(signed(gap.value), note, gap.value, gap.p < 0.05)


def _costs(costs: dict[str, Cost]) -> list[Block]:
    heads = ["system", "searches", "d", "tokens/s", "index bytes/document"]
    rows = []
    for name, cost in costs.items():
        speed, size = cost.tokens_per_s, cost.bytes_per_document
        rows.append([
            Cell(name),
            Cell(cost.kind),
            Cell("" if cost.dim is None else str(cost.dim), value=cost.dim),
            Cell("" if speed is None else f"{speed:,.0f}", value=speed),
            Cell("" if size is None else f"{size:,.0f}", value=size),
        ])  # fmt: skip
    text = (
        "Tokens/s: the encoder alone on a fixed sample. Index: size of the saved files of an engine (mostly fixed "
        "overhead on small collections); for exact search 4 bytes per dimension, or 2 per dimension and token for "
        "token vectors."
    )
    return [Text(text), Table(heads, rows, texts=2)]


def _figures(plots: list[Plot]) -> list[Block]:
    return [Heading("Figures"), *plots] if plots else []


def _missing(results: Results) -> list[Block]:
    scores = results.scores
    missing = {
        name: [task for task, value in zip(scores.tasks, row, strict=True) if np.isnan(value)]
        for name, row in zip(scores.systems, scores.values, strict=True)
    }
    items = [f"{name}: {', '.join(tasks)}" for name, tasks in missing.items() if tasks]
    if not items:
        return []
    text = "These systems lack tasks that others have, and therefore some means."
    return [Heading("What is missing"), Text(text), Items(items)]
