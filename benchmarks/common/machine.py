"""What a measurement ran on, and how fast its matrix product is."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import time
from pathlib import Path

import torch


def describe() -> str:
    """Return one line: processor, threads, versions, date."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{name}, {cores} cores, {torch.get_num_threads()} torch threads, load {load:.1f}, "
        f"torch {torch.__version__}, {datetime.datetime.now(tz=datetime.UTC).date()}"
    )


def gemm_gflops(
    size: int = 1024, seconds: float = 1.0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Return the best rate of a (size, size) matrix product in ``seconds``, in GFLOP/s; on a GPU it is 8,192 wide."""
    on_gpu = torch.device(device).type == "cuda"
    size = 8192 if on_gpu else size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b)
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def peak_memory_kib() -> int:
    """Return the most memory that this process has had at a time, in KiB.

    `getrusage` would count what the process that started this one had at that moment.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
