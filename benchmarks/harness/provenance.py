"""Provenance of the records: dates, machines, versions, commands, systems and prompts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.page import Block, Cell, Code, Heading, Items, Table, Text
from benchmarks.harness.score_records import ScoreRecord

LOAD = re.compile(r", load ([\d.]+)")
DATE = re.compile(r", \d{4}-\d\d-\d\d$")
# Fields of a spec beside its options, with the defaults that are not listed.
SHAPING: dict[str, Any] = {
    "post": [],
    "template": None,
    "attention": None,
    "pool_prompt": None,
    "max_tokens": None,
    "dtype": "float32",
}
LONGEST = 160  # letters of options in a table


def run_blocks(records: Sequence[ScoreRecord], names: Sequence[str]) -> list[Block]:
    """Return the blocks on what was run; ``names`` are the systems of the records."""
    items = [_dates(records), _machines(records), _versions(records)]
    peaks = [record.peak_memory_mb["process"] for record in records if "process" in record.peak_memory_mb]
    if peaks:
        items.append(f"Peak memory of a process: {max(peaks):,.0f} MB.")
    seeds = sorted({str(record.run["seed"]) for record in records if "seed" in record.run})
    if seeds:
        items.append(f"Seed of torch and numpy: {', '.join(seeds)}; mteb's tasks use their own seeds.")
    commands = list(dict.fromkeys(command for record in records if (command := command_of(record))))
    blocks: list[Block] = [Items([item for item in items if item])]
    if commands:
        blocks += [Text("Commands, with paths replaced:"), Code(commands)]
    if not all(command_of(record) for record in records):
        blocks.append(Text("Some records have no command: the harness was called from Python."))
    return [*blocks, Heading("Systems", 3), _systems(records, names), Heading("Prompts", 3), *_prompts(records, names)]


def command_of(record: ScoreRecord) -> str:
    """Return the command that created a record; "" if it was called from Python."""
    arguments = record.run.get("arguments")
    return shlex.join(["embedserve", *map(str, arguments)]) if arguments else ""


def _dates(records: Sequence[ScoreRecord]) -> str:
    dates = sorted(str(record.run["date"]) for record in records if record.run.get("date"))
    if not dates:
        return ""
    first, last = (date[:16].replace("T", " ") for date in (dates[0], dates[-1]))
    return f"Measured {first} UTC." if first == last else f"Measured from {first} to {last} UTC."


def _machines(records: Sequence[ScoreRecord]) -> str:
    """Return the machines, and how busy they were: a busy one is slow."""
    described = [str(record.run["machine"]) for record in records if record.run.get("machine")]
    machines = list(dict.fromkeys(DATE.sub("", LOAD.sub("", text)) for text in described))
    loads = [float(found[1]) for text in described if (found := LOAD.search(text))]
    if not machines:
        return ""
    text = f"Machine: {'; '.join(machines)}."
    if loads:
        span = f"{min(loads):.1f}" if min(loads) == max(loads) else f"{min(loads):.1f} to {max(loads):.1f}"
        text += f" Load {span}; where that is above the number of cores, speeds are too low."
    return text if len(machines) == 1 else f"{text} Speeds of unlike machines do not compare."


def _versions(records: Sequence[ScoreRecord]) -> str:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record.run.get("versions", {}).items():
            found.setdefault(package, {})[str(version)] = None
    listed = ", ".join(f"{package} {' and '.join(versions)}" for package, versions in found.items())
    return f"Versions: {listed}." if listed else ""


def _systems(records: Sequence[ScoreRecord], names: Sequence[str]) -> Table:
    first: dict[str, ScoreRecord] = {}
    for name, record in zip(names, records, strict=True):
        first.setdefault(name, record)
    rows = []
    for name, record in first.items():
        spec, engine = record.spec or {}, record.engine
        options = dict(spec.get("options", {})) | {
            key: spec[key] for key, usual in SHAPING.items() if spec.get(key, usual) != usual
        }
        searched = "all vectors compared" if engine is None else engine["name"]
        backbone = str(spec.get("backbone", ""))
        backbone = Path(backbone).name if Path(backbone).is_absolute() else backbone
        shown = [name, str(spec.get("strategy", "")), backbone, _plain(options), searched]
        rows.append([Cell(text) for text in (*shown, record.variant or record.revision)])
    heads = ["system", "strategy", "backbone", "options", "searched by", "revision"]
    return Table(heads, rows, texts=len(heads))


def _plain(options: dict[str, object]) -> str:
    listed = ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in options.items()
        if value not in (None, [], "")
    )
    return listed if len(listed) <= LONGEST else f"{listed[: LONGEST - 1]}…"


def _prompts(records: Sequence[ScoreRecord], names: Sequence[str]) -> list[Block]:
    """Return which texts were put in front, by system and task."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, record in zip(names, records, strict=True):
        if record.prompts:
            key = (name, record.prompts.get("query", ""), record.prompts.get("document", ""))
            groups.setdefault(key, []).append(record.task)
    if not groups:
        return [Text("None: no text was put in front of queries or documents.")]
    counts = {name: names.count(name) for name in names}
    rows = []
    for (name, query, document), tasks in groups.items():
        where = "all" if len(tasks) == counts[name] else ", ".join(tasks)
        rows.append([Cell(text) for text in (name, where, *map(_quoted, (query, document)))])
    heads = ["system", "tasks", "in front of queries", "in front of documents and other texts"]
    return [Text("Systems and tasks that are not listed had none."), Table(heads, rows, texts=4)]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
