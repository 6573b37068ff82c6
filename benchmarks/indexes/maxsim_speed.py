"""Time of MaxSim over candidates: our kernel, the bare matrix product, padded torch.einsum, maxsim-cpu, float16.

OMP_NUM_THREADS=1 python -m benchmarks.indexes.maxsim_speed [--candidates 100] [--rounds 100]

One query of 32 rows against 100 documents of 60 to 140 rows of 128 numbers. "at hand" are documents that stand one
behind another in memory, as in a trial of a kernel; "from a store" are documents drawn anew in each round from 400 MB
of token vectors, as a rerank reads them. The implementations take turns; a ratio is the median over the rounds. Times
are of the processor, on one thread, so that other jobs on the machine count for little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle

import numpy as np
import torch

from benchmarks.common.machine import describe, gemm_gflops
from embedserve.ragged import offsets_of
from embedserve.scoring import maxsim
from embedserve.types import TokenEmbeddings
from indexing.base import unit
from indexing.late_interaction.maxsim import maxsim_flat
from indexing.late_interaction.token_codecs import CODECS
from indexing.late_interaction.token_store import TokenStore

DIM, QUERY_ROWS, STORED, WARMING = 128, 32, 8_000, 3
PRODUCT, EINSUM = "matrix product alone", "padded torch.einsum"


def make_documents(count: int) -> TokenEmbeddings:
    """Return random documents of 60 to 140 unit rows."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 141, count)
    offsets = offsets_of(lengths)
    vectors = unit(rng.standard_normal((offsets[-1], DIM), dtype=np.float32))
    return TokenEmbeddings(vectors, offsets, np.arange(offsets[-1]), lengths, np.zeros(count, dtype=bool))


def padded(documents: TokenEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the documents filled up with zeros (N, T, d), and which rows are theirs (N, T)."""
    longest = int(np.diff(documents.offsets).max())
    rows = torch.zeros(len(documents), longest, DIM)
    mask = torch.zeros(len(documents), longest, dtype=torch.bool)
    for place in range(len(documents)):
        own = documents[place]
        rows[place, : len(own)], mask[place, : len(own)] = torch.from_numpy(own), True
    return rows, mask


def maxsim_cpu(query: np.ndarray, documents: TokenEmbeddings) -> Callable[[], object] | str:
    """Return the call of the package maxsim-cpu, or why there is none."""
    try:
        from maxsim_cpu import maxsim_scores_variable  # type: ignore[import-not-found]  # not ours to require
    except ImportError as error:
        return f"n/a: {error}"
    rows = [np.ascontiguousarray(documents[place]) for place in range(len(documents))]
    return lambda: maxsim_scores_variable(query, rows)


def at_hand(documents: TokenEmbeddings, query: np.ndarray) -> tuple[dict[str, Callable[[], object]], str]:
    """Return what is measured on documents that stand one behind another in memory, and what could not be."""
    asked, rows = torch.from_numpy(query), torch.from_numpy(documents.vectors)
    columns, halves = asked.T.contiguous(), documents.vectors.astype(np.float16)
    filled, mask = padded(documents)

    def einsum() -> np.ndarray:
        scores = torch.einsum("qd,ntd->nqt", asked, filled).masked_fill_(~mask[:, None], -torch.inf)
        return scores.amax(dim=2).sum(dim=1).numpy()

    np.testing.assert_allclose(maxsim_flat(query, documents.vectors, documents.offsets), einsum(), atol=1e-4)
    runs: dict[str, Callable[[], object]] = {
        PRODUCT: lambda: torch.mm(rows, columns),
        EINSUM: einsum,
        "numpy (embedserve.scoring)": lambda: maxsim(query, documents),
        "ours, float32": lambda: maxsim_flat(query, documents.vectors, documents.offsets),
        "ours, float16": lambda: maxsim_flat(query, halves, documents.offsets),
    }
    other = maxsim_cpu(query, documents)
    if isinstance(other, str):
        return runs, f"  {'maxsim-cpu':28} {other}"
    return {**runs, "maxsim-cpu": other}, ""


def from_store(candidates: int, query: np.ndarray, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """Return what is measured on documents drawn anew each time, which are in no cache."""
    stored = make_documents(STORED)
    everything, columns = torch.from_numpy(stored.vectors), torch.from_numpy(np.ascontiguousarray(query.T))
    count = candidates * len(stored.vectors) // STORED

    draws = cycle([rng.choice(STORED, candidates, replace=False) for _ in range(499)])

    def product() -> object:
        first = int(next(draws)[0]) * (len(everything) - count) // STORED
        return torch.mm(everything[first : first + count], columns)

    def rerank(codec: str) -> Callable[[], object]:
        store = TokenStore(DIM, codec)
        store.add(np.arange(STORED), stored)
        return lambda: store.score(query, next(draws))

    return {PRODUCT: product, **{f"ours, {codec}": rerank(codec) for codec in CODECS}}


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the processor's seconds of each call in each round, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + WARMING):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number >= WARMING:
                times[name].append(time.process_time() - began)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median of one over the other."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print a table."""
    print(title)
    for name, own in times.items():
        line = f"  {name:28} {statistics.median(own) * 1e6:8.0f} us  {ratio(own, times[PRODUCT]):5.2f} x the product"
        line += f"  {ratio(own, times['ours, float32']):5.2f} x ours, float32"
        if EINSUM in times:
            line += f"  {ratio(times[EINSUM], own):5.2f} x faster than {EINSUM}"
        print(line)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes.maxsim_speed", description=__doc__)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    documents = make_documents(args.candidates)
    query = unit(rng.standard_normal((QUERY_ROWS, DIM), dtype=np.float32))
    print(f"{args.candidates} documents, {len(documents.vectors):,} rows; {args.rounds} rounds; {describe()}")
    print(f"matrix product (bound): {gemm_gflops():,.0f} GFLOP/s at 1024 x 1024")
    runs, missing = at_hand(documents, query)
    report("at hand", measure(runs, args.rounds))
    if missing:
        print(missing)
    report("from a store", measure(from_store(args.candidates, query, rng), args.rounds))


if __name__ == "__main__":
    main()
