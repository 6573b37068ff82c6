"""Encode time of every strategy beside plain last-token pooling, on the same texts in the same run.

python -m benchmarks.encoding.strategy_speed [--model nano] [--texts 400] [--rounds 5] [--only NAME…]
python -m benchmarks.encoding.strategy_speed --random-decoder 24x1024 --device cuda --dtype bfloat16

The encoders take turns, and a ratio is the median over the rounds. Trained strategies have random heads: what is learnt
takes no time. The share is of the floating-point operations of the decoder's matrices and attention, at the rate of a
bare matrix product on this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.encoders import random_decoder
from benchmarks.common.machine import describe, gemm_gflops
from benchmarks.encoding.encode_speed import flops_per_token
from embedserve import EmbedserveError, Encoder, EncoderSpec
from embedserve.spec import parse_spec
from embedserve.strategies import is_trained
from indexing.sources.python_docs import python_documents

BASE = "last_token"
# What is measured, and the bound on its ratio where one is promised.
VARIANTS: dict[str, tuple[str, float | None]] = {
    "last_token": ("last_token", None),
    "mean": ("mean", None),
    "embedfilter d/2": ("embedfilter:ratio=2,pooling=last_token", 1.02),
    "token_prepending, last layer": ("token_prepending:output_layer=-1", 1.10),
    "token_prepending, early exit": ("token_prepending", 1.0),
    "its plain prompt": ("token_prepending:start=null,output_layer=-1", None),
    "echo": ("echo", None),
    "layer_mean": ("layer_mean", None),
    "weighted_layers": ("weighted_layers", None),
    "multilayer": ("multilayer", 1.15),
    "latent_attention": ("latent_attention", None),
    "glot": ("glot", 1.5),
    "glot as shipped": ("glot:hidden=128,layers=2", 1.5),
    "causal2vec": ("causal2vec", None),
    "causal2vec, decoder alone": ("causal2vec", 1.05),
    "colbert": ("colbert", None),
    "lexsembridge (queries)": ("lexsembridge", None),
    "promptreps": ("promptreps", None),
    "mean, bidirectional": (json.dumps({"strategy": "mean", "attention": "bidirectional"}), None),
}


def passages(count: int, size: int = 4) -> list[str]:
    """Return texts of about 100 tokens: descriptions of Python functions, ``size`` of them in one."""
    texts = [f"{document.title}: {document.text}" for document in islice(python_documents(), count * size)]
    return [" ".join(texts[start : start + size]) for start in range(0, len(texts), size)]


def load(text: str, args: argparse.Namespace, model: str) -> Encoder:
    """Return the encoder of a variant, with a random head where it is trained."""
    spec = parse_spec(text, backbone=model, dtype=args.dtype, max_tokens=args.max_tokens)
    if is_trained(spec.strategy, spec.options):
        spec = EncoderSpec.from_dict({**spec.to_dict(), "head": "random"})
    return Encoder.load(spec, args.device)


def seconds(encoder: Encoder, texts: list[str], task: Any) -> float:
    """Return the time of one pass, without tokenisation, which all strategies share."""
    rows = encoder.tokenize(texts, task)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    encoder.encode_rows(rows)
    return time.perf_counter() - began


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding.strategy_speed", description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--random-decoder", metavar="LAYERSxWIDTH", help="a random Llama of this size instead")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    names = list(dict.fromkeys([BASE, *args.only]))
    texts = passages(args.texts)
    with tempfile.TemporaryDirectory() as folder:
        model = random_decoder(args.random_decoder, Path(folder)) if args.random_decoder else args.model
        try:
            encoders = {name: load(VARIANTS[name][0], args, model) for name in names}
        except EmbedserveError as error:
            parser.error(error.message)
    if "causal2vec, decoder alone" in encoders:  # contextual tokens at no cost: what is left is the decoder's part
        decoder: Any = encoders["causal2vec, decoder alone"].model[0]
        decoder.context = lambda ids: torch.zeros(len(ids), decoder.get_embedding_dimension(), device=ids.device)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds + 1):
        for name, encoder in encoders.items():
            taken = seconds(encoder, texts, "query" if "queries" in name else "document")
            if number:  # the first round warms up
                times[name].append(taken)
    base = encoders[BASE]
    tokens = {name: int(encoder.tokenize(texts).lengths.sum()) for name, encoder in encoders.items()}
    bound = gemm_gflops(device=base.device, dtype=getattr(torch, args.dtype))
    flops = flops_per_token(base, tokens[BASE] / len(texts))
    print(
        f"{args.random_decoder or args.model}, {args.dtype}, {len(texts)} texts, {tokens[BASE]:,} tokens; {describe()}"
    )
    print(f"matrix product (bound): {bound:,.0f} GFLOP/s")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(times[name], times[BASE], strict=True))
        rate = tokens[name] / statistics.median(times[name])
        share = 100 * rate * flops / 1e9 / bound
        most = VARIANTS[name][1]
        promised = "" if most is None else f"   at most {most:.2f}"
        print(f"{name:30} {ratio:5.2f} x {BASE} {rate:10,.0f} tokens/s  {share:3.0f} % of the bound{promised}")


if __name__ == "__main__":
    main()
