"""Engines over token vectors of real text: recall against exact MaxSim, nDCG@10, time of a query, build time, bytes.

python -m benchmarks.indexes.late_interaction_search --data EVAL_DIR [--sets squad-dev scifact] [--queries 300] [--only
NAME…] [--keep DIR]
python -m benchmarks.indexes.late_interaction_search --data EVAL_DIR --texts TRAIN_DIR/text --documents 50000

The token vectors are those of a multi-vector encoder (nano's ColBERT); ``--keep`` keeps them for the next run.
``--texts`` adds passages of other texts to the documents of a set, so that more have to be searched. One query and one
thread at a time, and times of the processor, so that other jobs on the machine count for little; recall@k is the share
of exact MaxSim's best k that an engine returns among its own best k. Bytes are those of the saved index, the token
vectors included, for each document.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.common.encoders import load_encoder
from benchmarks.common.eval_sets import RetrievalSet, read_retrieval, some_queries
from benchmarks.common.ir_metrics import ndcg_of_rows
from benchmarks.common.machine import describe
from benchmarks.indexes.dense_search import read_passages
from benchmarks.indexes.late_interaction_engines import ENGINES, K, Search, exact_index
from embedserve import EmbedserveError
from embedserve.types import TokenEmbeddings


def measure(search: Search, queries: TokenEmbeddings) -> tuple[list[np.ndarray], float, float]:
    """Return the rows of each query, best first, and the median and the 99th percentile of the time of one, in ms."""
    rows, times = [], []
    for number in [*range(min(5, len(queries))), *range(len(queries))]:  # the first ones twice: a warm-up
        query = _one(queries, number)
        began = time.process_time()
        found = search(query)
        times.append(1e3 * (time.process_time() - began))
        rows.append(found.of(0)[0])
    warm = len(rows) - len(queries)
    return rows[warm:], float(np.median(times[warm:])), float(np.percentile(times[warm:], 99))


def exact_rows(documents: TokenEmbeddings, queries: TokenEmbeddings) -> list[np.ndarray]:
    """Return the best `K` rows of each query by exact MaxSim."""
    index = exact_index(documents)
    return [index.search(_one(queries, number), K).of(0)[0] for number in range(len(queries))]


def recall(found: list[np.ndarray], truth: list[np.ndarray], k: int) -> float:
    """Return the share of the true best ``k`` rows among the first ``k`` found."""
    return float(np.mean([len(set(a[:k]) & set(b[:k])) / len(b[:k]) for a, b in zip(found, truth, strict=True)]))


def _one(tokens: TokenEmbeddings, number: int) -> TokenEmbeddings:
    span = slice(tokens.offsets[number], tokens.offsets[number + 1])
    return TokenEmbeddings(
        np.ascontiguousarray(tokens.vectors[span]),
        np.array([0, span.stop - span.start], dtype=np.int64),
        tokens.token_ids[span],
        tokens.tokens[number : number + 1],
        tokens.truncated[number : number + 1],
    )


def encoded(encoder: str, texts: list[str], task: str, path: Path | None) -> TokenEmbeddings:
    """Return the token vectors of ``texts``, from ``path`` where they have been kept."""
    fields = ("vectors", "offsets", "token_ids", "tokens", "truncated")
    if path is not None and path.is_file():
        with np.load(path) as kept:
            return TokenEmbeddings(kept["vectors"].astype(np.float32), *(kept[name] for name in fields[1:]))
    found = load_encoder(encoder).encode(texts, "query" if task == "query" else "document").multi
    if found is None:
        raise SystemExit(f"{encoder} makes no token vectors; give a multi-vector encoder")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(found, name) for name in fields}
        np.savez(path, **{**values, "vectors": found.vectors.astype(np.float16)})
    return found


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes.late_interaction_search", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--sets", nargs="+", default=["squad-dev", "scifact"], help="folders below retrieval/")
    parser.add_argument("--encoder", default="colbert", help="a multi-vector encoder")
    parser.add_argument("--queries", type=int, default=300, help="queries of each set")
    parser.add_argument("--texts", type=Path, help="folder of *.jsonl.gz with further texts")
    parser.add_argument("--documents", type=int, default=0, help="documents of a set and of --texts together")
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="engines to measure")
    parser.add_argument("--keep", type=Path, help="folder that keeps token vectors for the next run")
    args = parser.parse_args()
    if args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; give the folder with retrieval/")
    print(describe(), flush=True)
    for name in args.sets:
        data = some_queries(read_retrieval(args.data / "retrieval" / name), args.queries)
        missing = max(0, args.documents - len(data.documents)) if args.texts else 0
        documents = data.documents + (read_passages(args.texts, missing) if missing else [])
        kept = None if args.keep is None else args.keep / f"{name}-{len(documents)}"
        try:
            tokens = encoded(args.encoder, documents, "document", kept and kept.with_suffix(".documents.npz"))
            queries = encoded(
                args.encoder, data.queries, "query", kept and kept.with_suffix(f".{len(data.queries)}queries.npz")
            )
        except EmbedserveError as error:
            parser.error(error.message)
        report(name, data, tokens, queries, args.only)


def report(
    name: str, data: RetrievalSet, documents: TokenEmbeddings, queries: TokenEmbeddings, engines: list[str]
) -> None:
    """Measure ``engines`` on one set and print a line for each effort."""
    tokens, d = documents.vectors.shape
    print(f"\n{name}: {len(documents):,} documents, {tokens:,} token vectors of {d}, {len(queries):,} queries")
    print(f"{'engine':34}{'effort':>17}  r@10   r@100  nDCG@10  p50 ms   p99 ms  build s  bytes/doc", flush=True)
    with threadpool_limits(1):
        torch.set_num_threads(1)
        truth = exact_rows(documents, queries)
        for engine in engines:
            began = time.process_time()
            try:
                built = ENGINES[engine](documents)
            except EmbedserveError as error:
                print(f"{engine:34} n/a: {error.message}", flush=True)
                continue
            seconds = time.process_time() - began
            for effort, search in built.searches.items():
                rows, p50, p99 = measure(search, queries)
                shares = f"{recall(rows, truth, 10):.3f}  {recall(rows, truth, 100):.3f}"
                shares += f"  {ndcg_of_rows(rows, data):7.2f}"
                each = built.size / len(documents)
                print(f"{engine:34}{effort:>17}  {shares}{p50:8.2f}{p99:9.2f}{seconds:9.1f}{each:11,.0f}", flush=True)


if __name__ == "__main__":
    main()
