"""Every strategy on every local evaluation set, through mteb's own tasks: one command, one table.

python -m benchmarks.zoo --data EVAL_DIR [--encoders NAME…] [--tasks NAME…] [--quick] [--results DIR] [--kept]
                         [--markdown FILE]

A text is read once by all strategies that read the same states of nano. Results lie in mteb's own files under
--results, by the encoder's fingerprint; what is there is not measured again, so a stopped run goes on, and --kept
prints it and measures nothing. An encoder is a name of `ENCODERS`, or what `embedserve.spec.parse_spec` reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

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
    "embedfilter d/2": "embedfilter:ratio=2",
    "embedfilter d/4": "embedfilter:ratio=4",
    "embedfilter d/8": "embedfilter:ratio=8",
    "last_token, embedfilter d/2": "last_token+embedfilter:2",
    "last_token, embedfilter d/4": "last_token+embedfilter:4",
    "prompteol, embedfilter d/2": "prompteol+embedfilter:2",
    "prompteol, embedfilter d/4": "prompteol+embedfilter:4",
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


def evaluate(
    encoders: Mapping[str, Encoder],
    tasks: Sequence[Any],
    results: Path,
    say: Callable[[str], None],
    *,
    kept: bool = False,
) -> dict[str, dict[str, float]]:
    """Return the main score in per cent by encoder and task.

    Tasks that need one vector a text are left out for token vectors; with ``kept`` all that ``results`` does not hold.
    """
    import mteb

    from benchmarks.mteb_encoder import SharedVectors, as_mteb_model, model_meta

    cache = mteb.ResultCache(results)
    found: dict[str, dict[str, float]] = {name: {} for name in encoders}
    safe = {name: "".join(c if c.isalnum() or c in "_-." else "-" for c in name) for name in encoders}
    start = time.monotonic()
    for place, task in enumerate(tasks):
        fits = {
            name: encoder
            for name, encoder in encoders.items()
            if "dense" in encoder.outputs or task.metadata.type in ("Retrieval", "Reranking")
        }
        missing = {
            name: encoder
            for name, encoder in fits.items()
            if cache.load_task_result(task.metadata.name, model_meta(encoder, safe[name])) is None
        }
        if kept:
            fits = {name: encoder for name, encoder in fits.items() if name not in missing}
        shared = SharedVectors([encoder for encoder in missing.values() if "dense" in encoder.outputs])
        for name, encoder in fits.items():
            began = time.monotonic()
            # The classifiers that mteb fits are so small that a second thread only holds the first one up.
            with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
                warnings.simplefilter("ignore")  # of official sets that have a newer version
                result = mteb.evaluate(
                    as_mteb_model(encoder, safe[name], shared),
                    task,
                    cache=cache,
                    show_progress_bar=False,
                    co2_tracker=False,
                    public_only=False,
                )
            found[name][task.metadata.name] = score = 100 * float(result.task_results[0].get_score())
            say(f"{task.metadata.name}: {name} {score:.2f} ({time.monotonic() - began:.0f} s)")
        say(f"{place + 1}/{len(tasks)} tasks in {(time.monotonic() - start) / 60:.0f} min")
    return found


def table(
    scores: Mapping[str, Mapping[str, float]], tasks: Sequence[tuple[str, str, str]], dims: Mapping[str, int]
) -> str:
    """Return the scores as a Markdown table: encoders down, tasks across, and the mean over the kinds of tasks.

    Args:
        scores: By encoder and task.
        tasks: Name, kind and label of each.
        dims: By encoder.
    """
    tasks = [task for task in tasks if any(task[0] in row for row in scores.values())]
    kinds = list(dict.fromkeys(kind for _, kind, _ in tasks))
    heads = [label for _, _, label in tasks] + [f"mean {kind}" for kind in kinds if len(kinds) > 1] + ["mean"]
    lines = ["| encoder | d | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for name, row in scores.items():
        means = []
        for kind in kinds:
            members = [task for task, own, _ in tasks if own == kind]
            whole = all(task in row for task in members)
            means.append(sum(row[task] for task in members) / len(members) if whole else None)
        overall = (
            None if None in means or not means else sum(mean for mean in means if mean is not None) / max(len(means), 1)
        )
        cells = [row.get(task) for task, _, _ in tasks] + (means if len(kinds) > 1 else []) + [overall]
        if any(cell is not None for cell in cells):
            shown = ["" if cell is None else f"{cell:.1f}" for cell in cells]
            lines.append(f"| {name} | {dims[name]} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


# The parts of the table: what is searched, and what is compared or sorted.
PARTS = (("Retrieval", "Reranking"), ("STS", "PairClassification", "Classification", "Clustering"))


def main() -> None:
    """Read the command line, evaluate, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDSERVE_EVAL_DIR"), help="evaluation sets")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), help="default: all that ship")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; default: all")
    parser.add_argument("--quick", action="store_true", help="only the small sets")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of mteb's result files")
    parser.add_argument("--kept", action="store_true", help="print what --results holds, measure nothing")
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
    encoders = {}
    for name in args.encoders:
        try:
            encoders[name] = encoder_of(name)
        except EmbedserveError as error:
            parser.error(f"{name}: {error.message}")
    say = partial(print, file=sys.stderr, flush=True)
    scores = evaluate(encoders, tasks, args.results, say, kept=args.kept)
    dims = {name: encoder.dim for name, encoder in encoders.items()}
    labels = {source.task: source.label for source in SOURCES}
    parts = []
    for kinds in PARTS:
        own = [task.metadata for task in tasks if task.metadata.type in kinds]
        described = [(meta.name, str(meta.type), labels[meta.name]) for meta in own]
        parts += [table(scores, described, dims)] if own else []
    text = "\n\n".join([*parts, f"`{' '.join(['python -m benchmarks.zoo', *_public(sys.argv[1:])])}`; {describe()}"])
    text += "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


def _public(arguments: list[str]) -> list[str]:
    """Return the command line without the places of folders on this machine."""
    named = {"--data": "EVAL_DIR", "--results": "DIR", "--markdown": "FILE"}
    return [named.get(before, value) for before, value in zip(["", *arguments], arguments, strict=False)]


if __name__ == "__main__":
    main()
