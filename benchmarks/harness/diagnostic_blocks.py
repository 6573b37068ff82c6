"""Diagnostic tasks in a report: what each measures, all scores, and the effect of each change to the same texts."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.page import Block, Cell, Heading, Items, Table, Text
from benchmarks.harness.score_cells import Results, signed, task_tables
from benchmarks.harness.score_records import ScoreRecord
from benchmarks.harness.statistics import interval_of
from benchmarks.harness.table import DIAGNOSTIC

# Change -> tasks before and after: the same queries, or texts of the same kind.
CHANGES = {
    "noise 20 to 90 % †": ("Needle20Classification", "Needle90Classification"),
    "answers made longer": ("LengthShortRetrieval", "LengthLongRetrieval"),
    "all made longer": ("LengthShortRetrieval", "PositionMiddleRetrieval"),
    "start to middle": ("PositionStartRetrieval", "PositionMiddleRetrieval"),
    "start to end": ("PositionStartRetrieval", "PositionEndRetrieval"),
}
ORDER = ("Keywords", "Parts", "LengthShort", "LengthLong", "PositionStart", "PositionMiddle", "PositionEnd", "Needle")
ABOUT = (
    "Each task isolates one trait, on synthetic or rearranged texts. They are excluded from all means and ranks, and "
    "are not comparable with other evaluations."
)
READING = [
    "Needle: accuracy of a classifier on frozen vectors that detects whether an object is present; the number is the "
    "percentage of noise words. The labels are balanced, so chance is 50.",
    "Keywords, Parts: nDCG@10 of retrieving a passage by its rarest words, or by 16 consecutive words of it.",
    "LengthShort, LengthLong: nDCG@10 with relevant passages as short as the others, or in the middle of padding.",
    "LengthCosine: Spearman correlation of the cosine of two unrelated texts with the length of one; 0 means no "
    "bias, a positive value that long texts are closer to every text.",
    "PositionStart, PositionMiddle, PositionEnd: nDCG@10 with every passage in the same padding, at that position.",
]


def in_order(records: Sequence[ScoreRecord]) -> list[ScoreRecord]:
    """Return records of diagnostic tasks in the order of `ORDER`; the sort is stable."""

    def position(record: ScoreRecord) -> int:
        name = record.task.removeprefix(DIAGNOSTIC)
        return next((number for number, prefix in enumerate(ORDER) if name.startswith(prefix)), len(ORDER))

    return sorted(records, key=position)


def diagnostic_blocks(results: Results) -> list[Block]:
    """Return the blocks of a report on diagnostic tasks; ``results`` must hold no other tasks."""
    blocks: list[Block] = [Heading("Diagnostics"), Text(ABOUT), *task_tables(results, marks_best=False)]
    changes = _changes(results)
    if changes is not None:
        text = "Effect of each change on the score, in points, with a bootstrap interval over the same queries:"
        blocks += [Text(text), changes]
    return [*blocks, Items(READING)]


def _changes(results: Results) -> Table | None:
    rows = [
        [Cell(name), *(_change(results, name, *tasks) for tasks in CHANGES.values())] for name in results.scores.systems
    ]
    columns = [at for at in range(1, len(CHANGES) + 1) if any(row[at].text for row in rows)]
    if not columns:
        return None
    heads = ["system", *CHANGES]
    return Table([heads[at] for at in (0, *columns)], [[row[at] for at in (0, *columns)] for row in rows])


def _change(results: Results, system: str, before: str, after: str) -> Cell:
    changed, original = (results.samples.get((system, f"{DIAGNOSTIC}{task}")) for task in (after, before))
    if changed is None or original is None or changed.count != original.count:
        return Cell("")
    interval = interval_of(changed.drawn - original.drawn)  # equal counts have the same draws
    value = changed.score - original.score
    return Cell(signed(value), f"{signed(interval.low)} to {signed(interval.high)}", value)
