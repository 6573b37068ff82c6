"""Read training pairs, triplets and texts from files, BEIR folders and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from embedserve.data.readers import corpus_file, read_records
from embedserve.data.records import Record
from embedserve.errors import InputError, NotFoundError
from embedserve.training.beir import corpus_texts, judged_texts

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
MAX_DEV = 1000  # pairs; more would slow each evaluation and barely change the score
T = TypeVar("T")


@dataclass(frozen=True)
class Fields:
    """Names of the fields that hold the texts; the first one present in a record is used.

    Negatives can also be in numbered fields: ``negative_1``, ``negative_2``.
    """

    query: tuple[str, ...] = ("query", "anchor", "question")
    positive: tuple[str, ...] = ("positive", "pos", "passage", "document")
    negatives: tuple[str, ...] = ("negatives", "negative", "neg", "hard_negatives")


@dataclass(frozen=True)
class TrainingPair:
    """A query, a text that answers it, and texts that do not."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


def read_pairs(
    sources: Sequence[str], fields: Fields | None = None, limit: int | None = None, seed: int = 0
) -> list[TrainingPair]:
    """Read the distinct pairs of all sources; the result is deterministic for the same sources and seed.

    Args:
        sources: Files (``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, the first three also ``.gz``), BEIR folders, or
            names of Hugging Face datasets, ``owner/name``; the last two accept ``:split``. Default: ``train``.
        fields: Names of the fields.
        limit: Maximum number of pairs per source, sampled at random.
        seed: Random seed of the sample.

    Raises:
        InputError: A record lacks a field, or its value has the wrong type; the message names file and line.
        NotFoundError: A source does not exist.
    """
    names = fields or Fields()

    def pairs_of(source: str) -> Iterator[TrainingPair]:
        name, split = source, "train"
        if not Path(source).expanduser().is_dir() and ":" in source:
            name, _, split = source.rpartition(":")
        if (folder := Path(name).expanduser()).is_dir():
            return (TrainingPair(query, document) for query, document in judged_texts(folder, split))
        return (_pair_of(record, names) for record in _records_of(source))

    return _read_all(sources, pairs_of, "pairs", limit, seed)


def read_texts(
    sources: Sequence[str], fields: Fields | None = None, limit: int | None = None, seed: int = 0
) -> list[str]:
    """Read distinct texts: the field ``text`` of each record, or both texts of its pair.

    Arguments and errors are those of `read_pairs`. A BEIR folder yields its corpus, any other folder its .txt and .md
    files; ``limit`` counts records.
    """
    names = fields or Fields()

    def texts_of(record: Record) -> tuple[str, ...]:
        is_pair = any(record.values.get(name) is not None for name in names.query)
        if record.values.get("text") is not None or not is_pair:
            return (_text_of(record, ("text", *names.query)),)
        pair = _pair_of(record, names)
        return (pair.query, pair.positive)

    def records_of(source: str) -> Iterator[tuple[str, ...]]:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            return (texts_of(record) for record in _records_of(source))
        if corpus_file(folder).is_file():
            return ((text,) for text in corpus_texts(folder).values() if text)
        return ((text,) for record in read_records(folder, "folder") if (text := record.values["text"].strip()))

    records = _read_all(sources, records_of, "texts", limit, seed)
    return list(dict.fromkeys(text for texts in records for text in texts))


def _read_all(
    sources: Sequence[str], read: Callable[[str], Iterable[T]], what: str, limit: int | None, seed: int
) -> list[T]:
    """Return the distinct items of all sources, at most ``limit`` sampled from each."""
    items: list[T] = []
    for source in sources:
        batch = list(read(source))
        if not batch:
            raise InputError(f"{source} contains no {what}", field="data")
        if limit is not None and len(batch) > limit:
            rows = sorted(random.Random(seed).sample(range(len(batch)), limit))
            batch = [batch[row] for row in rows]
        items += batch
    return list(dict.fromkeys(items))


def _records_of(source: str) -> Iterator[Record]:
    """Yield the records of a file or of a Hugging Face dataset."""
    path = Path(source).expanduser()
    if path.exists():
        suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        if suffix.lower() not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise InputError(f"{path} has an unsupported format; use one of {known}, optionally .gz", field="data")
        yield from read_records(path, SUFFIXES[suffix.lower()])
    elif "/" in source and not source.startswith((".", "/", "~")) and not Path(source).suffix:
        yield from _read_hub(source)
    else:
        raise NotFoundError(f"no file or folder {source}", field="data")


def _pair_of(record: Record, fields: Fields) -> TrainingPair:
    """Return the pair of a record."""
    query, positive = (_text_of(record, names) for names in (fields.query, fields.positive))
    columns = next(filter(None, (_negative_columns(record, name) for name in fields.negatives)), [])
    negatives: list[str] = []
    for name in columns:
        value = record.values[name]
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"{record.where}: {name} must be a text or a list of texts", field="data")
        negatives += texts
    return TrainingPair(query, positive, tuple(negatives))


def _negative_columns(record: Record, name: str) -> list[str]:
    """Return the non-empty fields of a record named ``name``, ``name_1``, ``name_2`` and so on."""
    numbers = {field.removeprefix(f"{name}_"): field for field in record.values if field.startswith(f"{name}_")}
    numbered = [numbers[number] for number in sorted(filter(str.isdecimal, numbers), key=int)]
    return [field for field in (name, *numbered) if record.values.get(field)]


def _text_of(record: Record, names: tuple[str, ...]) -> str:
    name = next((name for name in names if record.values.get(name) is not None), None)
    if name is None:
        present = ", ".join(record.values) or "none"
        message = f"{record.where} has none of the fields {', '.join(names)}; its fields: {present}"
        raise InputError(message, field="data")
    value = record.values[name]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{record.where}: {name} must be a text, got {value!r}", field="data")
    return value


def _read_hub(source: str) -> Iterator[Record]:
    """Yield the records of a Hugging Face dataset."""
    from datasets import load_dataset

    name, _, split = source.partition(":")
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises many types, depending on the failure
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"no file or folder {source}, and no dataset of that name could be loaded ({reason})"
        raise NotFoundError(message, field="data") from None
    for number, values in enumerate(rows, start=1):
        yield Record(f"{source}, row {number}", number, dict(values))


def split_dev(pairs: list[TrainingPair], share: float) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Split into training and evaluation pairs, at most `MAX_DEV` of them; no positive is in both."""
    draws = [int.from_bytes(hashlib.blake2b(pair.positive.encode(), digest_size=4).digest(), "big") for pair in pairs]
    drawn = sorted(draw for draw in draws if draw < int(share * 2**32))
    threshold = drawn[MAX_DEV] if len(drawn) > MAX_DEV else int(share * 2**32)  # equal draws stay on one side
    drawn_pairs = list(zip(pairs, draws, strict=True))
    training = [pair for pair, draw in drawn_pairs if draw >= threshold]
    return training, [pair for pair, draw in drawn_pairs if draw < threshold]


def mine_negatives(pairs: list[TrainingPair], encoder: Any, count: int, margin: float = 0.95) -> list[TrainingPair]:
    """Return ``pairs`` with ``count`` hard negatives each: the most similar positives of other queries.

    A text at least ``margin`` times as similar as the positive is treated as a false negative and skipped
    (positive-aware mining, de Souza P. Moreira et al. 2024, section 3.2). Pairs with fewer negatives are dropped.
    """
    texts = list(dict.fromkeys(pair.positive for pair in pairs))
    row_of = {text: number for number, text in enumerate(texts)}
    documents = encoder.embed(texts, "document").vectors
    answers: dict[str, set[int]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(row_of[pair.positive])
    mined = []
    for start in range(0, len(pairs), 1024):
        block = pairs[start : start + 1024]
        scores = encoder.embed([pair.query for pair in block], "query").vectors @ documents.T
        near = np.argpartition(-scores, min(8 * count + 8, len(texts) - 1), axis=1)[:, : 8 * count + 8]
        for pair, row, candidates in zip(block, scores, near, strict=True):
            limit = margin * row[row_of[pair.positive]]
            others = [n for n in candidates[np.argsort(-row[candidates])] if n not in answers[pair.query]]
            hard = [texts[n] for n in others if row[n] < limit][:count]
            mined.append(replace(pair, negatives=(*pair.negatives, *hard)[:count]))
    return [pair for pair in mined if len(pair.negatives) == count]
