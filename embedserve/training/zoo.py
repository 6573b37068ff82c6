"""Train the bundled heads: every strategy that has weights, on nano, by its recipe.

python -m embedserve.training.zoo --data TRAIN_DIR --cache DIR [--only glot colbert …] [--resume]

Reads ``pairs/NAME.jsonl.gz`` of the sources below, which are free for any use with attribution or share-alike, and
writes ``embedserve/zoo/STRATEGY``. Hidden states are computed once (8 minutes on one core, 3 GB) and shared by all
strategies that read the last layer.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from embedserve.heads import ZOO
from embedserve.spec import EncoderSpec
from embedserve.strategies import STRATEGIES, is_fitted, is_trained
from embedserve.training.hyperparameters import settings_for
from embedserve.training.pairs import read_pairs
from embedserve.training.train import train

SOURCES = (
    *("squad_train", "wordnet_gloss", "tldr_commands", "docs_heading_section", "medquad_train"),
    "python_docstring_code",
)
# Shared by all runs, so that they read the same texts.
COMMON = {"limit": 8000, "max_tokens": 192}


def main() -> None:
    """Parse the command line and train."""
    trained = [name for name in STRATEGIES if is_trained(name)]
    parser = argparse.ArgumentParser(prog="python -m embedserve.training.zoo", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs/*.jsonl.gz")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cached hidden states")
    parser.add_argument("--only", nargs="+", choices=trained, default=trained, help="strategies to train")
    parser.add_argument("--output", type=Path, default=ZOO, help="output folder of the heads")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoints")
    args = parser.parse_args()
    sources = [str(args.data / "pairs" / f"{name}.jsonl.gz") for name in SOURCES]
    for strategy in args.only:
        settings = settings_for(strategy, {"limit": COMMON["limit"]} if is_fitted(strategy) else COMMON)
        start_s = time.monotonic()
        result = train(
            EncoderSpec(strategy),
            read_pairs(sources, limit=settings.limit, seed=settings.seed),
            settings,
            args.output / strategy,
            sources=sources,
            cache=args.cache,
            resume=args.resume,
            judged=lambda step, quality: print(f"update {step:,}: MRR@10 {quality:.4f}", file=sys.stderr, flush=True),
        )
        minutes = (time.monotonic() - start_s) / 60
        quality = "" if result.before is None else f", MRR@10 {result.before:.4f} -> {result.after:.4f}"
        print(f"{strategy}: {result.steps:,} updates in {minutes:.1f} min{quality}", flush=True)


if __name__ == "__main__":
    main()
