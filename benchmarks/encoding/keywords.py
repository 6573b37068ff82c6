"""Retrieval of a paragraph by its rarest words, and by a part of itself, as in the evaluation of LexSemBridge.

python -m benchmarks.encoding.keywords --data EVAL_DIR --encoders mean lexsembridge …

Built from the paragraphs of SQuAD's development set, without its questions (LexSemBridge, arXiv 2508.17858, section 4:
keyword and part-of-passage queries). A keyword query is the four words of a paragraph that occur in the fewest other
paragraphs, in random order; a part is 16 consecutive words from a random position. The relevant paragraph is the
source of the words.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from benchmarks.common.encoders import load_encoder
from benchmarks.common.eval_sets import read_retrieval
from benchmarks.common.machine import describe
from embedserve import EmbedserveError, Encoder
from embedserve.scoring import maxsim
from embedserve.training.pseudo_queries import keyword_queries, part_queries


def ranks_of(encoder: Encoder, queries: list[str], paragraphs: list[str]) -> np.ndarray:
    """Return the rank (N,), from 1, of paragraph i for query i; ties count against it."""
    documents, requests = encoder.encode(paragraphs, "document"), encoder.encode(queries, "query")
    ranks = np.empty(len(queries), dtype=np.int64)
    for row in range(len(queries)):
        if requests.dense is not None and documents.dense is not None:
            scores = documents.dense.vectors @ requests.dense.vectors[row]
        elif requests.multi is not None and documents.multi is not None:
            scores = maxsim(requests.multi[row], documents.multi)
        ranks[row] = int((scores >= scores[row]).sum())
    return ranks


def figures(ranks: np.ndarray) -> dict[str, float]:
    """Return nDCG@1, nDCG@10 and MRR@10 in per cent; nDCG@1 is the share of queries with rank 1."""
    inside = ranks <= 10
    return {
        "nDCG@1": 100 * float((ranks == 1).mean()),
        "nDCG@10": 100 * float(np.where(inside, 1 / np.log2(ranks + 1), 0).mean()),
        "MRR@10": 100 * float(np.where(inside, 1 / ranks, 0).mean()),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding.keywords", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--encoders", nargs="+", default=["mean"], help="encoders: a strategy, a folder, or a spec")
    args = parser.parse_args()
    if args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; give the folder with retrieval/squad-dev")
    paragraphs = read_retrieval(args.data / "retrieval" / "squad-dev").documents
    tasks = {"keywords": keyword_queries(paragraphs), "part": part_queries(paragraphs)}
    print(f"{len(paragraphs):,} paragraphs; {describe()}")
    for name in args.encoders:
        try:
            encoder = load_encoder(name)
        except EmbedserveError as error:
            parser.error(error.message)
        for task, queries in tasks.items():
            scores = figures(ranks_of(encoder, queries, paragraphs))
            print(
                f"{name:40} {task:10}" + "".join(f"  {key} {value:6.2f}" for key, value in scores.items()), flush=True
            )


if __name__ == "__main__":
    main()
