"""The service under load: texts per second of processor time beside sentence-transformers in one's own process.

    python -m benchmarks.serve_load                       # MiniLM and nano, three loads each, and when idle
    python -m benchmarks.serve_load --naive               # beside a FastAPI handler that just calls encode
    python -m benchmarks.serve_load --overload 30         # far more than it can do: what is refused, and what it costs

Everything runs on loopback with one thread for matrix products. Each load stands between two measurements of
``SentenceTransformer.encode`` (batches of 32) on the same texts, and its efficiency is the ratio to their mean.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from benchmarks.serve_clients import Load, bodies_of, run_load

LOADS = ((32, 8), (1, 32), (1, 1))  # texts of a request, clients
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
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
    """Return what the command line takes for ``minilm``, or any other name as it is."""
    if name != "minilm":
        return name
    from embedserve.training.teacher import minilm_folder

    return minilm_folder()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(model: str, naive: bool = False, **settings: str) -> Iterator[tuple[str, int, int]]:
    """Start a server in a process of its own; yield host, port and process id."""
    command = [sys.executable, "-m", "benchmarks.serve_naive", model]
    with tempfile.TemporaryDirectory() as folder:
        if not naive:
            command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--json"]
            command += ["--model", model, "--data-dir", folder, "--log-level", "warning"]
        environment = {**os.environ, **ONE_THREAD, **{f"EMBEDSERVE_{k.upper()}": v for k, v in settings.items()}}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
            try:
                assert server.stdout is not None
                address = urlparse(json.loads(server.stdout.readline())["address"])
                yield str(address.hostname), int(address.port or 0), server.pid
            finally:
                server.send_signal(signal.SIGINT)


class InProcess:
    """What `SentenceTransformer.encode` does in this process."""

    def __init__(self, model: str) -> None:
        import torch

        from embedserve import Encoder

        torch.set_num_threads(1)
        self.model: Any = Encoder.load(model, device="cpu").model

    def rate(self, texts: Sequence[str], seconds: float, batch: int = 32) -> float:
        """Return texts per second of processor time, ``batch`` in each call."""
        began, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            start = done % len(texts)
            self.model.encode(list(texts[start : start + batch]), batch_size=32, show_progress_bar=False)
            done += len(texts[start : start + batch])
        return done / (time.process_time() - cpu)


def measure(
    inside: InProcess, server: tuple[str, int, int], texts: Sequence[str], each: int, clients: int, seconds: float
) -> str:
    """Return a row of the table."""
    host, port, pid = server
    bodies = bodies_of(texts, each)
    run_load(host, port, "/embed", bodies, each, clients, 1.0)  # warm
    batch = 1 if (each, clients) == (1, 1) else 32
    before = inside.rate(texts, seconds / 2, batch)
    cpu = cpu_seconds(pid)
    load = run_load(host, port, "/embed", bodies, each, clients, seconds)
    spent = cpu_seconds(pid) - cpu
    reference = (before + inside.rate(texts, seconds / 2, batch)) / 2
    rate = load.texts / spent
    return (
        f"| {each} | {clients} | {rate:.0f} | {reference:.0f} | **{rate / reference:.2f}** | "
        f"{load.texts / load.seconds:.0f} | {load.percentile_ms(0.5):.1f} | {load.percentile_ms(0.99):.1f} |"
    )


def measure_model(name: str, seconds: float, naive: bool) -> None:
    """Print the table of one model."""
    texts, model = texts_of(4096), model_path(name)
    inside = InProcess(model)
    tokens = np.mean([len(ids) for ids in inside.model.tokenizer(texts[:256])["input_ids"]])
    kinds = [False, True] if naive else [False]
    for is_naive in kinds:
        title = "a FastAPI handler that calls encode" if is_naive else "embedserve"
        print(f"\n{name}, texts of {tokens:.1f} tokens, {title}\n")
        print("| texts | clients | texts/CPU-s | in process | efficiency | texts/s | p50 ms | p99 ms |")
        print("|---|---|---|---|---|---|---|---|")
        with serving(model, is_naive) as server:
            for each, clients in LOADS:
                print(measure(inside, server, texts, each, clients, seconds), flush=True)
            cpu, began = cpu_seconds(server[2]), time.perf_counter()
            time.sleep(3)
            print(f"\nidle: {100 * (cpu_seconds(server[2]) - cpu) / (time.perf_counter() - began):.1f} % of a core")


def overload(name: str, seconds: float, queue_limit: int = 20_000) -> None:
    """Print what comes of 64 clients with 32 texts each, who ask again at once."""
    texts = texts_of(4096)
    with serving(model_path(name), queue_limit=str(queue_limit)) as (host, port, pid):
        bodies = bodies_of(texts, 32)
        calm = run_load(host, port, "/embed", bodies, 32, 2, 3.0)
        memory = resident_mib(pid)
        load = run_load(host, port, "/embed", bodies, 32, 200, seconds)
        began, after = time.perf_counter(), Load()
        while not after.texts:
            after = run_load(host, port, "/embed", bodies_of(texts[:1], 1), 1, 1, 0.01)
        print(f"\n{name}, 200 clients with 32 texts each for {seconds:.0f} s, a queue of {queue_limit:,} tokens\n")
        print(f"answers by status: {dict(sorted(load.statuses.items()))}")
        print(f"texts/s: {load.texts / load.seconds:.0f} (two clients before: {calm.texts / calm.seconds:.0f})")
        print(f"accepted: p50 {load.percentile_ms(0.5):.0f} ms, p99 {load.percentile_ms(0.99):.0f} ms")
        print(f"memory: {memory:.0f} MiB before, {resident_mib(pid):.0f} MiB after")
        print(f"a text alone, right after: {1000 * (time.perf_counter() - began):.0f} ms")


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["minilm", "nano"], help="minilm, nano, or folders")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a load")
    parser.add_argument("--naive", action="store_true", help="measure a plain FastAPI handler as well")
    parser.add_argument("--overload", type=float, default=0.0, help="seconds of overload, in place of the table")
    arguments = parser.parse_args()
    os.environ.update(ONE_THREAD)
    from benchmarks.machine import describe

    print(describe())
    for name in arguments.models:
        if arguments.overload:
            overload(name, arguments.overload)
        else:
            measure_model(name, arguments.seconds, arguments.naive)


if __name__ == "__main__":
    main()
