"""What a GPU takes over: searches of single vectors by faiss, MaxSim, and a job's shards; each beside its bound.

python -m benchmarks.encoding.gpu_speed [--part search maxsim job] [--count 1000000] [--dim 320] [--queries 1000]

Searches of unit vectors, one block of queries, against the same index on the CPU; the bound is the matrix product of
queries and vectors in float32, and for one query the bytes of the vectors at the rate of a copy. MaxSim of 32 query
tokens with documents of 100 in float16; the bound is reading the documents once. A job's shards are made by one thread
or by two, beside bare encoding of the same texts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.encoders import random_decoder
from benchmarks.common.machine import describe, gemm_gflops
from benchmarks.encoding.encode_speed import mixed_texts
from embedserve import EmbedserveError, Encoder, EncoderSpec
from indexing import Document, build_index
from indexing.base import unit
from indexing.collections.catalog import collection_path
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.local_engine import ThreadEngine
from indexing.late_interaction.maxsim import maxsim_torch

KINDS = ("flat", "IVF1024,Flat", "IVF1024,SQ8", "cagra")
CLUSTERS, SPREAD = 2_000, 0.7  # what is searched lies in clusters, as the vectors of texts do
QUERY_ROWS, TOKENS, TOKEN_DIM = 32, 100, 128


def median_seconds(rounds: int, run: Callable[..., object], *given: object) -> float:
    """Return the median time of a call with what is ``given``, the GPU's work included."""
    times = []
    for number in range(rounds + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run(*given)
        torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def copy_rate() -> float:
    """Return the bytes a second that a copy inside the GPU reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    return 2 * len(source) / median_seconds(20, target.copy_, source)


def search(args: argparse.Namespace, rate: float) -> None:
    """Print searches of each kind on the GPU and on the CPU."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, args.dim), dtype=np.float32)

    def draw(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, args.dim), dtype=np.float32)
        return unit(centres[rng.integers(0, CLUSTERS, count)] + SPREAD * noise)

    vectors, queries = draw(args.count), draw(args.queries)
    gflops = gemm_gflops(device="cuda")
    product = 2 * args.count * args.dim * args.queries / gflops / 1e9
    print(f"{args.count:,} vectors of {args.dim}, {args.queries} queries at once, k=10")
    print(
        f"bounds: product {1e3 * product:.2f} ms ({gflops:,.0f} GFLOP/s in float32); "
        f"one query reads {1e3 * vectors.nbytes / rate * 2:.3f} ms ({rate / 1e12:.2f} TB/s read and written)"
    )
    truth: np.ndarray | None = None
    for kind in KINDS:
        try:
            began = time.perf_counter()
            there = build_index(vectors, kind, device="cuda")
            built = time.perf_counter() - began
        except EmbedserveError as error:  # a faiss without cuVS has no CAGRA
            print(f"  {kind:14} {error.message}")
            continue
        many = median_seconds(5, there.search, queries, 10)
        one = median_seconds(50, there.search, queries[:1], 10)
        found = there.search(queries, 10).rows
        truth = found if truth is None else truth
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
        line = f"  {kind:14} built in {built:6.1f} s   block {1e3 * many:8.2f} ms   one query {1e3 * one:6.3f} ms"
        line += f"   recall@10 {recall:.3f}"
        if args.cpu and kind != "cagra":
            slow = median_seconds(1, build_index(vectors, kind).search, queries, 10)
            line += f"   block on the CPU {1e3 * slow:,.0f} ms, {slow / many:.0f} x"
        print(line, flush=True)


def maxsim(count: int, rate: float) -> None:
    """Print MaxSim of documents that lie on the GPU."""
    rows, query = (
        torch.nn.functional.normalize(torch.randn(size, TOKEN_DIM, device="cuda"), dim=1).half()
        for size in (count * TOKENS, QUERY_ROWS)
    )
    offsets, blocks = torch.arange(count + 1, device="cuda") * TOKENS, rows.view(count, TOKENS, TOKEN_DIM)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "maxsim_torch": lambda: maxsim_torch(query, rows, offsets),
        "the product alone": lambda: rows @ query.T,
        "einsum": lambda: torch.einsum("qd,ntd->nqt", query, blocks).amax(dim=2).float().sum(dim=1),
    }
    times = [f"{name} {1e3 * median_seconds(20, call):.3f} ms" for name, call in calls.items()]
    least = rows.numel() * rows.element_size() / rate * 2
    print(f"MaxSim, {count:,} documents: {', '.join(times)}, reading once {1e3 * least:.3f} ms", flush=True)


def job(args: argparse.Namespace) -> None:
    """Print how fast a job makes shards with one thread and with two, beside bare encoding."""
    texts = mixed_texts(args.documents)
    with tempfile.TemporaryDirectory() as folder:
        model = random_decoder(args.random_decoder, Path(folder) / "model")
        encoder = Encoder.load(EncoderSpec("mean", model, dtype="bfloat16", max_tokens=512), "cuda")
        encoder.embed(texts)
        bare = median_seconds(1, encoder.embed, texts)
        print(f"{len(texts):,} texts, {args.random_decoder}: bare encoding {len(texts) / bare:,.0f} documents/s")
        documents = [Document(str(number), text) for number, text in enumerate(texts)]
        for threads in (1, 2):
            data, name = Path(folder) / "data", f"made-by-{threads}"
            path, work = collection_path(data, name), job_path(data, name)
            engine = ThreadEngine(encoder, threads)
            seconds = run_job(documents, encoder, path, work, JobOptions(index="flat"), engine=engine).seconds
            taken = seconds["all"] - seconds["assemble"]
            print(
                f"  shards, threads {threads}: {len(texts) / taken:,.0f} documents/s, {bare / taken:.2f} of bare; "
                f"assembled in {seconds['assemble']:.1f} s",
                flush=True,
            )


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding.gpu_speed", description=__doc__)
    parser.add_argument("--part", nargs="+", choices=["search", "maxsim", "job"], default=["search", "maxsim", "job"])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--cpu", action="store_true", help="search on the CPU too")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--random-decoder", default="28x1024")
    args = parser.parse_args()
    print(describe())
    rate = copy_rate()
    if "search" in args.part:
        search(args, rate)
    if "maxsim" in args.part:
        for count in (1_000, 100_000):
            maxsim(count, rate)
    if "job" in args.part:
        job(args)


if __name__ == "__main__":
    main()
