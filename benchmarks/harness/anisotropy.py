"""Anisotropy of an encoder's vectors before and after EmbedFilter, beside their quality.

python -m benchmarks.harness.anisotropy --data EVAL_DIR --encoders mean last_token whitening … [--plot FOLDER]

- mean cosine: of random pairs of different texts; 0 in an isotropic space, near 1 in a narrow cone (Ethayarajh 2019,
  section 4.1).
- top share, top 10 share: of the variance in the first principal direction, and in the first ten.
- dimensions: exp of the entropy of the normalised spectrum of the covariance (effective rank, Roy and Vetterli 2007).
- frequent: of the 10 vocabulary entries with the largest logits for a vector, the share that is among the 100 most
  frequent tokens of the texts (EmbedFilter, arXiv 2606.07502); random entries give 100 / V.
- kept d/2, d/4: the share of the variance that EmbedFilter retains at that size; a random half or quarter of the
  directions keeps 0.5 or 0.25.
- STS-B: Spearman correlation in per cent; SciFact: nDCG@10.

Vectors of the decoder's width have a second line: the same vectors after EmbedFilter at half the width, with logits in
the retained directions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from benchmarks.common.encoders import load_encoder
from benchmarks.common.eval_sets import read_sts
from benchmarks.common.ir_metrics import spearman
from benchmarks.common.machine import describe
from benchmarks.encoding.nano_quality import retrieval_score
from embedserve import EmbedserveError
from embedserve.backbone import load_unembedding
from embedserve.model_folders import find_folder
from embedserve.strategies.embedfilter import directions_of, kept_rows

FREQUENT, NEAREST = 100, 10
RATIO = 2  # of the measured filter
BLOCK = 256  # vectors per matrix product of logits


def shares_of(vectors: np.ndarray) -> np.ndarray:
    """Return the share (d,) of the variance of vectors (N, d) in each principal direction, largest first."""
    values = np.linalg.eigvalsh(np.cov(vectors.astype(np.float64), rowvar=False))[::-1].clip(1e-30)
    shares: np.ndarray = values / values.sum()
    return shares


def spread(vectors: np.ndarray) -> dict[str, float]:
    """Return mean cosine, top shares and effective dimensions of unit vectors (N, d)."""
    vectors = vectors.astype(np.float64)
    count = len(vectors)
    total = vectors.sum(axis=0)
    mean_cosine = (float(total @ total) - count) / (count * (count - 1))
    shares = shares_of(vectors)
    return {
        "mean cosine": mean_cosine,
        "top share": float(shares[0]),
        "top 10 share": float(shares[:10].sum()),
        "dimensions": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def kept_variance(vectors: np.ndarray, directions: np.ndarray) -> float:
    """Return the share of the variance of vectors (N, D) in orthonormal ``directions`` (k, D)."""
    spread = np.cov(vectors.astype(np.float64), rowvar=False)
    return float(np.trace(directions @ spread @ directions.T) / np.trace(spread))


def filtered_by(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return vectors (N, D) projected on orthonormal ``directions`` (k, D) and normalised, as EmbedFilter does."""
    projected = vectors @ directions.T
    unit: np.ndarray = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    return unit


def frequent_share(vectors: np.ndarray, entries: np.ndarray, frequent: np.ndarray) -> float:
    """Return the share of frequent tokens among the `NEAREST` entries of each vector.

    Args:
        vectors: (N, k).
        entries: (V, k), of the vocabulary in the same space.
        frequent: (V,) bool.
    """
    shares = []
    for start in range(0, len(vectors), BLOCK):
        logits = vectors[start : start + BLOCK] @ entries.T
        shares.append(frequent[np.argpartition(-logits, NEAREST - 1, axis=1)[:, :NEAREST]])
    return float(np.concatenate(shares).mean())


def frequent_tokens(texts: Sequence[str], folder: Path, size: int) -> np.ndarray:
    """Return a mask (V,) of the `FREQUENT` most frequent tokens of ``texts``, special tokens excluded."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    counts = np.bincount([token for row in rows for token in row], minlength=size)
    frequent = np.zeros(size, dtype=bool)
    frequent[np.argsort(-counts, kind="stable")[:FREQUENT]] = True
    return frequent


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness.anisotropy", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--encoders", nargs="+", default=["mean"], help="encoders: a strategy, a folder, or a spec")
    parser.add_argument("--scifact", action="store_true", help="measure SciFact too; takes a minute per encoder")
    parser.add_argument("--plot", type=Path, help="folder for spectrum.png and spectrum-dark.png")
    args = parser.parse_args()
    if args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; give the folder with sts/")
    gold, *pairs = read_sts(args.data / "sts" / "stsb")
    texts = list(dict.fromkeys([*pairs[0], *pairs[1]]))
    index = {text: number for number, text in enumerate(texts)}
    first, second = ([index[text] for text in side] for side in pairs)
    print(f"{len(texts):,} sentences of STS-B; {describe()}")
    curves: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}

    def show(name: str, vectors: np.ndarray, more: dict[str, float]) -> None:
        score = spearman((vectors[first] * vectors[second]).sum(axis=1), gold)
        values = spread(vectors) | {"STS-B": score} | more
        columns = "".join(f"  {key} {value:.3f}" for key, value in values.items())
        print(f"{name:40}  d {vectors.shape[1]:4d}{columns}", flush=True)

    for name in args.encoders:
        try:
            encoder = load_encoder(name)
        except EmbedserveError as error:
            parser.error(error.message)
        vectors = encoder.embed(texts).vectors
        more = {"SciFact": retrieval_score(encoder, args.data / "retrieval" / "scifact")} if args.scifact else {}
        folder = find_folder(encoder.spec.backbone)
        directions = directions_of(folder).numpy()
        curves[name] = (shares_of(vectors), None)
        if len(directions) != encoder.dim:
            show(name, vectors, more)
            continue
        entries = load_unembedding(folder).float().numpy()
        frequent = frequent_tokens(texts, folder, len(entries))
        retained = directions[kept_rows(encoder.dim, RATIO)].astype(np.float32)
        filtered = filtered_by(vectors, retained)
        for ratio in (2, 4):
            more[f"kept d/{ratio}"] = kept_variance(vectors, directions[kept_rows(encoder.dim, ratio)])
        show(name, vectors, {"frequent": frequent_share(vectors, entries, frequent)} | more)
        show(f"  d/{RATIO}", filtered, {"frequent": frequent_share(filtered, entries @ retained.T, frequent)})
        curves[name] = (curves[name][0], shares_of(filtered))
    if args.plot is not None:
        from benchmarks.harness.spectrum import spectrum_plot

        args.plot.mkdir(parents=True, exist_ok=True)
        plot = spectrum_plot(curves, f"EmbedFilter d/{RATIO}")
        for end, image in plot.images.items():
            (args.plot / f"{plot.name}{end}.png").write_bytes(image)


if __name__ == "__main__":
    main()
