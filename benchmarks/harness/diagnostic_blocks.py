"""Diagnostic tasks in a report: what each shows, all scores, and what a change to the same texts does to them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.page import Block, Cell, Heading, Items, Table, Text
from benchmarks.harness.score_cells import Results, signed, task_tables
from benchmarks.harness.score_records import ScoreRecord
from benchmarks.harness.statistics import interval_of
from benchmarks.harness.table import DIAGNOSTIC

# What is changed, and the tasks before and after: the same queries, or texts of the same kind.
CHANGES = {
    "noise 20 to 90 % †": ("Needle20Classification", "Needle90Classification"),
    "answers made longer": ("LengthShortRetrieval", "LengthLongRetrieval"),
    "all made longer": ("LengthShortRetrieval", "PositionMiddleRetrieval"),
    "start to middle": ("PositionStartRetrieval", "PositionMiddleRetrieval"),
    "start to end": ("PositionStartRetrieval", "PositionEndRetrieval"),
}
ORDER = ("Keywords", "Parts", "LengthShort", "LengthLong", "PositionStart", "PositionMiddle", "PositionEnd", "Needle")
ABOUT = (
    "Tasks that show one trait each, on texts that are made up or rearranged. They belong to no mean and no rank, and "
    "cannot be compared with other evaluations."
)
READING = [
    "Needle: accuracy of a classifier of frozen vectors that says whether a thing is there or is not, in so many per "
    "cent of noise; half of the texts are of each kind, so 50 is chance.",
    "Keywords, Parts: nDCG@10 of a passage asked for by its rarest words, or by 16 words of it in a row.",
    "LengthShort, LengthLong: nDCG@10 with the answers as short as the other documents, or in the middle of padding.",
    "LengthCosine: Spearman correlation of the cosine of two unrelated texts with the length of one; 0 is no bias, "
    "above it long texts are nearer to everything.",
    "PositionStart, PositionMiddle, PositionEnd: nDCG@10 where every document is a passage in the same padding, at "
    "that place.",
]


def in_order(records: Sequence[ScoreRecord]) -> list[ScoreRecord]:
    """Return records of diagnostic tasks, what is compared beside each other; tasks of one beginning as they were."""

    def place(record: ScoreRecord) -> int:
        name = record.task.removeprefix(DIAGNOSTIC)
        return next((number for number, begins in enumerate(ORDER) if name.startswith(begins)), len(ORDER))

    return sorted(records, key=place)


def diagnostic_blocks(found: Results) -> list[Block]:
    """Return the part of a report about diagnostic tasks, of which alone ``found`` may speak."""
    blocks: list[Block] = [Heading("Diagnostics"), Text(ABOUT), *task_tables(found, marks_best=False)]
    changes = _changes(found)
    if changes is not None:
        text = "What a change does to the score, in points, with the interval of a bootstrap of the same queries:"
        blocks += [Text(text), changes]
    return [*blocks, Items(READING)]


def _changes(found: Results) -> Table | None:
    rows = [
        [Cell(name), *(_change(found, name, *tasks) for tasks in CHANGES.values())] for name in found.scores.systems
    ]
    kept = [at for at in range(1, len(CHANGES) + 1) if any(row[at].text for row in rows)]
    if not kept:
        return None
    heads = ["system", *CHANGES]
    return Table([heads[at] for at in (0, *kept)], [[row[at] for at in (0, *kept)] for row in rows])


def _change(found: Results, system: str, before: str, after: str) -> Cell:
    one, two = (found.samples.get((system, f"{DIAGNOSTIC}{task}")) for task in (after, before))
    if one is None or two is None or one.count != two.count:
        return Cell("")
    interval = interval_of(one.drawn - two.drawn)  # the draws of as many items are the same
    value = one.score - two.score
    return Cell(signed(value), f"{signed(interval.low)} to {signed(interval.high)}", value)
