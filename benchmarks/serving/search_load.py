"""``/search`` under load, beside the same search in one's own process: encode the query, look it up in the index.

The collection is built once in a folder and used again. In process one thread searches alone, and as many threads as
there are clients do the same at the same time, each with its next query as soon as it has its answer: they share the
cores as the clients' requests do. All times are by the clock; what is in process is measured before and after.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Barrier, Thread

from benchmarks.serving.load_clients import Load, run_load
from benchmarks.serving.processes import cpu_seconds, serving
from embedserve import Encoder
from embedserve.errors import CorruptFileError, IndexMismatchError, NotFoundError
from indexing import Collection, Document, build_collection
from indexing.collections.catalog import collection_path
from indexing.collections.collection_build import BuildProgress

K = 10
QUERIES, QUERY_WORDS = 4096, 8


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file of ``{"text"}`` lines, ``.jsonl`` or ``.jsonl.gz``."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def queries_of(texts: Sequence[str]) -> list[str]:
    """Return the first `QUERY_WORDS` words of each text, none twice."""
    return list(dict.fromkeys(" ".join(text.split()[:QUERY_WORDS]) for text in texts))


def ensure_collection(work: Path, name: str, encoder: Encoder, texts: Sequence[str], index: str) -> Collection:
    """Return the collection of that name in ``work``; it is built unless that encoder and index have built it."""
    directory = collection_path(work, name)
    with suppress(NotFoundError, IndexMismatchError, CorruptFileError):
        found = Collection.open(directory, encoder)
        if len(found) == len(texts) and found.manifest.main.index == index:
            return found
        found.close()
    print(f"building {directory}: {len(texts):,} texts, {index}; this takes minutes, once", flush=True)

    def report(progress: BuildProgress) -> None:
        if progress.done == len(texts) or progress.done % 10_240 == 0:
            print(f"  {progress.stage} {progress.done:,}", flush=True)

    documents = (Document(f"d{n}", text) for n, text in enumerate(texts))
    build_collection(documents, encoder, directory, index=index, total=len(texts), progress=report)
    return Collection.open(directory, encoder)


def in_process(collection: Collection, queries: Sequence[str], threads: int, seconds: float) -> Load:
    """Search in ``threads`` threads for so long, each query alone; return the times of all of them."""
    load, started, parts = Load(), Barrier(threads + 1), [list[float]() for _ in range(threads)]

    def work(number: int) -> None:
        place = number * len(queries) // threads
        started.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            collection.search([queries[place % len(queries)]], K)
            parts[number].append(time.perf_counter() - began)
            place += 1

    workers = [Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    started.wait()
    began, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.join()
    load.seconds, load.cpu_s = time.perf_counter() - began, time.process_time() - cpu
    load.latencies_s = [spent for part in parts for spent in part]
    load.texts = len(load.latencies_s)
    return load


def over_http(
    name: str, collection: Collection, work: Path, queries: Sequence[str], each: Sequence[int], seconds: float
) -> list[Load]:
    """Return what came of each number of clients of a server of its own."""
    bodies = [json.dumps({"collection": collection.name, "query": query, "top_k": K}).encode() for query in queries]
    loads = []
    with serving(name, data_dir=work, collection=collection.name) as server:
        for clients in each:
            run_load(server.host, server.port, "/search", bodies, 1, clients, min(seconds, 1.0))  # warm
            before = cpu_seconds(server.pid)
            load = run_load(server.host, server.port, "/search", bodies, 1, clients, seconds)
            load.cpu_s = cpu_seconds(server.pid) - before
            loads.append(load)
    return loads


def joined(loads: Sequence[Load]) -> Load:
    """Return several loads as one."""
    whole = Load()
    for load in loads:
        whole.latencies_s += load.latencies_s
        whole.texts += load.texts
        whole.seconds += load.seconds
        whole.cpu_s += load.cpu_s
        for status, count in load.statuses.items():
            whole.statuses[status] = whole.statuses.get(status, 0) + count
    return whole


def row(what: str, load: Load) -> str:
    """Return a row of the table."""
    cpu_ms = 1000 * load.cpu_s / max(load.texts, 1)
    times = f"{load.percentile_ms(0.5):.2f} | {load.percentile_ms(0.99):.2f}"
    return f"| {what} | {times} | {load.texts / load.seconds:.0f} | {cpu_ms:.2f} |"


def measure_search(
    name: str, texts: Sequence[str], source: str, work: Path, index: str, clients: int, seconds: float
) -> None:
    """Print the table and its ratios.

    Args:
        name: The model, as the command line takes it.
        texts: The documents, and after them those whose first words are the queries.
        source: Of the texts; names the collection.
        work: Folder of the collection.
        index: Of its vectors.
        clients: At the same time.
        seconds: Length of a load; each search in process has half before and half after.
    """
    encoder = Encoder.load(name, device="cpu")
    documents, queries = texts[:-QUERIES], queries_of(texts[-QUERIES:])
    label = re.sub("[^a-z0-9]+", "-", source.lower()).strip("-") or "texts"
    collection = ensure_collection(work, f"{label[:40]}-{len(documents)}", encoder, documents, index)
    turns = (1, clients)
    with collection:
        for threads in turns:
            in_process(collection, queries, threads, min(seconds, 1.0))  # warm
        before = [in_process(collection, queries, threads, seconds / 2) for threads in turns]
        served = over_http(name, collection, work, queries, turns, seconds)
        after = [in_process(collection, queries, threads, seconds / 2) for threads in turns]
    inside = [joined(pair) for pair in zip(before, after, strict=True)]
    print(f"\n{name}, {len(documents):,} documents of {source}, {index}, k {K}\n")
    print("| who searches | p50 ms | p99 ms | queries/s | CPU ms of a query |")
    print("|---|---:|---:|---:|---:|")
    for number, load in zip(turns, inside, strict=True):
        print(row(f"in process, threads: {number}", load))
    for number, load in zip(turns, served, strict=True):
        print(row(f"`/search`, clients: {number}", load))
    (alone, together), (one, many) = ([load.percentile_ms(0.5) for load in pair] for pair in (inside, served))
    print(f"\np50 of {clients} clients: {many / together:.2f} times that of {clients} threads, ", end="")
    print(f"{many / alone:.2f} times that of one thread; of one client: {one / alone:.2f} times that of one thread")
    for number, load in zip(turns, served, strict=True):
        if list(load.statuses) != [200]:
            print(f"answers to {number} clients by status: {dict(sorted(load.statuses.items()))}")
