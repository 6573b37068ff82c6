"""The service under load: texts per second of processor time, compared with sentence-transformers in process.

    python -m benchmarks.serving.embed_load                       # MiniLM and nano: embedserve, then the other servers
    python -m benchmarks.serving.embed_load --servers embedserve  # embedserve alone
    python -m benchmarks.serving.embed_load --overload 30         # ten times its capacity: rejections and latency
    python -m benchmarks.serving.embed_load --search --work DIR   # /search over 100,000 documents, and in process

Everything runs on loopback with one thread for matrix products. Each load is between two measurements of
``SentenceTransformer.encode`` (batches of 32) on the same texts, and its efficiency is the ratio to their mean. The
other servers are a FastAPI handler that calls encode, one that batches requests with the package ``batched``, and
LitServe (`pip install batched litserve`); each must answer with the vectors of this process before it is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np

from benchmarks.serving.load_clients import Load, bodies_of, run_load
from benchmarks.serving.processes import ONE_THREAD, SERVERS, RunningServer, cpu_seconds, lacks, resident_mib, serving
from embedserve.batching import BATCH_TOKENS

LOADS = ((32, 8), (1, 32), (1, 1))  # texts of a request, clients
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "rain",
    "river",
    "file",
    "array",
    "bridge",
    "garden",
    "number",
    "return",
    "parse",
    "date",
]
WORDS += ["copy", "join", "axis", "evening", "small", "quiet", "winter", "engine", "storm", "letter", "judge"]
WORDS += ["honest", "paint", "cat", "dog", "museum", "market", "plan", "signal", "orbit", "copper", "tide", "lantern"]


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Return texts of 5 to 14 words, all of them different."""
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(WORDS, rng.integers(4, 14)))} {n}" for n in range(count)]


def model_path(name: str) -> str:
    """Return the path of ``minilm``; other names are returned unchanged."""
    if name != "minilm":
        return name
    from embedserve.training.teacher import minilm_folder

    return minilm_folder()


class InProcess:
    """`SentenceTransformer.encode` in this process, as the reference."""

    def __init__(self, model: str) -> None:
        import torch

        from embedserve import Encoder

        torch.set_num_threads(1)
        encoder = Encoder.load(model, device="cpu")
        self.model: Any = encoder.model
        self.batch_tokens = encoder.batch_tokens

    def rate(self, texts: Sequence[str], seconds: float, batch: int = 32) -> float:
        """Return texts per second of processor time, ``batch`` in each call."""
        start_s, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start_s < seconds:
            start = done % len(texts)
            self.model.encode(list(texts[start : start + batch]), batch_size=32, show_progress_bar=False)
            done += len(texts[start : start + batch])
        return done / (time.process_time() - cpu)


def check_vectors(inside: InProcess, server: RunningServer, texts: Sequence[str], patience_s: float = 120.0) -> None:
    """Wait until a server answers, and compare its vectors with those of this process.

    Raises:
        RuntimeError: The vectors differ.
        OSError: The server times out or returns an error.
    """
    url = f"http://{server.host}:{server.port}/embed"
    request = urllib.request.Request(url, bodies_of(texts, len(texts))[0], {"Content-Type": "application/json"})
    end = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=patience_s) as answer:  # noqa: S310
                rows = [item["embedding"] for item in json.load(answer)["data"]]
            break
        except OSError as error:  # not listening yet, or still loading
            if time.monotonic() > end or (isinstance(error, HTTPError) and error.code != 503):
                raise
            time.sleep(0.2)
    expected = inside.model.encode(list(texts), batch_size=32, show_progress_bar=False)
    if not np.allclose(rows, expected, atol=1e-3):
        raise RuntimeError(f"{url} returns vectors that differ from this process")


def measure(
    inside: InProcess, name: str, server: RunningServer, texts: Sequence[str], each: int, clients: int, seconds: float
) -> tuple[str, dict[int, int]]:
    """Return a row of the table, and how many answers had each status."""
    bodies = bodies_of(texts, each)
    run_load(server.host, server.port, "/embed", bodies, each, clients, min(seconds, 1.0))  # warm
    batch = 1 if (each, clients) == (1, 1) else 32
    before = inside.rate(texts, seconds / 2, batch)
    cpu = cpu_seconds(server.pid)
    load = run_load(server.host, server.port, "/embed", bodies, each, clients, seconds)
    cpu_s = cpu_seconds(server.pid) - cpu
    reference = (before + inside.rate(texts, seconds / 2, batch)) / 2
    rate = load.texts / cpu_s
    row = (
        f"| {name} | {each} | {clients} | {rate:.0f} | {reference:.0f} | **{rate / reference:.2f}** | "
        f"{load.texts / load.seconds:.0f} | {load.percentile_ms(0.5):.1f} | {load.percentile_ms(0.99):.1f} |"
    )
    return row, load.statuses


def idle_share(server: RunningServer, seconds: float = 3.0) -> float:
    """Return the share of a core that an idle server uses."""
    cpu, start = cpu_seconds(server.pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_seconds(server.pid) - cpu) / (time.perf_counter() - start)


def measure_model(name: str, seconds: float, servers: Sequence[str]) -> None:
    """Print the table of one model, then the batching and the idle load of each server."""
    texts, model = texts_of(4096), model_path(name)
    inside = InProcess(model)
    tokens = np.mean([len(ids) for ids in inside.model.tokenizer(texts[:256])["input_ids"]])
    print(f"\n{name}, texts of {tokens:.1f} tokens\n")
    print("| server | texts | clients | texts/CPU-s | in process | efficiency | texts/s | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    notes = []
    for kind in servers:
        if package := lacks(kind):
            notes.append(f"{kind}: not measured: {package} is not installed; run: pip install {package}")
            continue
        with serving(model, kind) as server:
            check_vectors(inside, server, texts[:32])
            for each, clients in LOADS:
                row, statuses = measure(inside, kind, server, texts, each, clients, seconds)
                print(row, flush=True)
                if list(statuses) != [200]:
                    notes.append(f"{kind}, {each} × {clients}: answers by status {dict(sorted(statuses.items()))}")
            batching = server.batching or f"immediate, up to {inside.batch_tokens:,} tokens of similar length"
            notes.append(f"{kind}: batching: {batching}; idle: {100 * idle_share(server):.1f} % of a core")
    print("", *(f"- {note}" for note in notes), sep="\n")


def mean_tokens(host: str, port: int, texts: Sequence[str]) -> float:
    """Return the mean number of tokens per text, as counted by a server."""
    body, headers = json.dumps({"input": texts[:256]}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{host}:{port}/embed", body, headers)
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return float(json.load(answer)["usage"]["total_tokens"]) / len(texts[:256])


def overload(name: str, seconds: float, queue_limit: int = 20_000) -> None:
    """Print the behaviour at ten times the capacity, and with clients that retry immediately.

    200 clients send 32 texts each. The bound of a wait is the tokens of the queue and a batch, over the served tokens
    per second.
    """
    texts = texts_of(4096)
    with serving(model_path(name), queue_limit=str(queue_limit)) as server:
        host, port, pid = server.host, server.port, server.pid
        bodies, tokens = bodies_of(texts, 32), mean_tokens(host, port, texts)
        calm = run_load(host, port, "/embed", bodies, 32, 8, 8.0)
        capacity = calm.texts / calm.seconds
        print(f"\n{name}, 200 clients with 32 texts each for {seconds:.0f} s, a queue of {queue_limit:,} tokens")
        print(f"eight clients before: {capacity:.0f} texts/s; memory {resident_mib(pid):.0f} MiB\n")
        print("| requests/s | 200 | 429 | others | texts/s | p50 s | p99 s | bound s | MiB | next text ms |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for rate in (10 * capacity / 32, math.inf):
            load = run_load(host, port, "/embed", bodies, 32, 200, seconds, rate)
            start, after = time.perf_counter(), Load()
            while not after.texts:
                after = run_load(host, port, "/embed", bodies_of(texts[:1], 1), 1, 1, 0.01)
            alone, done = time.perf_counter() - start, load.texts / load.seconds
            bound = (queue_limit + BATCH_TOKENS["cpu"]) / (done * tokens) if done else math.inf
            sent, good, full = sum(load.statuses.values()), load.statuses.get(200, 0), load.statuses.get(429, 0)
            print(
                f"| {sent / load.seconds:.0f} | {good} | {full} | {sent - good - full} | {done:.0f} | "
                f"{load.percentile_ms(0.5) / 1000:.1f} | {load.percentile_ms(0.99) / 1000:.1f} | "
                f"{bound:.1f} | {resident_mib(pid):.0f} | {1000 * alone:.0f} |",
                flush=True,
            )


def search(arguments: argparse.Namespace) -> None:
    """Print the speed of `/search` over a collection in the folder ``--work``."""
    from benchmarks.serving.search_load import QUERIES, measure_search, read_texts

    count = arguments.documents + QUERIES
    if arguments.texts is None:
        texts, source = texts_of(count), "generated"
    else:
        texts, source = list(islice(read_texts(arguments.texts), count)), arguments.texts.name.split(".")[0]
    if len(texts) < count:
        raise SystemExit(f"{arguments.texts} has {len(texts):,} texts; {count:,} are needed")
    for name in arguments.models or ["nano"]:
        measure_search(
            model_path(name), texts, source, arguments.work, arguments.index, arguments.clients, arguments.seconds
        )


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help="minilm, nano, or folders. Default: minilm and nano")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a load")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS, help="Default: all")
    parser.add_argument("--overload", type=float, default=0.0, help="seconds of overload, instead of the table")
    parser.add_argument(
        "--search", action="store_true", help="measure /search instead of the table. Default model: nano"
    )
    parser.add_argument("--work", type=Path, help="folder in which --search builds its collection, once")
    parser.add_argument("--documents", type=int, default=100_000, help="documents of that collection")
    parser.add_argument("--texts", type=Path, help="file of its texts, *.jsonl.gz with text. Default: generated texts")
    parser.add_argument("--index", default="hnsw", help="index of its vectors")
    parser.add_argument("--clients", type=int, default=8, help="clients of /search, and threads in process")
    arguments = parser.parse_args()
    if arguments.search and arguments.work is None:
        parser.error("--search needs --work, the folder of its collection")
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops all servers
    from benchmarks.common.machine import describe

    print(describe())
    if arguments.search:
        search(arguments)
        return
    for name in arguments.models or ["minilm", "nano"]:
        if arguments.overload:
            overload(name, arguments.overload)
        else:
            measure_model(name, arguments.seconds, arguments.servers)


if __name__ == "__main__":
    main()
