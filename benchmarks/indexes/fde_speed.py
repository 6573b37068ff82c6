"""Time of fixed dimensional encodings: ours, the bare matrix product, and fastembed's where it can be imported.

OMP_NUM_THREADS=1 python -m benchmarks.indexes.fde_speed [--documents 100] [--tokens 100] [--rounds 30]

100 tokens of 128 numbers become 10,240 numbers (20 repetitions, 5 bits, 16 inner dimensions). The implementations take
turns; a ratio is the median over the rounds. Times are of the processor, on one thread, so that other jobs on the
machine count for little. Bound: the product of tokens and matrices alone, 128 x 420.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from benchmarks.common.machine import describe, gemm_gflops
from indexing.base import unit
from indexing.late_interaction.fde import BLOCK, FdeEncoder
from indexing.late_interaction.fde_config import FdeConfig

REPETITIONS, BITS, INNER = 20, 5, 16
QUERY_TOKENS = 32


def fastembed_muvera(dim: int) -> Callable[[np.ndarray], object] | str:
    """Return fastembed's encoding of one document (t, d), or why there is none."""
    try:
        from fastembed.postprocess import Muvera  # type: ignore[import-not-found]  # not ours to require
    except ImportError as error:
        return f"n/a: {error}"
    made = Muvera(dim=dim, k_sim=BITS, dim_proj=INNER, r_reps=REPETITIONS)
    encode: Callable[[np.ndarray], object] = made.process_document
    return encode


def seconds(run: Callable[[], object]) -> float:
    """Return the processor's time for one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes.fde_speed", description=__doc__)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((args.documents * args.tokens, args.dim)))
    offsets = np.arange(args.documents + 1) * args.tokens
    queries = vectors[: args.documents * QUERY_TOKENS]
    query_offsets = np.arange(args.documents + 1) * QUERY_TOKENS
    ours = FdeEncoder(FdeConfig(args.dim, REPETITIONS, BITS, INNER))
    sketched = FdeEncoder(FdeConfig(args.dim, REPETITIONS, BITS, INNER, "sketch"))
    rows, matrix = torch.from_numpy(vectors), torch.randn(args.dim, REPETITIONS * (BITS + INNER))
    products = torch.empty(BLOCK, matrix.shape[1])

    def product(start: int) -> object:
        block = rows[start : start + BLOCK]
        return torch.mm(block, matrix, out=products[: len(block)])

    other = fastembed_muvera(args.dim)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "matrix product alone": (
            lambda: [product(start) for start in range(0, len(rows), BLOCK)],
            args.documents,
        ),
        "ours": (lambda: ours.encode_documents(vectors, offsets), args.documents),
        "ours, one by one": (
            lambda: [
                ours.encode_documents(vectors[start:stop], np.array([0, stop - start]))
                for start, stop in pairwise(offsets)
            ],
            args.documents,
        ),
        "ours, projected by sketches": (lambda: sketched.encode_documents(vectors, offsets), args.documents),
        "ours, queries of 32": (lambda: ours.encode_queries(queries, query_offsets), args.documents),
    }
    if not isinstance(other, str):
        few = min(3, args.documents)
        runs["fastembed"] = (lambda: [other(vectors[offsets[i] : offsets[i + 1]]) for i in range(few)], few)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name, (run, count) in runs.items():
            taken = seconds(run) / count
            if number:  # the first round warms up
                times[name].append(taken)
    flops = 2 * args.tokens * args.dim * REPETITIONS * (BITS + INNER)
    print(f"{args.tokens} tokens x {args.dim} -> {ours.size:,}; {args.rounds} rounds; {describe()}")
    print(f"matrix product (bound): {gemm_gflops():,.0f} GFLOP/s at 1024 x 1024; {flops / 1e6:.1f} MFLOP a document")
    for name in runs:
        bound = statistics.median(a / b for a, b in zip(times[name], times["matrix product alone"], strict=True))
        line = f"{name:26} {statistics.median(times[name]) * 1e6:9.0f} us a text  {bound:6.2f} x the product"
        if "fastembed" in runs:
            gain = statistics.median(a / b for a, b in zip(times["fastembed"], times[name], strict=True))
            line += f"  {gain:6.1f} x faster than fastembed's documents"
        print(line)
    if isinstance(other, str):
        print(f"fastembed                  {other}")


if __name__ == "__main__":
    main()
