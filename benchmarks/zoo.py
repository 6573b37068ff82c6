"""Every strategy on every local evaluation set, through mteb's own tasks: one command, one table.

python -m benchmarks.zoo --data EVAL_DIR [--encoders NAME…] [--tasks NAME…] [--quick] [--results DIR] [--markdown FILE]

Results lie in mteb's own files under --results, by the encoder's fingerprint; what is there is not measured again, so
a stopped run goes on. An encoder is a name of `ENCODERS`, or what `embedserve.spec.parse_spec` reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.encoders import load_encoder
from benchmarks.machine import describe
from embedserve import EmbedserveError, Encoder

MINILM = "all-MiniLM-L6-v2"
# Every strategy on nano, in the order of the table; the adapter is left out for the patent that its page names.
ENCODERS = {
    MINILM: "",
    "mean": "mean",
    "last_token": "last_token",
    "weighted_mean": "weighted_mean",
    "layer_mean": "layer_mean",
    "mean, bidirectional": json.dumps({"strategy": "mean", "attention": "bidirectional"}),
    "echo": "echo",
    "prompteol": "prompteol",
    "token_prepending": "token_prepending",
    "token_prepending, last layer": "token_prepending:output_layer=-1",
    "embedfilter d/2": "embedfilter:ratio=2",
    "embedfilter d/4": "embedfilter:ratio=4",
    "embedfilter d/8": "embedfilter:ratio=8",
    "truncate d/2": "mean+truncate:160",
    "truncate d/4": "mean+truncate:80",
    "whitening": "whitening",
    "weighted_layers": "weighted_layers",
    "multilayer": "multilayer",
    "latent_attention": "latent_attention",
    "glot": "glot",
    "causal2vec": "causal2vec",
    "lexsembridge": "lexsembridge",
    "promptreps, dense": "promptreps",
    "colbert": "colbert",
}


def encoder_of(name: str) -> Encoder:
    """Return an encoder of `ENCODERS`, or one that a spec or a folder describes."""
    if name == MINILM:
        from embedserve.training.teacher import minilm_folder

        return Encoder.load(minilm_folder())
    return load_encoder(ENCODERS.get(name, name))


def evaluate(encoder: Encoder, name: str, tasks: Sequence[Any], results: Path, say: Any) -> dict[str, float]:
    """Return the main score in per cent by task; tasks that need one vector a text are left out for token vectors."""
    import mteb

    from benchmarks.mteb_encoder import TokenModel, as_mteb_model

    model = as_mteb_model(encoder, "".join(c if c.isalnum() or c in "_-." else "-" for c in name))
    cache = mteb.ResultCache(results)
    found = {}
    for place, task in enumerate(tasks):
        if isinstance(model, TokenModel) and task.metadata.type not in ("Retrieval", "Reranking"):
            continue
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of official sets that have a newer version
            result = mteb.evaluate(
                model, task, cache=cache, show_progress_bar=False, co2_tracker=False, public_only=False
            )
        found[task.metadata.name] = 100 * float(result.task_results[0].get_score())
        seconds = time.monotonic() - began
        say(f"{name}: {task.metadata.name} {found[task.metadata.name]:.2f} ({seconds:.0f} s, {place + 1}/{len(tasks)})")
    return found


def table(scores: Mapping[str, Mapping[str, float]], types: Mapping[str, str], dims: Mapping[str, int]) -> str:
    """Return the scores as a Markdown table: encoders down, tasks across, and the mean over the kinds of tasks."""
    tasks = [name for name in types if any(name in row for row in scores.values())]
    kinds = list(dict.fromkeys(types[name] for name in tasks))
    lines = [
        "| encoder | d | " + " | ".join([*tasks, *(f"mean {kind}" for kind in kinds), "mean of means"]) + " |",
        "|---|---|" + "---|" * (len(tasks) + len(kinds) + 1),
    ]
    for name, row in scores.items():
        means = []
        for kind in kinds:
            members = [task for task in tasks if types[task] == kind]
            whole = all(task in row for task in members)
            means.append(sum(row[task] for task in members) / len(members) if whole else None)
        overall = None if None in means else sum(mean for mean in means if mean is not None) / len(means)
        cells = [row.get(task) for task in tasks] + means + [overall]
        shown = ["" if cell is None else f"{cell:.1f}" for cell in cells]
        lines.append(f"| {name} | {dims[name]} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, evaluate, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), help="default: all that ship")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; default: all")
    parser.add_argument("--quick", action="store_true", help="only the small sets")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of mteb's result files")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    args = parser.parse_args()
    if args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; give the folder with sts/, retrieval/ and the others")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import datasets

        datasets.disable_progress_bars()
        logging.getLogger("mteb").setLevel(logging.ERROR)
        from benchmarks.tasks import SOURCES, local_tasks
    except ImportError as error:
        parser.error(f"this needs {error.name}; run: pip install 'embedserve[mteb]'")
    known = [source.task for source in SOURCES]
    if unknown := [name for name in args.tasks or [] if name not in known]:
        parser.error(f"--tasks: there is no task {unknown[0]!r}; there are {', '.join(known)}")
    large = {source.task for source in SOURCES if source.is_large}
    tasks = [
        task
        for task in local_tasks(args.data)
        if task.metadata.name in (args.tasks or known) and not (args.quick and task.metadata.name in large)
    ]
    scores, dims = {}, {}
    began = time.monotonic()
    for place, name in enumerate(args.encoders):
        try:
            encoder = encoder_of(name)
        except EmbedserveError as error:
            parser.error(f"{name}: {error.message}")
        scores[name] = evaluate(
            encoder, name, tasks, args.results, lambda text: print(text, file=sys.stderr, flush=True)
        )
        dims[name] = encoder.dim
        passed = (time.monotonic() - began) / 60
        left = passed / (place + 1) * (len(args.encoders) - place - 1)
        print(f"{place + 1}/{len(args.encoders)} encoders, {passed:.0f} min, about {left:.0f} left", file=sys.stderr)
    found = table(scores, {task.metadata.name: task.metadata.type for task in tasks}, dims)
    text = f"{found}\n\n`{' '.join(['python -m benchmarks.zoo', *_public(sys.argv[1:])])}`; {describe()}\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


def _public(arguments: list[str]) -> list[str]:
    """Return the command line without the places of folders on this machine."""
    named = {"--data": "EVAL_DIR", "--results": "DIR", "--markdown": "FILE"}
    return [named.get(before, value) for before, value in zip(["", *arguments], arguments, strict=False)]


if __name__ == "__main__":
    main()
