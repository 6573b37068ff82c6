"""Training pairs and triplets: from JSON Lines, CSV, Parquet, BEIR folders and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import InputError, NotFoundError
from embedserve.readers import Record, read_beir, read_records

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
MAX_DEV = 1000  # pairs; more cost time at every evaluation and change little


@dataclass(frozen=True)
class Fields:
    """The names under which records hold their texts; the first that a record has counts."""

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
    """Read the pairs of all sources; the same sources and seed give the same list.

    Args:
        sources: Files (``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, the first three also ``.gz``), BEIR folders, or
            names of Hugging Face datasets, ``owner/name`` or ``owner/name:split``.
        fields: The names of the fields.
        limit: At most so many pairs of each source, drawn at random.
        seed: Draws them.

    Raises:
        InputError: A record lacks a field or has another kind of value; file and line are named.
        NotFoundError: There is no such source.
    """
    found: list[TrainingPair] = []
    for source in sources:
        pairs = list(_read_source(source, fields or Fields()))
        if not pairs:
            raise InputError(f"{source} holds no pairs", field="data")
        if limit is not None and len(pairs) > limit:
            kept = sorted(random.Random(seed).sample(range(len(pairs)), limit))
            pairs = [pairs[place] for place in kept]
        found += pairs
    return list(dict.fromkeys(found))


def _read_source(source: str, fields: Fields) -> Iterator[TrainingPair]:
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _read_beir_pairs(path)
    elif path.exists():
        suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        if suffix.lower() not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise InputError(f"{path} is of no kind that holds pairs; there are {known}, and .gz", field="data")
        for record in read_records(path, SUFFIXES[suffix.lower()]):
            yield _pair_of(record, fields)
    elif "/" in source and not source.startswith((".", "/", "~")) and not Path(source).suffix:
        yield from _read_hub(source, fields)
    else:
        raise NotFoundError(f"no file or folder {source}", field="data")


def _pair_of(record: Record, fields: Fields) -> TrainingPair:
    """Return the pair that a record holds."""
    query, positive = (_text_of(record, names) for names in (fields.query, fields.positive))
    name = next((name for name in fields.negatives if record.values.get(name)), None)
    negatives = record.values[name] if name else []
    negatives = [negatives] if isinstance(negatives, str) else negatives
    if not isinstance(negatives, list) or not all(isinstance(text, str) and text.strip() for text in negatives):
        raise InputError(f"{record.where}: {name} must be a text or a list of texts", field="data")
    return TrainingPair(query, positive, tuple(negatives))


def _text_of(record: Record, names: tuple[str, ...]) -> str:
    name = next((name for name in names if record.values.get(name) is not None), None)
    if name is None:
        has = ", ".join(record.values) or "nothing"
        raise InputError(f"{record.where} has none of the fields {', '.join(names)}; it has {has}", field="data")
    value = record.values[name]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{record.where}: {name} must be a text, got {value!r}", field="data")
    return value


def _read_beir_pairs(folder: Path) -> Iterator[TrainingPair]:
    """Yield each judged pair of gain above 0; from ``qrels/train.tsv`` where there is one."""
    judged = [folder / "qrels" / f"{split}.tsv" for split in ("train", "dev", "test")]
    qrels = next((path for path in judged if path.is_file()), None)
    queries_file = next(
        (path for path in (folder / "queries.jsonl", folder / "queries.jsonl.gz") if path.exists()), None
    )
    if qrels is None or queries_file is None:
        message = f"{folder} is no BEIR folder: it needs corpus.jsonl, queries.jsonl and qrels/train.tsv"
        raise InputError(message, field="data")
    queries = {str(r.values["_id"]): str(r.values["text"]) for r in read_records(queries_file, "jsonl")}
    documents = {
        str(r.values["_id"]): f"{r.values.get('title') or ''} {r.values['text']}".strip() for r in read_beir(folder)
    }
    for record in read_records(qrels, "tsv"):
        query, document, gain = (str(value) for value in list(record.values.values())[:3])
        if query not in queries or document not in documents:
            raise InputError(f"{record.where}: no query {query} or no document {document}", field="data")
        if float(gain) > 0 and documents[document]:
            yield TrainingPair(queries[query], documents[document])


def _read_hub(source: str, fields: Fields) -> Iterator[TrainingPair]:
    """Yield the pairs of a Hugging Face dataset."""
    from datasets import load_dataset

    name, _, split = source.partition(":")
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # what datasets raises depends on what it could not reach
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"no file or folder {source}, and no dataset of that name could be loaded ({reason})"
        raise NotFoundError(message, field="data") from None
    for number, values in enumerate(rows, start=1):
        yield _pair_of(Record(f"{source}, row {number}", number, dict(values)), fields)


def split_dev(pairs: list[TrainingPair], share: float) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Return the pairs to train on and those to judge by, at most `MAX_DEV`; a positive is never in both."""
    threshold = int(share * 2**32)

    def is_dev(pair: TrainingPair) -> bool:
        digest = hashlib.blake2b(pair.positive.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") < threshold

    dev = [pair for pair in pairs if is_dev(pair)]
    if len(dev) > MAX_DEV:
        dev = random.Random(0).sample(dev, MAX_DEV)
    return [pair for pair in pairs if not is_dev(pair)], dev


def mine_negatives(pairs: list[TrainingPair], encoder: Any, count: int, margin: float = 0.95) -> list[TrainingPair]:
    """Return ``pairs`` with ``count`` hard negatives each: near texts of other pairs, found by ``encoder``.

    A text counts as an answer too, and is left out, where its similarity is above ``margin`` times that of the
    positive (positive-aware mining, de Souza P. Moreira et al. 2024, section 3.2).
    """
    texts = list(dict.fromkeys(pair.positive for pair in pairs))
    place = {text: number for number, text in enumerate(texts)}
    documents = encoder.embed(texts, "document").vectors
    answers: dict[str, set[int]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(place[pair.positive])
    found = []
    for start in range(0, len(pairs), 1024):
        block = pairs[start : start + 1024]
        scores = encoder.embed([pair.query for pair in block], "query").vectors @ documents.T
        near = np.argpartition(-scores, min(8 * count + 8, len(texts) - 1), axis=1)[:, : 8 * count + 8]
        for pair, row, candidates in zip(block, scores, near, strict=True):
            limit = margin * row[place[pair.positive]]
            others = [n for n in candidates[np.argsort(-row[candidates])] if n not in answers[pair.query]]
            hard = [texts[n] for n in others if row[n] < limit][:count]
            found.append(replace(pair, negatives=(*pair.negatives, *hard)[:count]))
    return [pair for pair in found if len(pair.negatives) == count]
