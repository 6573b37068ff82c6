"""embedserve serve: the HTTP service in this process."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_build import SAMPLE
from api.cli_console import load_encoder
from api.cli_index import build_with_progress
from api.cli_options import DataDir, Device, Json, Model, Strategy
from api.logs import use_format
from api.settings import Settings, load_settings, unknown_variables
from embedserve.errors import CorruptFileError, IndexMismatchError, NotFoundError

if TYPE_CHECKING:
    from embedserve import Encoder


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
    from api.server import bind, remark, run

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
    """Build the sample collection unless this encoder has built it."""
    from api.server import remark
    from indexing import Collection, build_collection, collection_path, python_documents

    folder = collection_path(settings.data_dir, SAMPLE)

    try:
        with Collection.open(folder, encoder=encoder):
            return
    except (NotFoundError, IndexMismatchError, CorruptFileError) as error:
        if SAMPLE in _names(settings):
            remark(settings, f"the sample collection is built anew: {error.message}")
    remark(settings, f"building the sample collection {SAMPLE} (docs of the installed Python packages), once …")
    documents = list(python_documents())
    if settings.log_format == "json":  # each line of the log is an object
        build_collection(documents, encoder, folder, total=len(documents))
    else:
        build_with_progress(documents, encoder, settings.data_dir, SAMPLE, total=len(documents))


def _names(settings: Settings) -> list[str]:
    from indexing import list_collections

    return list_collections(settings.data_dir)
