"""embedserve serve: the HTTP service in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.console import load_encoder
from api.cli.index import build_with_progress
from api.cli.index_build import SAMPLE
from api.cli.shared_options import DataDir, Device, Json, Model, Strategy
from api.settings import Settings, load_settings, unknown_variables
from api.telemetry.logs import use_format
from embedserve.errors import BusyError, CorruptFileError, EmbedserveError, IndexMismatchError, NotFoundError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Document

BUILT = "sample-version"  # a file in the collection: the manifest's version that --build-sample made


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless set.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8080 unless set, 0 for a free one.")] = None,
    build_sample: Annotated[
        bool, typer.Option("--build-sample", help="Build the collection python-docs first, if it is not there.")
    ] = False,
    model: Model = None,
    strategy: Strategy = None,
    device: Device = None,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Searched when a request names none; python-docs unless set."),
    ] = None,
    data_dir: DataDir = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    json: Json = False,
) -> None:
    """Serve embeddings and search over HTTP.

    A search page is at /, the API is explained and tried out at /docs.
    The settings are also variables: EMBEDSERVE_HOST, EMBEDSERVE_PORT, EMBEDSERVE_DATA_DIR, EMBEDSERVE_MODEL, …
    A TOML file named by EMBEDSERVE_CONFIG may hold them too. A signal lets accepted requests finish first.

    Examples:
      embedserve serve --build-sample
      embedserve serve --port 9000 --collection notes
      EMBEDSERVE_DATA_DIR=./data embedserve serve --host 0.0.0.0
    """
    from api.cli.server import bind, remark, run

    settings = load_settings(
        host=host,
        port=port,
        model=model,
        strategy=strategy,
        device=device,
        collection=collection,
        data_dir=data_dir,
        log_level=log_level,
    )
    use_format(settings.log_format, messages=logging.getLogger().level <= logging.INFO)
    for name in ("api", "embedserve", "indexing"):
        logging.getLogger(name).setLevel(settings.log_level.upper())
    for sentence in unknown_variables():
        remark(settings, f"warning: {sentence}")
    with contextlib.closing(bind(settings.host, settings.port)) as sock:
        remark(settings, f"loading model {settings.model} …")
        encoder = load_encoder(settings.model, settings.device, settings.strategy)
        if build_sample:
            ensure_sample(settings, encoder)
        run(settings, encoder, sock, as_json=json)


def ensure_sample(settings: Settings, encoder: Encoder) -> None:
    """Build the sample collection where there is none, or where it is another encoder's and nobody has written to it.

    A collection that may hold a user's documents is never replaced. Another encoder's stays as it is. One that cannot
    be read is moved aside. Either is said.

    Raises:
        EmbedserveError: The collection is being written to, or the disk cannot be written.
    """
    from api.cli.server import remark
    from indexing import Collection
    from indexing.collections.aliases import resolve
    from indexing.collections.manifest import MANIFEST
    from indexing.sources.python_docs import python_documents

    try:
        folder = resolve(settings.data_dir, SAMPLE)
    except CorruptFileError as error:  # what the name means is unknown
        remark(settings, f"warning: the sample collection is not built: {error.message}")
        return
    try:
        with Collection.open(folder, encoder=encoder):
            return
    except (NotFoundError, IndexMismatchError, CorruptFileError) as error:
        problem: EmbedserveError = error
    if folder.name != SAMPLE:
        message = f"the alias {SAMPLE} and its collection {folder.name} stay as they are: {problem.message}"
        remark(settings, f"warning: {message}")
        return
    if not _replaceable(folder):
        if isinstance(problem, IndexMismatchError):
            remark(settings, _left(settings, problem))
            return
        reason = f"{MANIFEST} is missing" if isinstance(problem, NotFoundError) else problem.message
        aside = _move_aside(folder)
        remark(settings, f"warning: the collection {SAMPLE} cannot be read, it was moved to {aside}: {reason}")
    elif not isinstance(problem, NotFoundError):
        remark(settings, f"nobody has written to the sample collection, it is rebuilt: {problem.message}")
    remark(settings, f"building the sample collection {SAMPLE} (docs of the installed Python packages), once …")
    _build_sample(settings, encoder, folder, list(python_documents()))


def _build_sample(settings: Settings, encoder: Encoder, folder: Path, documents: list[Document]) -> None:
    """Build the collection and record its version, by which a later start knows that nobody has written to it."""
    from indexing import build_collection
    from indexing.storage.files import replace_file, writing

    def checked() -> Iterator[Document]:
        if not _replaceable(folder):  # the build holds the lock now, so this stays true
            raise BusyError(f"collection {SAMPLE!r} was written to by another program; start again", field="collection")
        yield from documents

    if settings.log_format == "json":  # each line of the log is an object
        manifest = build_collection(checked(), encoder, folder, total=len(documents))
    else:
        manifest = build_with_progress(checked(), encoder, settings.data_dir, SAMPLE, total=len(documents))
    with writing(folder):
        replace_file(folder / BUILT, manifest.version.encode())


def _replaceable(folder: Path) -> bool:
    """Return whether it is certain that a folder holds nothing but the sample as it was built, or an unfinished build.

    Every write makes the log longer; every compaction, restore or other build gives the manifest another version.
    """
    from indexing.collections.manifest import SEGMENTS, read_manifest
    from indexing.collections.wal import FILE_START
    from indexing.segments.segment import SEGMENT

    try:
        manifest = read_manifest(folder)
        built, log = (folder / BUILT).read_bytes(), (folder / manifest.wal).stat().st_size
    except NotFoundError:  # a finished collection whose manifest was lost still has its log or a segment
        return not any(folder.glob("wal-*.log")) and not any(folder.glob(f"{SEGMENTS}/*/{SEGMENT}"))
    except (OSError, CorruptFileError):
        return False
    return built == manifest.version.encode() and log == FILE_START


def _move_aside(folder: Path) -> Path:
    """Rename a collection to the first of ``python-docs-unreadable-1``, ``-2``, … that is free; return its new path."""
    from indexing.storage.files import sync, write_lock, writing

    with writing(folder), write_lock(folder):
        names = (folder.with_name(f"{SAMPLE}-unreadable-{number}") for number in count(1))
        aside = next(path for path in names if not path.exists())
        os.replace(folder, aside)
        sync(folder.parent)
    return aside


def _left(settings: Settings, problem: EmbedserveError) -> str:
    """Return what to say of a collection that another encoder built and that may hold a user's documents."""
    strategy = "" if settings.strategy is None else f" --strategy {shlex.quote(settings.strategy)}"
    command = f"embedserve collection reembed {SAMPLE} --model {shlex.quote(settings.model)}{strategy}"
    return (
        f"warning: the collection {SAMPLE} may hold documents of yours and stays as it is: {problem.message}; "
        f"to keep its documents with this encoder: {command}; to search another collection: serve --collection NAME"
    )
