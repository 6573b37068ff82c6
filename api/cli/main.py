"""The command line ``embedserve``: the commands, the top-level help and the exit codes."""

from __future__ import annotations

import logging
import os
import sys
import threading
from importlib.metadata import entry_points
from typing import Annotated, Any

# Idle OpenMP threads sleep instead of spinning, which would slow down other processes on the same cores. torch and
# faiss read this when they are loaded, so it is set before any import of them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN caches primitives for the last 1,024 shapes, a third of a megabyte each. Batches rarely repeat a shape,
# so the cache would only grow.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

import typer

from api.cli.collection import collection_app
from api.cli.config import config_app
from api.cli.console import (
    BAD_INPUT,
    INTERRUPTED,
    OK,
    ReaderGoneError,
    be_quiet,
    flush_out,
    note,
    out,
    report_error,
    silence,
)
from api.cli.doctor import doctor
from api.cli.embed import embed
from api.cli.index import index_app
from api.cli.search import search
from api.cli.serve import serve
from api.cli.shared_options import help_of
from api.cli.strategies import strategies
from api.cli.train import train
from api.http.error_responses import ApiError
from embedserve import __version__
from embedserve.errors import EmbedserveError

WORKERS = ("shard", "embed", "tokenize", "ray-")  # name prefixes of worker threads
HELP = """Turn any decoder language model into a text encoder, and serve search with it.

\b
First steps:
  embedserve serve --build-sample           a search page on http://127.0.0.1:8080
  embedserve search "copy a file"           search from the shell
  embedserve index build ./my-notes         build a collection of your own files
  embedserve config show                    show the settings and their origin
  embedserve doctor                         check the installation

\b
Results go to stdout, progress and errors to stderr.
Exit codes: 0 success, 1 failure, 2 invalid usage or input, 3 model or collection not found,
            4 collection damaged or built by another encoder, 130 interrupted.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)
app.command("embed", help=help_of(embed))(embed)
app.command("search", help=help_of(search))(search)
app.add_typer(index_app, name="index")
app.add_typer(collection_app, name="collection")
app.command("serve", help=help_of(serve))(serve)
app.command("train", help=help_of(train))(train)
app.command("strategies", help=help_of(strategies))(strategies)
app.add_typer(config_app, name="config")
app.command("doctor", help=help_of(doctor))(doctor)
for command in entry_points(group="embedserve.commands"):  # commands of packages that this one must not import
    app.add_typer(command.load(), name=command.name)

# Base class of usage errors: in typer's copy of click, or in click itself, depending on the version.
UsageProblem: Any = typer.BadParameter.__mro__[2]


def _show_version(requested: bool) -> None:
    if requested:
        out(f"embedserve {__version__}")
        raise typer.Exit(OK)


@app.callback()
def _main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the log and tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; tracebacks are shown only with ``--debug``."""
    argv = sys.argv[1:] if arguments is None else arguments
    options = argv[: argv.index("--")] if "--" in argv else argv
    debug, as_json = "--debug" in options, "--json" in options
    if debug:  # accepted at any position, for example after the command
        argv = ["--debug", *(word for word in options if word != "--debug"), *argv[len(options) :]]
    _keep_standard_files()
    be_quiet(debug=debug)
    try:
        code = _run(argv, as_json=as_json, debug=debug)
        flush_out()
    except ReaderGoneError:  # for example head
        code = OK
    except EmbedserveError as error:
        code = report_error(error, as_json=as_json)
    is_program = arguments is None
    if is_program and code == INTERRUPTED and any(thread.name.startswith(WORKERS) for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)  # a normal exit would wait for the worker threads, or crash under them
    sys.exit(code)


def _keep_standard_files() -> None:
    """Open /dev/null for closed standard streams, so that no other file gets their descriptors."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _run(arguments: list[str], *, as_json: bool, debug: bool) -> int:
    try:
        code = app(arguments, prog_name="embedserve", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except ReaderGoneError:
        raise
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # raised by typer, for example while it prints help
            silence(sys.__stdout__)
            return OK
        raise
    except EmbedserveError as error:
        if debug:
            logging.getLogger(__name__).exception("failed")
        return report_error(error, as_json=as_json)
    except UsageProblem as problem:
        if type(problem).__name__ == "NoArgsIsHelpError":
            out(problem.format_message())
            return BAD_INPUT
        context = getattr(problem, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context is not None else ""
        report_error(ApiError(422, "usage", problem.format_message() + hint), as_json=as_json)
        return BAD_INPUT
    except Exception as error:  # internal error: one sentence, and the traceback with --debug
        if debug:
            logging.getLogger(__name__).exception("failed")
        message = (
            f"{type(error).__name__}: {error}; run the command with --debug for the traceback, and please report it"
        )
        return report_error(ApiError(500, "internal", message), as_json=as_json)
    code = code if isinstance(code, int) else OK
    return _interrupted() if code == INTERRUPTED else code


def _interrupted() -> int:
    note("\ninterrupted")
    return INTERRUPTED


if __name__ == "__main__":
    main()
