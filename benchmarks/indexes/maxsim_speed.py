"""Time of MaxSim over candidates: our kernel, the bare matrix product, padded torch.einsum, maxsim-cpu, float16.

OMP_NUM_THREADS=1 python -m benchmarks.indexes.maxsim_speed [--candidates 100] [--rounds 100]

One query of 32 rows against 100 documents of 60 to 140 rows of 128 numbers. "at hand": contiguous documents in
memory, as in a kernel benchmark; "from a store": documents sampled in each round from 400 MB of token vectors, as in
reranking. Implementations alternate; a ratio is the median over rounds. Times are processor time on one thread, so that
other jobs on the machine matter little.
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
    """Return the documents padded with zeros (N, T, d), and the mask of their rows (N, T)."""
    longest = int(np.diff(documents.offsets).max())
    rows = torch.zeros(len(documents), longest, DIM)
    mask = torch.zeros(len(documents), longest, dtype=torch.bool)
    for index in range(len(documents)):
        document = documents[index]
        rows[index, : len(document)], mask[index, : len(document)] = torch.from_numpy(document), True
    return rows, mask


def maxsim_cpu(query: np.ndarray, documents: TokenEmbeddings) -> Callable[[], object] | str:
    """Return the call of the package maxsim-cpu, or why it is unavailable."""
    try:
        from maxsim_cpu import maxsim_scores_variable  # type: ignore[import-not-found]  # not ours to require
    except ImportError as error:
        return f"n/a: {error}"
    rows = [np.ascontiguousarray(documents[index]) for index in range(len(documents))]
    return lambda: maxsim_scores_variable(query, rows)


def at_hand(documents: TokenEmbeddings, query: np.ndarray) -> tuple[dict[str, Callable[[], object]], str]:
    """Return the calls measured on contiguous documents, and a note on one that is unavailable."""
    query_rows, rows = torch.from_numpy(query), torch.from_numpy(documents.vectors)
    columns, halves = query_rows.T.contiguous(), documents.vectors.astype(np.float16)
    filled, mask = padded(documents)

    def einsum() -> np.ndarray:
        scores = torch.einsum("qd,ntd->nqt", query_rows, filled).masked_fill_(~mask[:, None], -torch.inf)
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
    """Return the calls measured on documents sampled in each round, which are in no cache."""
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
    """Return the processor seconds of each call in each round; calls alternate."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + WARMING):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number >= WARMING:
                times[name].append(time.process_time() - start)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median ratio of paired times."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print a table."""
    print(title)
    for name, seconds in times.items():
        line = f"  {name:28} {statistics.median(seconds) * 1e6:8.0f} us"
        line += f"  {ratio(seconds, times[PRODUCT]):5.2f} x the product"
        line += f"  {ratio(seconds, times['ours, float32']):5.2f} x ours, float32"
        if EINSUM in times:
            line += f"  {ratio(times[EINSUM], seconds):5.2f} x faster than {EINSUM}"
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
