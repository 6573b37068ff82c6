"""Encoding speed of an encoder, beside sentence-transformers' own loop on the same model, and the machine's bound.

python -m benchmarks.encoding.encode_speed [--model nano] [--texts 10000]
python -m benchmarks.encoding.encode_speed --random-decoder 28x1024 --device cuda --dtype bfloat16 --texts 100000

The texts are descriptions of the functions and classes of the installed packages, from a few words to a long paragraph.
The two loops take turns, and the ratio is the median over the rounds; both give the same vectors.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common.encoders import random_decoder
from benchmarks.common.machine import describe, gemm_gflops
from embedserve import Encoder, EncoderSpec
from embedserve.compat import decoder_of
from indexing.sources.python_docs import python_documents


def flops_per_token(encoder: Encoder, mean_length: float) -> float:
    """Return the multiply-adds x 2 that one token costs: the layers' matrices and attention over ``mean_length``."""
    model = decoder_of(encoder.model[0])
    looked_up = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    }
    matrices = sum(w.numel() for w in model.parameters() if w.ndim == 2 and id(w) not in looked_up)
    config = model.config
    return 2.0 * matrices + 4.0 * config.num_hidden_layers * config.hidden_size * mean_length / 2


def mixed_texts(count: int) -> list[str]:
    """Return texts from a few words to a long passage: descriptions, their first words, several of them joined."""
    whole = [f"{document.title} {document.text}" for document in islice(python_documents(), count)]
    texts = []
    for number in range(count):
        text = whole[number % len(whole)]
        if number % 3 == 0:
            text = " ".join(text.split()[: 3 + number % 20])
        elif number % 3 == 1:
            text = " ".join(whole[(number + other) % len(whole)] for other in range(2 + number % 7))
        texts.append(text)
    return texts


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding.encode_speed", description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--random-decoder", metavar="LAYERSxWIDTH", help="a random Llama of this size instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="texts of a batch of sentence-transformers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model: str | EncoderSpec = args.model
        if args.random_decoder or args.dtype != "float32":
            backbone = random_decoder(args.random_decoder, Path(folder)) if args.random_decoder else args.model
            model = EncoderSpec("mean", backbone, dtype=args.dtype, max_tokens=512)
        encoder = Encoder.load(model, args.device)
    texts = mixed_texts(args.texts)
    tokens = int(encoder.embed(texts).tokens.sum())
    ours, theirs = [], []
    for _ in range(args.rounds):
        began = time.perf_counter()
        one = encoder.embed(texts).vectors
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        two = encoder.model.encode(texts, batch_size=args.batch_size, show_progress_bar=False)
        theirs.append(time.perf_counter() - began)
    bound = gemm_gflops(device=encoder.device, dtype=getattr(torch, args.dtype))
    rate = tokens / statistics.median(ours)
    used = rate * flops_per_token(encoder, tokens / len(texts)) / 1e9
    print(describe())
    print(f"texts                         {len(texts)}, {tokens} tokens, {tokens / len(texts):.0f} on average")
    print(f"embedserve                    {rate:,.0f} tokens/s, {len(texts) / statistics.median(ours):,.0f} texts/s")
    print(f"SentenceTransformer.encode    {tokens / statistics.median(theirs):,.0f} tokens/s")
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"ratio                         {ratio:.2f}, largest difference {np.abs(one - two).max():.1e}")
    print(f"matrix product (bound)        {bound:.0f} GFLOP/s; encoding uses {used:.0f}, {100 * used / bound:.0f} %")


if __name__ == "__main__":
    main()
