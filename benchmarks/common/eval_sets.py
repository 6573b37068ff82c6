"""Readers of local evaluation sets: STS as tab-separated files, retrieval in BEIR layout."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class RetrievalSet:
    """A corpus, its queries and the judged relevance of documents to them."""

    document_ids: list[str]
    documents: list[str]  # title and text; a dash where both are empty
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]  # query id -> document id -> gain


def read_retrieval(folder: Path) -> RetrievalSet:
    """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv``; only judged queries are kept."""
    corpus = [json.loads(line) for line in _lines(folder / "corpus.jsonl")]
    queries = [json.loads(line) for line in _lines(folder / "queries.jsonl")]
    qrels: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        next(rows)
        for query_id, document_id, gain in rows:
            qrels.setdefault(query_id, {})[document_id] = int(gain)
    judged = [query for query in queries if query["_id"] in qrels]
    return RetrievalSet(
        document_ids=[document["_id"] for document in corpus],
        documents=[f"{document.get('title', '')} {document['text']}".strip() or "-" for document in corpus],
        query_ids=[query["_id"] for query in judged],
        queries=[query["text"] for query in judged],
        qrels=qrels,
    )


def some_queries(data: RetrievalSet, count: int) -> RetrievalSet:
    """Return ``data`` with ``count`` of its queries, evenly spread, or all that it has."""
    step = max(1, len(data.queries) // count)
    return replace(data, query_ids=data.query_ids[::step][:count], queries=data.queries[::step][:count])


def read_sts(folder: Path) -> tuple[list[float], list[str], list[str]]:
    """Read ``test.tsv``: gold scores, first sentences, second sentences."""
    rows = [line.split("\t") for line in _lines(folder / "test.tsv")]
    rows = [row for row in rows if row[0].replace(".", "", 1).isdigit()]
    return [float(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]
