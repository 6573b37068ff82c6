"""How evenly the vectors of an encoder fill their space, beside what that is worth: whitening and EmbedFilter.

python -m benchmarks.anisotropy --data EVAL_DIR --encoders mean mean+embedfilter:2 whitening …

- mean cosine: of random pairs of different texts; 0 in an isotropic space, near 1 in a narrow cone (Ethayarajh 2019,
  section 4.1).
- top share: of the variance in the first principal direction.
- dimensions: exp of the entropy of the normalised spectrum of the covariance (effective rank, Roy and Vetterli 2007).
- kept d/2, d/4: the share of the variance that EmbedFilter at that size would keep, of vectors as wide as the decoder;
  a random half or quarter of the directions keeps 0.5 or 0.25.
- STS-B: Spearman correlation in per cent; SciFact: nDCG@10.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from benchmarks.datasets import read_sts
from benchmarks.encoders import load_encoder
from benchmarks.machine import describe
from benchmarks.nano_quality import retrieval_score, sts_score
from embedserve import EmbedserveError
from embedserve.backbone import find_folder
from embedserve.strategies.embedfilter import directions_of, kept_rows


def spread(vectors: np.ndarray) -> dict[str, float]:
    """Return mean cosine, top share and effective dimensions of unit vectors (N, d)."""
    vectors = vectors.astype(np.float64)
    count = len(vectors)
    total = vectors.sum(axis=0)
    mean_cosine = (float(total @ total) - count) / (count * (count - 1))
    values = np.linalg.eigvalsh(np.cov(vectors, rowvar=False))[::-1].clip(1e-30)
    shares = values / values.sum()
    return {
        "mean cosine": mean_cosine,
        "top share": float(shares[0]),
        "dimensions": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def kept_variance(vectors: np.ndarray, directions: np.ndarray) -> float:
    """Return the share of the variance of vectors (N, D) in orthonormal ``directions`` (k, D)."""
    spread = np.cov(vectors.astype(np.float64), rowvar=False)
    return float(np.trace(directions @ spread @ directions.T) / np.trace(spread))


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anisotropy", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--encoders", nargs="+", default=["mean"], help="encoders: a strategy, a folder, or a spec")
    parser.add_argument("--scifact", action="store_true", help="measure SciFact, too; it takes a minute an encoder")
    args = parser.parse_args()
    if args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; give the folder with sts/")
    _, first, second = read_sts(args.data / "sts" / "stsb")
    texts = list(dict.fromkeys([*first, *second]))
    print(f"{len(texts):,} sentences of STS-B; {describe()}")
    for name in args.encoders:
        try:
            encoder = load_encoder(name)
        except EmbedserveError as error:
            parser.error(error.message)
        vectors = encoder.embed(texts).vectors
        found = spread(vectors) | {"STS-B": sts_score(encoder, args.data / "sts" / "stsb")}
        directions = directions_of(find_folder(encoder.spec.backbone)).numpy()
        if len(directions) == encoder.dim:
            for ratio in (2, 4):
                found[f"kept d/{ratio}"] = kept_variance(vectors, directions[kept_rows(encoder.dim, ratio)])
        if args.scifact:
            found["SciFact"] = retrieval_score(encoder, args.data / "retrieval" / "scifact")
        print(
            f"{name:40}  d {encoder.dim:4d}" + "".join(f"  {key} {value:.3f}" for key, value in found.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
