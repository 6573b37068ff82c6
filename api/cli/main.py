"""The command line ``embedserve``: the commands, the top-level help and the exit codes."""

from __future__ import annotations

import logging
import os
import sys
import threading
from importlib.metadata import entry_points
from typing import Annotated, Any

# Threads that wait for work sleep: where two processes share the cores, spinning ones hold up those that compute.
# The OpenMP libraries of torch and faiss read this once, as they are loaded, so it stands before what may load them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN keeps what it prepared for the last 1,024 shapes it met, a third of a megabyte each. Batches of texts have ever
# new shapes, so that memory would grow by that with each and nothing be used again.
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

WORKERS = ("shard", "embed", "tokenize", "ray-")  # names of the threads that compute
HELP = """Turn any decoder language model into a text encoder, and serve search with it.

\b
First steps:
  embedserve serve --build-sample           a search page on http://127.0.0.1:8080
  embedserve search "copy a file"           the same from the shell
  embedserve index build ./my-notes         a collection of your own
  embedserve config show                    the settings, and where each comes from
  embedserve doctor                         what works here, and what does not

\b
Results go to stdout, progress and errors to stderr.
Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 no such model or collection,
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
for command in entry_points(group="embedserve.commands"):  # those of packages that nothing here may import
    app.add_typer(command.load(), name=command.name)

# The base of every usage error: typer's own copy of click in new versions, click itself in old ones.
UsageProblem: Any = typer.BadParameter.__mro__[2]


def _show_version(wanted: bool) -> None:
    if wanted:
        out(f"embedserve {__version__}")
        raise typer.Exit(OK)


@app.callback()
def _main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; a traceback is shown only with ``--debug``."""
    given = sys.argv[1:] if arguments is None else arguments
    words = given[: given.index("--")] if "--" in given else given
    debug, as_json = "--debug" in words, "--json" in words
    if debug:  # wherever it stands
        given = ["--debug", *(word for place, word in enumerate(given) if word != "--debug" or place >= len(words))]
    _keep_standard_files()
    be_quiet(debug=debug)
    try:
        code = _run(given, as_json=as_json, debug=debug)
        flush_out()
    except ReaderGoneError:  # such as head, which has seen enough
        code = OK
    except EmbedserveError as error:
        code = report_error(error, as_json=as_json)
    is_program = arguments is None
    if is_program and code == INTERRUPTED and any(thread.name.startswith(WORKERS) for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)  # the interpreter's own end would wait for threads that compute, or break under them
    sys.exit(code)


def _keep_standard_files() -> None:
    """Fill the places of closed standard files, so that no file opened later is taken for one of them."""
    while (place := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(place)


def _run(arguments: list[str], *, as_json: bool, debug: bool) -> int:
    try:
        code = app(arguments, prog_name="embedserve", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except ReaderGoneError:
        raise
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer itself wrote, such as a command's help
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
    except Exception as error:  # a fault of ours: a sentence for the user, the traceback with --debug
        if debug:
            logging.getLogger(__name__).exception("failed")
        message = f"{type(error).__name__}: {error}; run it with --debug to see where, and please report it"
        return report_error(ApiError(500, "internal", message), as_json=as_json)
    code = code if isinstance(code, int) else OK
    return _interrupted() if code == INTERRUPTED else code


def _interrupted() -> int:
    note("\ninterrupted")
    return INTERRUPTED


if __name__ == "__main__":
    main()
