"""Recall against speed, build time and bytes of indexes of dense vectors; one query and one thread at a time.

python -m benchmarks.indexes.dense_search --vectors DOCUMENTS.npy [--queries QUERIES.npy] [--count N]
python -m benchmarks.indexes.dense_search --data FOLDER [--count 20000] [--keep FOLDER]
python -m benchmarks.indexes.dense_search --judged SET [--data FOLDER --count N] --part dimensions
python -m benchmarks.indexes.dense_search … --part kinds|filters|dimensions

FOLDER holds `*.jsonl.gz` of {"text"}; passages are runs of 40 words, and a query is the middle 16 words of a passage
that is not in the index. The truth is brute force in numpy. Every kind is searched at several efforts, a line for each.
Times are of the processor, so that other jobs on the machine count for little; QPS is one over the median time of a
query. Bytes are those of the written index.

`kinds` measures indexes next to usearch, where it can be imported. `filters` lets a share of the rows through: that is
how `faiss_defaults.SCAN_BELOW` was chosen. `dimensions` takes d, d/2, d/4 and d/8 of nano's vectors by EmbedFilter;
with a judged SET in BEIR layout, whose documents stand before the passages, it says nDCG@10 too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.common.eval_sets import RetrievalSet, read_retrieval, some_queries
from benchmarks.common.ir_metrics import ndcg_of_rows
from benchmarks.common.machine import describe
from embedserve import Encoder
from embedserve.spec import parse_spec
from indexing import ExactIndex, FaissIndex, build_index
from indexing.base import Hits, unit
from indexing.engines.faiss_defaults import codes_for, lists_for, resolve_kind
from indexing.engines.faiss_index import import_faiss

WORDS, QUERY = 40, slice(12, 28)
QUERIES = 1000
K = 10
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.002)
Search = Callable[[np.ndarray], np.ndarray]  # one query (1, d) to its rows


def read_passages(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` passages of `WORDS` words from the texts in ``folder``, a fixed random choice of all."""
    found = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                words = json.loads(line)["text"].split()
                found += [words[start : start + WORDS] for start in range(0, len(words) - WORDS + 1, WORDS)]
    if len(found) < count:
        raise SystemExit(f"{folder} has {len(found):,} passages of {WORDS} words, fewer than {count:,}")
    return [" ".join(words) for words in random.Random(seed).sample(found, count)]


def embed_passages(folder: Path, count: int, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of ``count`` passages (N, d), and of queries from `QUERIES` others (Q, d)."""
    passages = read_passages(folder, count + QUERIES)
    encoder = Encoder.load(model)
    queries = [" ".join(text.split()[QUERY]) for text in passages[count:]]
    return encoder.embed(passages[:count]).vectors, encoder.embed(queries, "query").vectors


def embed_judged(data: RetrievalSet, folder: Path | None, count: int, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of a set's documents and, up to ``count``, of passages (N, d), and of its queries (Q, d)."""
    others = read_passages(folder, max(0, count - len(data.documents))) if folder is not None else []
    encoder = Encoder.load(model)
    return encoder.embed([*data.documents, *others]).vectors, encoder.embed(data.queries, "query").vectors


def recall(found: list[np.ndarray], truth: Hits) -> float:
    """Return the share of the true first `K` rows that were found."""
    return float(np.mean([len(set(rows[:K]) & set(truth.of(q)[0])) / K for q, rows in enumerate(found)]))


def timed(search: Search, queries: np.ndarray) -> tuple[list[np.ndarray], float, float]:
    """Return the rows of each query and the median and 99th percentile of the time of one, in ms."""
    for query in queries[:20]:
        search(query[None])
    found, times = [], []
    for query in queries:
        began = time.process_time()
        rows = search(query[None])
        times.append(1000 * (time.process_time() - began))
        found.append(rows)
    return found, float(np.median(times)), float(np.percentile(times, 99))


def rows_of(index: FaissIndex, query: np.ndarray, **effort: Any) -> np.ndarray:
    """Return the rows that one query (1, d) finds."""
    return index.search(query, K, **effort).of(0)[0]


def usearch_rows(graph: Any, query: np.ndarray) -> np.ndarray:
    """Return the rows that one query (1, d) finds in a usearch index."""
    rows: np.ndarray = graph.search(query[0], K, threads=1).keys
    return rows


def kinds_for(count: int, dim: int) -> dict[str, list[dict[str, Any]]]:
    """Return the kinds to measure and the efforts of each."""
    lists = lists_for(count)
    probes: list[dict[str, Any]] = [{"nprobe": n} for n in (16, 32, 64, 128)]
    refined = [{"nprobe": n, "refine": r} for n, r in ((16, 10), (32, 10), (64, 10), (64, 20), (128, 20), (256, 20))]
    scanned: list[dict[str, Any]] = [{"refine": r} for r in (5, 10, 20, 40)]
    graph: list[dict[str, Any]] = [{"ef_search": ef} for ef in (16, 32, 64, 128, 256)]
    return {
        "Flat": [{}],
        "SQ8": [{}],
        f"{codes_for(dim)},RFlat": scanned,
        resolve_kind("fastscan", count, dim): scanned,
        "RaBitQfs,RFlat": scanned,
        f"IVF{lists},Flat": probes,
        f"IVF{lists},SQ8": probes,
        f"IVF{lists},{codes_for(dim)},RFlat": refined,
        f"IVF{lists},RaBitQ": probes[1:3],
        f"IVF{lists},RaBitQfs,RFlat": refined,
        "HNSW32": graph,
        "HNSW32,SQ8": graph,
    }


def measure_kinds(vectors: np.ndarray, queries: np.ndarray, only: str) -> None:
    """Print a line for each kind and effort."""
    truth = ExactIndex(vectors).search(queries, K)
    print(f"{'kind':34} {'effort':24} {'recall@10':>9} {'QPS':>8} {'ms':>7} {'p99 ms':>7} {'build s':>8} {'MB':>7}")

    def line(kind: str, effort: str, search: Search, built: float, size: float) -> None:
        found, median, slow = timed(search, queries)
        numbers = f"{recall(found, truth):9.4f} {1000 / median:8.0f} {median:7.3f} {slow:7.3f}"
        print(f"{kind:34} {effort:24} {numbers} {built:8.1f} {size / 1e6:7.1f}", flush=True)

    for kind, efforts in kinds_for(*vectors.shape).items():
        if only not in kind:
            continue
        began = time.process_time()
        index = build_index(vectors, kind)
        built = time.process_time() - began
        size = written(index)
        for effort in efforts:
            name = " ".join(f"{key}={value}" for key, value in effort.items())
            line(kind, name, partial(rows_of, index, **effort), built, size)
    for dtype in ("f32", "i8"):
        if only not in f"usearch {dtype}":
            continue
        try:
            usearch = import_module("usearch.index")
        except ImportError as error:
            print(f"{'usearch ' + dtype:34} n/a: {error}")
            continue
        began = time.process_time()
        graph = usearch.Index(ndim=vectors.shape[1], metric="cos", dtype=dtype, connectivity=32, expansion_add=128)
        graph.add(np.arange(len(vectors)), vectors, threads=1)
        built = time.process_time() - began
        size = len(graph.save() or b"")
        for ef in (16, 64, 128, 256):
            graph.expansion_search = ef
            line(f"usearch {dtype}", f"ef_search={ef}", partial(usearch_rows, graph), built, size)


def written(index: FaissIndex) -> int:
    """Return the bytes of an index on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        index.write(Path(folder) / "index.faiss")
        return (Path(folder) / "index.faiss").stat().st_size


def measure_filters(vectors: np.ndarray, queries: np.ndarray, only: str) -> None:
    """Print, for shares of the rows let through, the scan of all of them beside the index's own filter."""
    rng = np.random.default_rng(0)
    print(f"{'kind':34} {'allowed':>8} {'scan ms':>8} {'recall@10':>9} {'index ms':>8} {'recall@10':>9}")
    for kind in ("flat", "fastscan", "ivf", "hnsw"):
        if only not in kind:
            continue
        index = build_index(vectors, kind)
        for share in SHARES:
            allowed = np.sort(rng.choice(len(vectors), max(K, int(share * len(vectors))), replace=False))
            truth = ExactIndex(vectors).search(queries, K, allowed)
            numbers = []
            for scan_below in (len(vectors), -1):
                search = partial(rows_of, index, allowed=allowed, scan_below=scan_below)
                found, median, _ = timed(search, queries)
                numbers.append(f"{median:8.3f} {recall(found, truth):9.4f}")
            print(f"{index.kind:34} {len(allowed):8} {' '.join(numbers)}", flush=True)


def shortened(vectors: np.ndarray, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield nano's documents and queries at d, d/2, d/4 and d/8 by EmbedFilter, one matrix after the pooling."""
    yield vectors, queries
    for ratio in (2, 4, 8):
        spec = parse_spec(f"embedfilter:ratio={ratio}")
        matrix = next(m for m in Encoder.load(spec).model if hasattr(m, "linear")).linear.weight.detach().numpy()
        yield tuple(unit(part @ matrix.T) for part in (vectors, queries))  # type: ignore[misc]


def measure_dimensions(vectors: np.ndarray, queries: np.ndarray, only: str, judged: RetrievalSet | None = None) -> None:
    """Print bytes, time, recall of the whole vectors' neighbours and, where they are judged, nDCG@10 at each width."""
    truth = ExactIndex(vectors).search(queries, K)
    print(f"{'kind':34} {'d':>4} {'MB':>8} {'ms':>8} {'recall@10 of all d':>18}{'  nDCG@10' if judged else ''}")
    for documents, asked in shortened(vectors, queries):
        for kind in ("flat", "fastscan"):
            if only not in kind:
                continue
            index = build_index(documents, kind)
            found, median, _ = timed(partial(rows_of, index), asked)
            numbers = f"{written(index) / 1e6:8.1f} {median:8.3f} {recall(found, truth):18.4f}"
            if judged is not None:
                numbers += f"{ndcg_of_rows(found, judged):9.2f}"
            print(f"{index.kind:34} {documents.shape[1]:4} {numbers}", flush=True)


PARTS = ("kinds", "filters", "dimensions")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes.dense_search", description=__doc__)
    parser.add_argument("--vectors", type=Path, help="documents, a .npy file (N, d)")
    parser.add_argument("--data", type=Path, help="a folder of texts, *.jsonl.gz")
    parser.add_argument("--judged", type=Path, help="a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    parser.add_argument(
        "--queries", type=Path, help="queries, a .npy file. Default: the last documents, removed from the index"
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, help="number of documents. Default: 20,000 of --data, all of --vectors")
    parser.add_argument("--keep", type=Path, help="a folder to write documents.npy and queries.npy to")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--only", default="", help="kinds that contain this text")
    args = parser.parse_args()
    if args.vectors is None and args.data is None and args.judged is None:
        parser.error("give --vectors, --data or --judged")
    if args.part in ("dimensions", "all") and args.model != "nano":
        parser.error("part dimensions filters nano's vectors: leave --model out, or give another --part")
    judged = None if args.judged is None else some_queries(read_retrieval(args.judged), QUERIES)
    if args.vectors is not None:
        vectors = np.load(args.vectors)
        queries = np.load(args.queries) if args.queries else vectors[-QUERIES:]
        vectors = vectors[: args.count] if args.queries else vectors[:-QUERIES][: args.count]
        queries = queries[:QUERIES]
    elif judged is not None:
        vectors, queries = embed_judged(judged, args.data, args.count or 20_000, args.model)
    else:
        vectors, queries = embed_passages(args.data, args.count or 20_000, args.model)
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
        np.save(args.keep / "documents.npy", vectors)
        np.save(args.keep / "queries.npy", queries)
    faiss = import_faiss()
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy and faiss
    print(f"{len(vectors):,} vectors of {vectors.shape[1]}, {len(queries)} queries; faiss {faiss.__version__}")
    print(describe())
    for part in PARTS if args.part == "all" else (args.part,):
        print(f"\n{part}")
        if part == "kinds":
            measure_kinds(vectors, queries, args.only)
        elif part == "filters":
            measure_filters(vectors, queries, args.only)
        else:
            measure_dimensions(vectors, queries, args.only, judged)


if __name__ == "__main__":
    main()
