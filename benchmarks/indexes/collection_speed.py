"""Collections: acknowledged writes beside other stores, searches while another thread writes, filtered searches.

python -m benchmarks.indexes.collection_speed [--documents 20000] [--seconds 4] [--rounds 3] [--part
writes|reads|filters]

Vectors are random directions (d 320, float32), the metadata one number for each document, drawn with a fixed seed.
Times are by the clock, as a caller waits for a disk too; each part says the load beside it, as other programs on the
same cores lengthen them. One thread searches, faiss and numpy have one.

`writes` upserts new documents with given vectors for some seconds, or until the documents are used up, into an empty
store; the stores take turns. Documents are made in each store's own form before the clock starts. What an answer means:
- embedserve: the batch is in the log, whole, and synced (one `fsync`); the time of making segments is part of it;
- qdrant-client's local mode: each document of the batch is a commit of its own in SQLite, which syncs four times; a
  crash can leave half a batch;
- LanceDB: the files of a new version are written, without any sync (seen with strace): a power cut may take it back.
  `merge_insert` replaces documents by id, `add` only appends;
- append + fsync: no store, the bytes of the vectors alone are appended to a file and synced: the bound.
Other stores are measured where they can be imported: pip install --target FOLDER qdrant-client lancedb, and FOLDER in
PYTHONPATH.

`reads` searches a collection while nothing happens, while another thread writes new documents without a pause, and
after it ended, when the collection is larger; for each size of batch, in a new collection each round. The ratios are
those of the 99th percentiles, writing to before and to after, medians over the rounds. Threads take turns at the
interpreter as often as in the service (`api.app.SWITCH_S`), or as `--switch-interval` says in seconds. The last line is
the bound: the same searches while another process, which shares nothing but the machine, appends 1,500 bytes to a file
and syncs them, again and again.

`filters` lets a share of the documents through by a range of the number: recall@10 against brute force in float64, and
the time beside that of a search without a filter, for a filter never seen before and for one seen before.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from api.app import SWITCH_S
from benchmarks.common.machine import describe
from benchmarks.indexes.collection_stores import DIM, STORES, Store, directions, filled, make_documents
from indexing import Collection, Document

K = 10
BATCHES = (1, 32, 1000)
SHARES = (0.001, 0.01, 0.1, 0.9)
QUERIES = 200


def time_writes(store: Store, number: int, batch: int, seconds: float) -> tuple[float, float]:
    """Write new documents, ``number`` at most; return documents per second, and the median ms of a write."""
    times: list[float] = []
    while len(times) < max(1, number // batch) and sum(times) < seconds:
        rows = store.prepare(range(len(times) * batch, (len(times) + 1) * batch))
        began = time.perf_counter()
        store.write(rows)
        times.append(time.perf_counter() - began)
    return batch * len(times) / sum(times), 1000 * statistics.median(times)


def measure_writes(vectors: np.ndarray, seconds: float, rounds: int, batches: Sequence[int] = BATCHES) -> None:
    """Print a line for each size of batch and store: medians over the rounds."""
    print(f"{'batch':>6} {'store':22} {'documents/s':>12} {'ms of a write':>14}")
    for batch in batches:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in STORES}
        missing: dict[str, ImportError] = {}
        for _ in range(rounds):
            for name, make in STORES.items():
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        store = make(Path(folder), vectors)
                    except ImportError as error:
                        missing[name] = error
                        continue
                    with closing(store):
                        found[name].append(time_writes(store, len(vectors), batch, seconds))
        for name, numbers in found.items():
            if name in missing:
                print(f"{batch:6} {name:22} n/a: {missing[name]}")
                continue
            rate, middle = (statistics.median(column) for column in zip(*numbers, strict=True))
            print(f"{batch:6} {name:22} {rate:12.0f} {middle:14.2f}", flush=True)


def search_times(collection: Collection, queries: np.ndarray, seconds: float) -> list[float]:
    """Search one query after the other for so long, each at least once; return the times in ms."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < len(queries) or time.perf_counter() < end:
        query = queries[len(times) % len(queries)]
        began = time.perf_counter()
        collection.search_vectors(query[None], K)
        times.append(1000 * (time.perf_counter() - began))
    return times


def write_until(collection: Collection, batches: Iterator[tuple[Any, Any]], stop: Event, written: list[int]) -> None:
    """Write one batch after the other until ``stop``; note the documents of each."""
    while not stop.is_set():
        documents, vectors = next(batches)
        written.append(collection.upsert(documents, vectors))


SYNCING = """
import os, sys
file, place = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), 0
while True:
    place += os.pwrite(file, bytes(1500), place)
    os.fsync(file)
"""


def measure_beside_syncs(vectors: np.ndarray, ranks: np.ndarray, queries: np.ndarray, seconds: float) -> None:
    """Print the times of searches before and while another process syncs a file."""
    with tempfile.TemporaryDirectory() as folder, filled(Path(folder), "flat", vectors, ranks) as collection:
        search_times(collection, queries[:20], 0)
        before = search_times(collection, queries, seconds)
        with subprocess.Popen([sys.executable, "-c", SYNCING, str(Path(folder, "log"))]) as other:  # noqa: S603
            time.sleep(0.5)
            beside = search_times(collection, queries, seconds)
            other.kill()
    (alone, slow_alone), (together, slow) = (np.percentile(times, (50, 99)) for times in (before, beside))
    print(
        f"{'syncs':>6} {alone:12.2f} {slow_alone:7.2f} {together:12.2f} {slow:7.2f} {'':20} {slow / slow_alone:10.1f}"
    )


def new_batches(vectors: np.ndarray, batch: int) -> Iterator[tuple[list[Document], dict[str, np.ndarray]]]:
    """Yield batches of documents that are not in a `filled` collection, without an end; vectors come again."""
    for start in count(len(vectors), batch):
        numbers = range(start, start + batch)
        yield make_documents(numbers, numbers), {"dense": vectors[np.array(numbers) % len(vectors)]}


def measure_reads(
    vectors: np.ndarray, ranks: np.ndarray, queries: np.ndarray, seconds: float, rounds: int, batches: Sequence[int]
) -> None:
    """Print the times of searches without and with a writer, for each size of its batches."""
    columns = " ".join(f"{stage + ' p50':>12} {'p99 ms':>7}" for stage in ("before", "writing", "after"))
    print(f"{'batch':>6} {columns} {'to before':>10} {'to after':>9} {'written/s':>10}")
    for batch in batches:
        before, beside, after, written = [], [], [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder, filled(Path(folder), "flat", vectors, ranks) as collection:
                search_times(collection, queries[:20], 0)
                before.append(search_times(collection, queries, seconds))
                stop, made = Event(), list[int]()
                thread = Thread(target=write_until, args=(collection, new_batches(vectors, batch), stop, made))
                began = time.perf_counter()
                thread.start()
                try:
                    beside.append(search_times(collection, queries, seconds))
                finally:
                    stop.set()
                    thread.join()
                written.append(sum(made) / (time.perf_counter() - began))
                after.append(search_times(collection, queries, seconds))
                if len(collection) != len(vectors) + sum(made):
                    raise RuntimeError(f"{len(collection)} documents, {len(vectors)} + {sum(made)} were written")
        middles = [np.percentile(np.concatenate(turns), (50, 99)) for turns in (before, beside, after)]
        numbers = " ".join(f"{p50:12.2f} {p99:7.2f}" for p50, p99 in middles)
        slow = [[np.percentile(turn, 99) for turn in turns] for turns in (before, beside, after)]
        ratios = [statistics.median(b / a for a, b in zip(alone, slow[1], strict=True)) for alone in (slow[0], slow[2])]
        rate = statistics.median(written)
        print(f"{batch:6} {numbers} {ratios[0]:10.1f} {ratios[1]:9.1f} {rate:10.0f}", flush=True)


def rank_range(first: int, width: int) -> dict[str, Any]:
    """Return the filter that lets ``width`` ranks through, beginning with ``first``."""
    bounds = {"gte": first}, {"lte": first + width - 1}
    return {"and": [{"field": "rank", **bound} for bound in bounds]}


def oracle(vectors: np.ndarray, query: np.ndarray, allowed: np.ndarray) -> set[str]:
    """Return the ids of the nearest `K` of the ``allowed`` rows, by all products in float64."""
    scores = vectors[allowed].astype(np.float64) @ query.astype(np.float64)
    return {f"d{row}" for row in allowed[np.argsort(-scores)[:K]]}


def measure_filters(vectors: np.ndarray, ranks: np.ndarray, queries: np.ndarray, kinds: Sequence[str]) -> None:
    """Print recall and median times for each kind of index and share of the documents."""
    print(f"{'index':10} {'share':>6} {'passing':>8} {'recall@10':>10} {'all ms':>8} {'new filter':>11} {'seen':>7}")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder, filled(Path(folder), kind, vectors, ranks) as collection:
            for share in SHARES:
                print(f"{kind:10} {share:6.1%} {filter_line(collection, vectors, ranks, queries, share)}", flush=True)


def filter_line(
    collection: Collection, vectors: np.ndarray, ranks: np.ndarray, queries: np.ndarray, share: float
) -> str:
    """Return how many documents pass, recall, and the median ms unfiltered, by a new filter, and by one seen before."""
    width = max(1, round(share * len(vectors)))
    firsts = np.random.default_rng(1).permutation(len(vectors) - width + 1)
    times: list[list[float]] = [[], [], []]
    recalls = []
    for number, query in enumerate(queries):
        first = int(firsts[number % len(firsts)])
        wanted = rank_range(first, width)
        for place, asked in enumerate((None, wanted, wanted)):
            began = time.perf_counter()
            hits = collection.search_vectors(query[None], K, filter=asked)[0]
            times[place].append(1000 * (time.perf_counter() - began))
        truth = oracle(vectors, query, np.flatnonzero((ranks >= first) & (ranks < first + width)))
        recalls.append(len(truth & {hit.id for hit in hits}) / len(truth))
    passing = collection.count(rank_range(int(firsts[0]), width))
    unfiltered, new, seen = (statistics.median(column) for column in times)
    return f"{passing:8} {statistics.mean(recalls):10.4f} {unfiltered:8.2f} {new:11.2f} {seen:7.2f}"


PARTS = ("writes", "reads", "filters")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes.collection_speed", description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=4, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default="flat,fastscan", help="indexes of the filtered searches, by commas")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--switch-interval", type=float, default=SWITCH_S)
    args = parser.parse_args()
    sys.setswitchinterval(args.switch_interval)
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy and faiss
    vectors, queries = directions(args.documents), directions(QUERIES, seed=1)
    ranks = np.random.default_rng(2).permutation(args.documents)
    for part in PARTS if args.part == "all" else (args.part,):
        print(f"\n{part}: {args.documents:,} documents, d {DIM}; {describe()}")
        if part == "writes":
            measure_writes(vectors, args.seconds, args.rounds)
        elif part == "reads":
            measure_reads(vectors, ranks, queries, args.seconds, args.rounds, BATCHES)
            measure_beside_syncs(vectors, ranks, queries, args.seconds)
        else:
            measure_filters(vectors, ranks, queries, args.kinds.split(","))


if __name__ == "__main__":
    main()
