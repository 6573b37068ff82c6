"""``embedserve serve``: the HTTP service."""

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

BUILT = "sample-version"  # a file in the collection: version of the manifest that --build-sample wrote


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port to listen on; 0 picks a free one. Default: 8080.")
    ] = None,
    build_sample: Annotated[
        bool, typer.Option("--build-sample", help="Build the sample collection python-docs if it does not exist.")
    ] = False,
    model: Model = None,
    strategy: Strategy = None,
    device: Device = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", "-c", metavar="NAME", help="Collection of requests that name none. Default: python-docs."
        ),
    ] = None,
    data_dir: DataDir = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error. Default: info.")
    ] = None,
    json: Json = False,
) -> None:
    """Serve embeddings and search over HTTP.

    The search page is at /, the interactive API documentation at /docs. Every setting is also an environment variable
    (EMBEDSERVE_HOST, EMBEDSERVE_PORT, EMBEDSERVE_DATA_DIR, EMBEDSERVE_MODEL, …) or a key of the TOML file named by
    EMBEDSERVE_CONFIG. On SIGINT or SIGTERM, accepted requests are finished first.

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
    for warning in unknown_variables():
        remark(settings, f"warning: {warning}")
    with contextlib.closing(bind(settings.host, settings.port)) as sock:
        remark(settings, f"loading model {settings.model} …")
        encoder = load_encoder(settings.model, settings.device, settings.strategy)
        if build_sample:
            ensure_sample(settings, encoder)
        run(settings, encoder, sock, as_json=json)


def ensure_sample(settings: Settings, encoder: Encoder) -> None:
    """Build the sample collection if it does not exist, or if another encoder built it and it was never written to.

    A collection that may hold a user's documents is never replaced: one of another encoder is not changed, an
    unreadable one is moved aside. Both are reported.

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
    except CorruptFileError as error:  # the target of the name is unknown
        remark(settings, f"warning: the sample collection is not built: {error.message}")
        return
    try:
        with Collection.open(folder, encoder=encoder):
            return
    except (NotFoundError, IndexMismatchError, CorruptFileError) as error:
        problem: EmbedserveError = error
    if folder.name != SAMPLE:
        message = f"the alias {SAMPLE} and its collection {folder.name} are not changed: {problem.message}"
        remark(settings, f"warning: {message}")
        return
    if not _replaceable(folder):
        if isinstance(problem, IndexMismatchError):
            remark(settings, _reembed_hint(settings, problem))
            return
        reason = f"{MANIFEST} is missing" if isinstance(problem, NotFoundError) else problem.message
        aside = _move_aside(folder)
        remark(settings, f"warning: the collection {SAMPLE} cannot be read and was moved to {aside}: {reason}")
    elif not isinstance(problem, NotFoundError):
        remark(settings, f"rebuilding the sample collection, which was never written to: {problem.message}")
    remark(settings, f"building the sample collection {SAMPLE} from the docs of installed Python packages …")
    _build_sample(settings, encoder, folder, list(python_documents()))


def _build_sample(settings: Settings, encoder: Encoder, folder: Path, documents: list[Document]) -> None:
    """Build the collection and record its version, so that a later start can tell whether it was written to."""
    from indexing import build_collection
    from indexing.storage.files import replace_file, writing

    def guarded_documents() -> Iterator[Document]:
        if not _replaceable(folder):  # the build holds the lock, so this cannot change
            raise BusyError(
                f"collection {SAMPLE!r} was written to by another program; start the server again", field="collection"
            )
        yield from documents

    if settings.log_format == "json":  # each line of the log is an object
        manifest = build_collection(guarded_documents(), encoder, folder, total=len(documents))
    else:
        manifest = build_with_progress(guarded_documents(), encoder, settings.data_dir, SAMPLE, total=len(documents))
    with writing(folder):
        replace_file(folder / BUILT, manifest.version.encode())


def _replaceable(folder: Path) -> bool:
    """Return whether a folder certainly holds only the unchanged sample or an unfinished build.

    Every write extends the log; every compaction, restore or other build changes the version of the manifest.
    """
    from indexing.collections.manifest import SEGMENTS, read_manifest
    from indexing.collections.wal import FILE_START
    from indexing.segments.segment import SEGMENT

    try:
        manifest = read_manifest(folder)
        built, log = (folder / BUILT).read_bytes(), (folder / manifest.wal).stat().st_size
    except NotFoundError:  # a collection that lost its manifest still has a log or a segment
        return not any(folder.glob("wal-*.log")) and not any(folder.glob(f"{SEGMENTS}/*/{SEGMENT}"))
    except (OSError, CorruptFileError):
        return False
    return built == manifest.version.encode() and log == FILE_START


def _move_aside(folder: Path) -> Path:
    """Rename a collection to the first free name of ``python-docs-unreadable-1``, ``-2``, …; return its path."""
    from indexing.storage.files import sync, write_lock, writing

    with writing(folder), write_lock(folder):
        names = (folder.with_name(f"{SAMPLE}-unreadable-{number}") for number in count(1))
        aside = next(path for path in names if not path.exists())
        os.replace(folder, aside)
        sync(folder.parent)
    return aside


def _reembed_hint(settings: Settings, problem: EmbedserveError) -> str:
    """Return the warning for a sample of another encoder that may hold a user's documents."""
    strategy = "" if settings.strategy is None else f" --strategy {shlex.quote(settings.strategy)}"
    command = f"embedserve collection reembed {SAMPLE} --model {shlex.quote(settings.model)}{strategy}"
    return (
        f"warning: the collection {SAMPLE} may hold your documents and is not changed: {problem.message}; "
        f"to use its documents with this encoder: {command}; to search another collection: serve --collection NAME"
    )
