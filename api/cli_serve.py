"""embedserve serve: the HTTP service in this process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli_build import SAMPLE
from api.cli_console import ReaderGoneError, flush_out, load_encoder, note, out, out_json
from api.cli_index import build_with_progress
from api.cli_options import DataDir, Device, Json, Model, Strategy
from api.settings import Settings, load_settings, unknown_variables
from embedserve.errors import CorruptFileError, EmbedserveError, IndexMismatchError, InputError, NotFoundError

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
    A TOML file named by EMBEDSERVE_CONFIG may hold them too. Ctrl-C lets running requests finish, then stops.

    Examples:
      embedserve serve --build-sample
      embedserve serve --port 9000 --collection notes
      EMBEDSERVE_DATA_DIR=./data embedserve serve --host 0.0.0.0
    """
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
    for sentence in unknown_variables():
        note(f"warning: {sentence}")
    with contextlib.closing(bind(settings.host, settings.port)) as sock:
        note(f"loading model {settings.model} …")
        encoder = load_encoder(settings.model, settings.device, settings.strategy)
        if build_sample:
            ensure_sample(settings, encoder)
        for name in ("api", "embedserve", "indexing"):
            logging.getLogger(name).setLevel(settings.log_level.upper())
        run(settings, encoder, sock, as_json=json)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to host and port; say what is wrong where that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"host {host!r} is no address of this machine: {error.strerror}", field="host") from None

    def bound(to: Any) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(to)
        except OSError:
            sock.close()
            raise
        return sock

    try:
        with bound(address) as trial:
            trial.listen(0)  # only listening tells whether another process listens
            address = trial.getsockname()
        return bound(address)  # not listening yet: until the service is there, callers are turned away at once
    except OSError as error:
        raise cannot_listen(host, port, error) from None


def cannot_listen(host: str, port: int, error: OSError) -> EmbedserveError:
    """Return what to say where an address cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        message = f"port {port} on {host} is in use; stop what listens there, or choose another with --port"
    elif error.errno == errno.EACCES:
        message = f"port {port} is not open to this user; choose one from 1024 up with --port"
    else:
        message = f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"
    return EmbedserveError(message, field="port")


def ensure_sample(settings: Settings, encoder: Encoder) -> None:
    """Build the sample collection unless this encoder has built it."""
    from indexing import Collection, collection_path, python_documents

    try:
        with Collection.open(collection_path(settings.data_dir, SAMPLE), encoder=encoder):
            return
    except (NotFoundError, IndexMismatchError, CorruptFileError) as error:
        if SAMPLE in _names(settings):
            note(f"the sample collection is built anew: {error.message}")
    note(f"building the sample collection {SAMPLE} (documentation of the installed Python packages), once …")
    documents = list(python_documents())
    build_with_progress(documents, encoder, settings.data_dir, SAMPLE, total=len(documents))


def _names(settings: Settings) -> list[str]:
    from indexing import list_collections

    return list_collections(settings.data_dir)


def run(settings: Settings, encoder: Encoder, sock: socket.socket, *, as_json: bool = False) -> None:
    """Serve until a signal; the address is printed once requests are answered, as JSON where that is wanted."""
    import uvicorn

    from api.app import create_app

    app = create_app(settings, encoder)
    service = app.state.service

    class Server(uvicorn.Server):
        """Announces itself when the service answers, and stops when it cannot."""

        refused: EmbedserveError | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                sock.listen(self.config.backlog)
            except OSError as error:  # another server has bound the port beside this one, and listened first
                self.refused = cannot_listen(settings.host, sock.getsockname()[1], error)
                self.should_exit = True
                return
            await super().startup(sockets=sockets)
            self.announcing = asyncio.create_task(self._announce())

        async def _announce(self) -> None:
            await asyncio.to_thread(service.finished_loading.wait)
            if service.failure is not None:
                self.should_exit = True
                return
            with contextlib.suppress(EmbedserveError, ReaderGoneError):
                if as_json:
                    out_json({"address": address_of(sock), "model": encoder.name, "fingerprint": encoder.fingerprint})
                else:
                    out(f"embedserve is ready: {address_of(sock)}  (search page /, API /docs; Ctrl-C stops)")
                flush_out()
            if not _names(settings):
                note("there are no collections yet; build one: embedserve index build python-docs")

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        log_level=None if logging.getLogger().level <= logging.INFO else "warning",
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it has stopped
    server = Server(config)
    try:
        server.run(sockets=[sock])
    finally:
        signal.signal(signal.SIGTERM, previous)
    if server.refused is not None:
        raise server.refused
    if service.failure is not None:
        raise service.failure


def address_of(sock: socket.socket) -> str:
    """Return the URL at which a socket is reached."""
    name: Any = sock.getsockname()
    host, port = name[0], name[1]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
