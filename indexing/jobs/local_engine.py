"""The local engine: shards encoded by threads of this process, or by processes with one encoder each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Event
from typing import Any

from embedserve.errors import EmbedserveError
from indexing.base import TextEncoder
from indexing.jobs.shard_work import ShardResult, ShardTask, make_shard

LoadEncoder = Callable[[str], TextEncoder]  # called with a device; must be picklable


class ThreadEngine:
    """One encoder in this process: a thread per core, or two for a GPU, so that I/O overlaps with encoding.

    On a CPU each thread encodes a whole shard with one core per matrix product, so the results equal those of the other
    engines.

    Args:
        encoder: A thread-safe encoder.
        threads: Shards encoded at the same time. Default: the number of cores on a CPU, 2 on a GPU.
    """

    name = "local"

    def __init__(self, encoder: TextEncoder, threads: int | None = None) -> None:
        on_cpu = str(encoder.device) == "cpu"
        self.slots = threads or (cores() if on_cpu else 2)
        self._encoder, self._stop = encoder, Event()
        self._pool = ThreadPoolExecutor(self.slots, "shard", initializer=use_one_core if on_cpu else None)

    def submit(self, task: ShardTask) -> Future[ShardResult]:
        """Queue a shard for the next free thread."""
        return self._pool.submit(make_shard, self._encoder, task, self._stop.is_set)

    def close(self) -> None:
        """Stop running shards after their current block."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class ProcessEngine:
    """Several processes with one encoder each, for example one per GPU.

    Args:
        load: Called in each process with its device.
        devices: The device of each process, such as ``cuda:0`` and ``cuda:1``.
    """

    name = "local"

    def __init__(self, load: LoadEncoder, devices: list[str]) -> None:
        self.slots = len(devices)
        spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads and CUDA's state
        free_devices = spawn.Queue()
        for device in devices:
            free_devices.put(device)
        self._pool = ProcessPoolExecutor(self.slots, spawn, initializer=load_in_worker, initargs=(load, free_devices))

    def submit(self, task: ShardTask) -> Future[ShardResult]:
        """Queue a shard for the next free process."""
        try:
            return self._pool.submit(make_in_worker, task)
        except BrokenProcessPool:
            raise worker_lost() from None

    def close(self) -> None:
        """Terminate the processes; their unfinished shards are encoded by the next run."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
            process.join()


def worker_lost() -> EmbedserveError:
    """Return the error of a process that died while encoding."""
    return EmbedserveError(
        "a worker process died, probably out of memory; lower --replicas or --memory and run the job again: "
        "it reuses the complete shards"
    )


_worker: dict[str, Any] = {}  # of this process: its encoder, or the error of loading it


def load_in_worker(load: LoadEncoder, free_devices: Any) -> None:
    """Load the encoder of this process on the next free device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and terminates its workers
    try:
        _worker["encoder"] = load_single(load, free_devices.get())
    except Exception as error:  # raised by the first shard instead: the pool would only report a broken process
        _worker["error"] = error


def load_single(load: LoadEncoder, device: str) -> TextEncoder:
    """Load the encoder of a worker that encodes one shard at a time; on a CPU it uses one core."""
    encoder = load(device)
    if device == "cpu" and "torch" in sys.modules:
        use_one_core()
    return encoder


def make_in_worker(task: ShardTask) -> ShardResult:
    """Encode a shard with the encoder of this process; raise the error of loading it."""
    if "error" in _worker:
        raise _worker["error"]
    return make_shard(_worker["encoder"], task)


def use_one_core() -> None:
    """Limit torch's operations in this thread to one core."""
    import torch

    torch.set_num_threads(1)


def cores() -> int:
    """Return the number of threads to encode with: torch's limit, at most the cores available to this process."""
    import torch

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), available))
