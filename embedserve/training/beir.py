"""Read BEIR folders: corpus.jsonl, queries.jsonl, and relevance judgements in qrels/SPLIT.tsv."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from pathlib import Path

from embedserve.data.readers import corpus_file, read_records
from embedserve.data.records import Record
from embedserve.data.text_files import decoded_lines, opened
from embedserve.errors import InputError


def judged_texts(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yield each query with each of its relevant documents: a score above 0 in ``qrels/SPLIT.tsv``.

    Raises:
        InputError: A file is missing, or a line is invalid. There is no fallback to another split, which a benchmark
            may score with.
    """
    queries_file = next(
        (path for path in (folder / "queries.jsonl", folder / "queries.jsonl.gz") if path.exists()), None
    )
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if not splits or queries_file is None or not corpus_file(folder).is_file():
        message = f"{folder} is not a BEIR folder, which needs corpus.jsonl, queries.jsonl and qrels/train.tsv"
        raise InputError(message, field="data")
    if split not in splits:
        others = " or ".join(f"{folder}:{name}" for name in splits)
        message = f"{folder} has no qrels/{split}.tsv; to use another split, name it:"
        raise InputError(f"{message} {others}", field="data")
    queries, documents = _texts_of(read_records(queries_file, "jsonl")), corpus_texts(folder)
    for where, query, document, gain in _read_qrels(folder / "qrels" / f"{split}.tsv", queries):
        if query not in queries or document not in documents:
            missing = f"query {query}" if query not in queries else f"document {document}"
            raise InputError(
                f"{where}: {missing} does not exist; remove the line or copy the folder again", field="data"
            )
        if gain > 0 and queries[query] and documents[document]:
            yield queries[query], documents[document]


def corpus_texts(folder: Path) -> dict[str, str]:
    """Return title and text of each document, by id."""
    return _texts_of(read_records(folder, "beir"), "title")


def _texts_of(records: Iterator[Record], title: str = "") -> dict[str, str]:
    """Return the text of each record by id, after the value of the field ``title``."""
    texts = {}
    for record in records:
        for name in ("_id", "text"):
            if record.values.get(name) is None:
                present = ", ".join(record.values) or "none"
                message = f"{record.where} has no {name}; each line needs an _id and a text; its fields: {present}"
                raise InputError(message, field="data")
        texts[str(record.values["_id"])] = f"{record.values.get(title) or ''} {record.values['text']}".strip()
    return texts


def _read_qrels(path: Path, queries: Container[str]) -> Iterator[tuple[str, str, str, float]]:
    """Yield location, query, document and score of each line; the first line may be a header."""
    with opened(path) as stream:
        for number, line in enumerate(decoded_lines(stream, str(path)), start=1):
            where, values = f"{path}, line {number}", [value.strip() for value in line.rstrip("\r\n").split("\t")]
            if values == [""]:
                continue
            if len(values) != 3:
                message = f"{where}: {len(values)} values; a line needs query, document and score, separated by tabs"
                raise InputError(message, field="data")
            try:
                gain = float(values[2])
            except ValueError:
                gain = math.nan
            if math.isfinite(gain):
                yield where, values[0], values[1], gain
            elif number > 1 or values[0] in queries:
                raise InputError(
                    f"{where}: the score must be a number, got {values[2]!r}; correct the line", field="data"
                )
