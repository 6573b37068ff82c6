"""Engines over token vectors of real text: recall against exact MaxSim, nDCG@10, time of a query, build time, bytes.

python -m benchmarks.multi_index --data EVAL_DIR [--sets squad-dev scifact] [--queries 300] [--only NAME…] [--keep DIR]
python -m benchmarks.multi_index --data EVAL_DIR --texts TRAIN_DIR/text --documents 50000

The token vectors are those of a multi-vector encoder (nano's ColBERT); ``--keep`` keeps them for the next run.
``--texts`` adds passages of other texts to the documents of a set, so that more have to be searched. One query and one
thread at a time; recall@k is the share of exact MaxSim's best k that an engine returns among its own best k. Bytes are
those of the saved index, the token vectors included, for each document.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.datasets import RetrievalSet, read_retrieval
from benchmarks.dense_index import read_passages
from benchmarks.encoders import load_encoder
from benchmarks.machine import describe
from benchmarks.metrics import ndcg
from embedserve import EmbedserveError
from embedserve.types import TokenEmbeddings
from indexing import build_index
from indexing.base import Hits
from indexing.exact_multi import ExactMultiIndex
from indexing.fde_config import FdeConfig
from indexing.muvera import MuveraIndex

K = 100
Search = Callable[[TokenEmbeddings], Hits]  # one query to its hits


@dataclass(frozen=True)
class Engine:
    """A built index.

    Attributes:
        searches: By a name of the effort, how to search.
        size: Bytes as saved.
    """

    searches: dict[str, Search]
    size: int


def saved_bytes(index: ExactMultiIndex | MuveraIndex) -> int:
    """Return the bytes of the files that ``index`` is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        return sum(path.stat().st_size for path in (Path(folder) / "index").rglob("*") if path.is_file())


def exact(documents: TokenEmbeddings, codec: str = "float16", pooling: int = 1) -> Engine:
    """Return the index that compares every document."""
    index = ExactMultiIndex(documents.vectors.shape[1], codec=codec, pooling=pooling)
    index.add(np.arange(len(documents)), documents)
    return Engine({"all": lambda query: index.search(query, K)}, saved_bytes(index))


def muvera(documents: TokenEmbeddings, codes: str, efforts: tuple[int, ...], **fields: object) -> Engine:
    """Return a MUVERA index that is searched with several numbers of candidates."""
    dim = documents.vectors.shape[1]
    values = {"inner_dim": min(16, dim), "centred": True, **fields}
    tau = values.pop("tau", None)
    index = MuveraIndex(dim, FdeConfig(dim, **values), codes=codes, exact_below=1)
    index.add(np.arange(len(documents)), documents)

    def search(count: int) -> Search:
        return lambda query: index.search(query, K, candidates=count, tau=tau)

    return Engine({f"{count} candidates": search(count) for count in efforts}, saved_bytes(index))


def pooled(documents: TokenEmbeddings, efforts: tuple[int, ...]) -> Engine:
    """Return a flat faiss index of the mean token vectors, whose best are ranked by MaxSim."""
    tokens = ExactMultiIndex(documents.vectors.shape[1])
    tokens.add(np.arange(len(documents)), documents)
    sums = np.add.reduceat(documents.vectors, documents.offsets[:-1], axis=0)
    means = build_index(sums, "flat")

    def search(count: int) -> Search:
        def found(query: TokenEmbeddings) -> Hits:
            best = means.search(query.vectors.sum(axis=0)[None], count).of(0)[0]
            return tokens.search(query, K, allowed=best)

        return found

    return Engine({f"{count} candidates": search(count) for count in efforts}, saved_bytes(tokens) + sums.nbytes)


EFFORTS = (100, 400, 1000)
ENGINES: dict[str, Callable[[TokenEmbeddings], Engine]] = {
    "exact float16": exact,
    "exact int8": lambda documents: exact(documents, "int8"),
    "exact residual4": lambda documents: exact(documents, "residual4"),
    "exact residual2": lambda documents: exact(documents, "residual2"),
    "exact, token pooling 2": lambda documents: exact(documents, pooling=2),
    "mean-pooled flat": lambda documents: pooled(documents, EFFORTS),
    "muvera Flat": lambda documents: muvera(documents, "Flat", EFFORTS),
    "muvera RaBitQ": lambda documents: muvera(documents, "RaBitQ", EFFORTS),
    "muvera SQ8": lambda documents: muvera(documents, "SQ8", EFFORTS),
    "muvera RaBitQ, not centred": lambda documents: muvera(documents, "RaBitQ", EFFORTS, centred=False),
    "muvera RaBitQ, signs (paper)": lambda documents: muvera(
        documents, "RaBitQ", EFFORTS, centred=False, projection="signs"
    ),
    "muvera RaBitQ, sketch": lambda documents: muvera(documents, "RaBitQ", EFFORTS, projection="sketch"),
    "muvera RaBitQ, 20·2^4·8": lambda documents: muvera(documents, "RaBitQ", EFFORTS, bits=4, inner_dim=8),
    "muvera RaBitQ, 40·2^5·8": lambda documents: muvera(documents, "RaBitQ", EFFORTS, repetitions=40, inner_dim=8),
    "muvera RaBitQ, 10·2^6·16": lambda documents: muvera(documents, "RaBitQ", EFFORTS, repetitions=10, bits=6),
    "muvera RaBitQ, ball carving 0.7": lambda documents: muvera(documents, "RaBitQ", EFFORTS, tau=0.7),
}


def measure(search: Search, queries: TokenEmbeddings) -> tuple[list[np.ndarray], float, float]:
    """Return the rows of each query, best first, and the median and the 99th percentile of the time of one, in ms."""
    rows, times = [], []
    for number in [*range(min(5, len(queries))), *range(len(queries))]:  # the first ones twice: a warm-up
        query = _one(queries, number)
        began = time.perf_counter()
        found = search(query)
        times.append(1e3 * (time.perf_counter() - began))
        rows.append(found.of(0)[0])
    warm = len(rows) - len(queries)
    return rows[warm:], float(np.median(times[warm:])), float(np.percentile(times[warm:], 99))


def recall(found: list[np.ndarray], truth: list[np.ndarray], k: int) -> float:
    """Return the share of the true best ``k`` rows among the first ``k`` found."""
    return float(np.mean([len(set(a[:k]) & set(b[:k])) / len(b[:k]) for a, b in zip(found, truth, strict=True)]))


def quality(found: list[np.ndarray], data: RetrievalSet, names: list[str]) -> float:
    """Return nDCG@10 in per cent over the queries ``names``; further documents, which nobody judged, are no answers."""
    ids = data.document_ids
    ranked = {
        name: [ids[row] if row < len(ids) else f"other {row}" for row in rows[:10]]
        for name, rows in zip(names, found, strict=True)
    }
    return ndcg(ranked, {name: data.qrels[name] for name in names})


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multi_index", description=__doc__)
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
        data = read_retrieval(args.data / "retrieval" / name)
        step = max(1, len(data.queries) // args.queries)
        names, texts = data.query_ids[::step][: args.queries], data.queries[::step][: args.queries]
        missing = max(0, args.documents - len(data.documents)) if args.texts else 0
        documents = data.documents + (read_passages(args.texts, missing) if missing else [])
        kept = None if args.keep is None else args.keep / f"{name}-{len(documents)}"
        try:
            tokens = encoded(args.encoder, documents, "document", kept and kept.with_suffix(".documents.npz"))
            queries = encoded(args.encoder, texts, "query", kept and kept.with_suffix(f".{len(texts)}queries.npz"))
        except EmbedserveError as error:
            parser.error(error.message)
        report(name, data, names, tokens, queries, args.only)


def report(
    name: str,
    data: RetrievalSet,
    names: list[str],
    documents: TokenEmbeddings,
    queries: TokenEmbeddings,
    engines: list[str],
) -> None:
    """Measure ``engines`` on one set and print a line for each effort."""
    tokens, d = documents.vectors.shape
    print(f"\n{name}: {len(documents):,} documents, {tokens:,} token vectors of {d}, {len(queries):,} queries")
    print(f"{'engine':34}{'effort':>17}  r@10   r@100  nDCG@10  p50 ms   p99 ms  build s  bytes/doc", flush=True)
    with threadpool_limits(1):
        torch.set_num_threads(1)
        truth, _, _ = measure(exact(documents).searches["all"], queries)
        for engine in engines:
            began = time.perf_counter()
            try:
                built = ENGINES[engine](documents)
            except EmbedserveError as error:
                print(f"{engine:34} n/a: {error.message}", flush=True)
                continue
            seconds = time.perf_counter() - began
            for effort, search in built.searches.items():
                rows, p50, p99 = measure(search, queries)
                shares = (
                    f"{recall(rows, truth, 10):.3f}  {recall(rows, truth, 100):.3f}  {quality(rows, data, names):7.2f}"
                )
                each = built.size / len(documents)
                print(f"{engine:34}{effort:>17}  {shares}{p50:8.2f}{p99:9.2f}{seconds:9.1f}{each:11,.0f}", flush=True)


if __name__ == "__main__":
    main()
