"""The quality figures of nano's model card, or of any encoder: STS, retrieval and next-token loss.

python -m benchmarks.encoding.nano_quality --data EVAL_DIR [--model nano] [--strategy mean] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.common.eval_sets import read_retrieval, read_sts
from benchmarks.common.ir_metrics import ndcg, spearman
from benchmarks.common.machine import describe
from embedserve import EmbedserveError, Encoder, EncoderSpec, LoadError
from embedserve.backbone import load_language_model
from embedserve.model_folders import find_folder

STS = ("stsb",)
RETRIEVAL = ("scifact", "squad-dev", "cranfield", "medquad", "pydoc-code")
LANGUAGE = "squad-dev"


def sts_score(encoder: Encoder, folder: Path) -> float:
    """Return the Spearman correlation in per cent of cosine with the gold scores."""
    gold, first, second = read_sts(folder)
    one, two = encoder.embed(first).vectors, encoder.embed(second).vectors
    return spearman((one * two).sum(axis=1), gold)


def retrieval_score(encoder: Encoder, folder: Path, k: int = 10) -> float:
    """Return nDCG@k in per cent of exact search by cosine."""
    data = read_retrieval(folder)
    documents = encoder.embed(data.documents, "document").vectors
    queries = encoder.embed(data.queries, "query").vectors
    ranked = {}
    for start in range(0, len(queries), 1024):
        scores = queries[start : start + 1024] @ documents.T
        top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for query_id, row in zip(data.query_ids[start : start + 1024], top, strict=True):
            ranked[query_id] = [data.document_ids[document] for document in row]
    return ndcg(ranked, data.qrels, k)


@torch.inference_mode()
def next_token_loss(model: str, folder: Path, window: int = 256) -> dict[str, float]:
    """Return nats per token and bits per byte of the decoder on the documents of a retrieval set, never trained on.

    The documents stand one after another, an end token between them, in windows of ``window`` tokens.
    """
    path = find_folder(model)
    decoder = load_language_model(path)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    documents = read_retrieval(folder).documents
    rows = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor([token for row in rows for token in [*row, tokenizer.eos_token_id]])
    windows = ids[: len(ids) // window * window].view(-1, window)
    total = 0.0
    for batch in windows.split(8):
        logits = decoder(input_ids=batch).logits[:, :-1]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    nats = total / (windows.numel() - len(windows))
    shares = torch.bincount(ids).double() / len(ids)
    num_bytes = sum(len(document.encode()) for document in documents)
    return {
        "nats per token": nats,
        "bits per byte": nats / np.log(2) * len(ids) / num_bytes,
        "unigram nats per token": float(-(shares * shares.clamp_min(1e-30).log()).sum()),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding.nano_quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--model", default="nano", help="nano, a saved encoder, or any decoder")
    parser.add_argument("--strategy", help="strategy over the decoder; default mean")
    parser.add_argument("--post", nargs="*", default=[], help="post-transforms, such as embedfilter:2")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    if args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; give the folder with sts/ and retrieval/")
    plain = args.strategy is None and not args.post
    spec = EncoderSpec(args.strategy or "mean", args.model, post=tuple(args.post))
    try:
        encoder = Encoder.load(args.model if plain else spec)
    except EmbedserveError as error:
        parser.error(error.message)
    found = {f"{name} (Spearman)": sts_score(encoder, args.data / "sts" / name) for name in STS}
    for name in RETRIEVAL:
        found[f"{name} (nDCG@10)"] = retrieval_score(encoder, args.data / "retrieval" / name)
    try:
        found |= next_token_loss(args.model, args.data / "retrieval" / LANGUAGE)
    except LoadError:
        found["nats per token"] = float("nan")  # an encoder model has no unembedding
    if args.json:
        print(json.dumps({"model": args.model, "machine": describe(), **found}, indent=1))
        return
    print(f"{args.model}, strategy {encoder.spec.strategy}, {encoder.dim} dimensions; {describe()}")
    for name, value in found.items():
        print(f"{name:28} {value:7.2f}")


if __name__ == "__main__":
    main()
