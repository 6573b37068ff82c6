"""``embedserve bench mteb | report | submit``: the harness on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.shared_options import help_of
from benchmarks.harness.needs import needing_mteb
from benchmarks.harness.report_command import listed, report, submit
from embedserve import EmbedserveError, InputError

bench_app = typer.Typer(help="Evaluate encoders with MTEB, offline too.", no_args_is_help=True, rich_markup_mode=None)
bench_app.command("report", help=help_of(report))(report)
bench_app.command("submit", help=help_of(submit))(submit)
Results = Annotated[Path, typer.Option("--results", help="Folder of results; results in it are not measured again.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of local sets (retrieval/NAME, sts/NAME, …). Default: mteb loads its own sets.",
        show_default=False,
    ),
]


def mteb_command(
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            "-e",
            help="ENCODER[#ENGINE]: a spec, a folder or a model, and the engine that searches it; repeatable. "
            "Default: every strategy on nano.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", "-t", help="Names of tasks, comma-separated; repeatable.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", "-b", help="'MTEB(eng, v2)', NanoBEIR, BEIR, …", show_default=False)
    ] = None,
    diagnostics: Annotated[
        str | None,
        typer.Option(
            "--diagnostics",
            help="Diagnostic tasks instead: all, or needle, keywords, parts, length and position, comma-separated.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    results: Results = Path("results"),
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="TOML file of prompts by task and kind of task.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip large local sets.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, help="Padded tokens per batch.", show_default=False)
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share the tasks; each uses one GPU, if any.")
    ] = 1,
    part: Annotated[str | None, typer.Option("--part", hidden=True)] = None,
) -> None:
    """Evaluate encoders, and print one table.

    Results are stored in --results under a digest of all settings; an interrupted run continues.

    Examples:
      embedserve bench mteb --data ./eval -e mean -e colbert -e colbert#muvera -e bm25
      embedserve bench mteb -e sentence-transformers/all-MiniLM-L6-v2 -b NanoBEIR
      embedserve bench mteb -e ./my-encoder -t SciFact,STSBenchmark --prompts prompts.toml
      embedserve bench mteb -e mean -e glot --diagnostics all --data ./eval
    """
    names = [name for value in tasks or [] for name in value.split(",") if name]
    if diagnostics is not None and (names or benchmark or quick):
        raise InputError("--diagnostics cannot be combined with --tasks, --benchmark or --quick", field="diagnostics")
    if data is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with needing_mteb():
        from benchmarks.harness.diagnostics import choose_diagnostics
        from benchmarks.harness.evaluation import evaluate
        from benchmarks.harness.systems import MATRIX
        from benchmarks.harness.table import tables
        from benchmarks.harness.task_prompts import load_prompts
        from benchmarks.harness.tasks import choose_tasks, known_names
    if diagnostics is not None:
        chosen, sizes = choose_diagnostics(listed(diagnostics), data)
    else:
        chosen, sizes = choose_tasks(data, names, benchmark, quick=quick)
    read = load_prompts(prompts, known_names(chosen)) if prompts else {}
    if processes > 1:
        _run_parts(processes, device)
    if part is not None:
        chosen = _part_of(chosen, sizes, *map(int, part.split("/")))
    systems = _load_systems(encoder or list(MATRIX), device, batch_tokens)
    say = partial(print, file=sys.stderr, flush=True)
    arguments = public(sys.argv[1:])
    records = evaluate(systems, chosen, results, say, prompts=read, sizes=sizes, arguments=arguments)
    if part is None:
        print(tables(records))


bench_app.command("mteb", help=help_of(mteb_command))(mteb_command)


def public(arguments: list[str]) -> list[str]:
    """Return a command line without the paths of this machine."""
    named = {"--data": "EVAL_DIR", "--results": "DIR", "--prompts": "FILE", "--output": "DIR"}
    public_arguments = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if equals and option in named:
            public_arguments.append(f"{option}={named[option]}")
        elif before in named:
            public_arguments.append(named[before])
        else:  # only the name of a model folder
            is_folder = "/" in value and Path(value.partition("#")[0]).expanduser().is_dir()
            public_arguments.append(f"{option}{equals}{Path(value).name}" if is_folder else argument)
    return public_arguments


def _load_systems(names: list[str], device: str, batch_tokens: int | None) -> list[Any]:
    """Load the systems of ``--encoder``; an error names the one that failed."""
    from benchmarks.harness.systems import load_system

    systems = []
    for name in names:
        try:
            systems.append(load_system(name, device, batch_tokens))
        except EmbedserveError as error:
            error.message = f"--encoder {name}: {error.message}"
            raise
    return systems


def _part_of(tasks: list[Any], sizes: dict[str, int], number: int, count: int) -> list[Any]:
    """Return the tasks of process ``number`` of ``count``: largest first, each to the process with the least load."""
    loads = [0] * count
    part = []
    for task in sorted(tasks, key=lambda task: -sizes.get(task.metadata.name, 1)):
        least = loads.index(min(loads))
        loads[least] += sizes.get(task.metadata.name, 1)
        if least == number:
            part.append(task)
    return part


def _run_parts(processes: int, device: str) -> None:
    """Run this command in several processes, each with a part of the tasks and the same results folder."""
    arguments = sys.argv[1:]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    children = []
    for number in range(processes):
        env = dict(os.environ)
        if device == "cpu" or not _gpus():
            env["OMP_NUM_THREADS"] = str(max(1, cores // processes))
        else:
            env["CUDA_VISIBLE_DEVICES"] = str(number % _gpus())
        command = [sys.executable, sys.argv[0], *arguments, "--processes", "1", "--part", f"{number}/{processes}"]
        children.append(subprocess.Popen(command, env=env))  # noqa: S603 - this command
    try:
        codes = [process.wait() for process in children]
    except KeyboardInterrupt:
        for process in children:
            process.wait()
        raise
    if any(codes):
        raise EmbedserveError("a process failed, see its output above; run the command again to continue")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
