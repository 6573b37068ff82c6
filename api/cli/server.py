"""Runs the HTTP service: binds the socket, announces the address, drains requests on shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from api.app import create_app
from api.cli.console import ReaderGoneError, flush_out, note, out, out_json
from api.settings import Settings
from embedserve.errors import EmbedserveError, InputError

if TYPE_CHECKING:
    from types import FrameType

    from embedserve import Encoder

logger = logging.getLogger(__name__)

CLOSING_S = 1  # of the drain time, reserved for requests that still run at its end
KEEP_ALIVE_S = 75  # longer than proxies keep idle connections, else they reuse closed ones


def remark(settings: Settings, text: str) -> None:
    """Write a message to stderr, or to the log if its format is JSON."""
    if settings.log_format == "console":
        note(text)
    else:
        logger.info("%s", text)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to host and port; raise `EmbedserveError` with the reason if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"host {host!r} is not an address of this machine: {error.strerror}", field="host") from None

    def bound(target: Any) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
        except OSError:
            sock.close()
            raise
        return sock

    try:
        with bound(address) as trial:
            trial.listen(0)  # bind alone does not detect another listener
            address = trial.getsockname()
        return bound(address)  # not listening: until the service starts, connections are refused
    except OSError as error:
        raise cannot_listen(host, port, error) from None


def cannot_listen(host: str, port: int, error: OSError) -> EmbedserveError:
    """Return the error for an address that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        message = f"port {port} on {host} is in use; stop the other process, or choose another port with --port"
    elif error.errno == errno.EACCES:
        message = f"port {port} needs root privileges; choose a port from 1024 on with --port"
    else:
        message = f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"
    return EmbedserveError(message, field="port")


def address_of(sock: socket.socket) -> str:
    """Return the URL of a socket."""
    name: Any = sock.getsockname()
    host, port = name[0], name[1]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Announces its address once ready, stops if loading fails, and drains requests before it stops on a signal.

    Args:
        config: Configuration of uvicorn, with the application of `create_app`.
        settings: The settings of the service.
        sock: The bound socket, not yet listening.
        as_json: Announce the address as JSON.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, sock: socket.socket, *, as_json: bool) -> None:
        super().__init__(config)
        state = config.app.state  # type: ignore[union-attr]
        self.service, self.drain = state.service, state.drain
        self.settings, self.sock, self.as_json = settings, sock, as_json
        self.listen_error: EmbedserveError | None = None
        self.signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, start the application, and announce it once it is ready."""
        try:
            self.sock.listen(self.config.backlog)
        except OSError as error:  # another server bound the same port and listened first
            self.listen_error = cannot_listen(self.settings.host, self.sock.getsockname()[1], error)
            self.should_exit = True
            return
        await super().startup(sockets=sockets)
        self.announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        await asyncio.to_thread(self.service.finished_loading.wait)
        if self.service.failure is not None:
            self.should_exit = True
            return
        encoder, address = self.service.model().encoder, address_of(self.sock)
        with contextlib.suppress(EmbedserveError, ReaderGoneError):
            if self.as_json:
                out_json({"address": address, "model": encoder.name, "fingerprint": encoder.fingerprint})
            else:
                out(f"embedserve is ready: {address}  (search page /, API /docs; Ctrl-C stops)")
            flush_out()
        from indexing import list_collections

        if not list_collections(self.settings.data_dir):
            remark(self.settings, "no collections yet; build one: embedserve index build python-docs")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain; a second signal stops immediately."""
        if self.signal is not None:
            super().handle_exit(sig, frame)
            return
        self.signal = sig
        self.drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """Stop when the drain is finished or timed out."""
        timed_out = self.drain.elapsed_s() >= self.settings.drain_timeout_s - CLOSING_S
        if self.signal is not None and not self.should_exit and (self.drain.finished() or timed_out):
            super().handle_exit(self.signal, None)
        return await super().on_tick(counter)


def run(settings: Settings, encoder: Encoder, sock: socket.socket, *, as_json: bool = False) -> None:
    """Serve until a signal; print the address once the service is ready, optionally as JSON."""
    app = create_app(settings, encoder)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        log_level=None if logging.getLogger().level <= logging.INFO else "warning",
        timeout_graceful_shutdown=CLOSING_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        forwarded_allow_ips=settings.trusted_proxies,
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again after it has stopped
    server = DrainingServer(config, settings, sock, as_json=as_json)
    try:
        server.run(sockets=[sock])
    finally:
        signal.signal(signal.SIGTERM, previous)
    if server.listen_error is not None:
        raise server.listen_error
    if app.state.service.failure is not None:
        raise app.state.service.failure
