"""The HTTP service in this process: a socket, a server that says when it answers, and an end without losses."""

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

CLOSING_S = 1  # of the time for the drain, for what is still running then
KEEP_ALIVE_S = 75  # longer than proxies keep idle connections, or they send requests into closed ones


def remark(settings: Settings, text: str) -> None:
    """Say something on stderr: a line for people, or a line of the log where that is for programs."""
    if settings.log_format == "console":
        note(text)
    else:
        logger.info("%s", text)


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


def address_of(sock: socket.socket) -> str:
    """Return the URL at which a socket is reached."""
    name: Any = sock.getsockname()
    host, port = name[0], name[1]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Announces itself when the service answers, stops when it cannot, and drains before it stops on a signal.

    Args:
        config: What uvicorn is told; its application is that of `create_app`.
        settings: The settings of the service.
        sock: The socket, bound and not listening yet.
        as_json: Announce it as JSON.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, sock: socket.socket, *, as_json: bool) -> None:
        super().__init__(config)
        state = config.app.state  # type: ignore[union-attr]
        self.service, self.drain = state.service, state.drain
        self.settings, self.sock, self.as_json = settings, sock, as_json
        self.refused: EmbedserveError | None = None
        self.asked: int | None = None  # the signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, start the application, and announce it as soon as it is ready."""
        try:
            self.sock.listen(self.config.backlog)
        except OSError as error:  # another server has bound the port beside this one, and listened first
            self.refused = cannot_listen(self.settings.host, self.sock.getsockname()[1], error)
            self.should_exit = True
            return
        await super().startup(sockets=sockets)
        self.announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        await asyncio.to_thread(self.service.finished_loading.wait)
        if self.service.failure is not None:
            self.should_exit = True
            return
        encoder, address = self.service.encoder, address_of(self.sock)
        with contextlib.suppress(EmbedserveError, ReaderGoneError):
            if self.as_json:
                out_json({"address": address, "model": encoder.name, "fingerprint": encoder.fingerprint})
            else:
                out(f"embedserve is ready: {address}  (search page /, API /docs; Ctrl-C stops)")
            flush_out()
        from indexing import list_collections

        if not list_collections(self.settings.data_dir):
            remark(self.settings, "there are no collections yet; build one: embedserve index build python-docs")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; a second signal does not wait for its end."""
        if self.asked is not None:
            super().handle_exit(sig, frame)
            return
        self.asked = sig
        self.drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """Stop when the drain is done, or its time is over."""
        over = self.drain.spent_s() >= self.settings.drain_timeout_s - CLOSING_S
        if self.asked is not None and not self.should_exit and (self.drain.finished() or over):
            super().handle_exit(self.asked, None)
        return await super().on_tick(counter)


def run(settings: Settings, encoder: Encoder, sock: socket.socket, *, as_json: bool = False) -> None:
    """Serve until a signal; the address is printed once requests are answered, as JSON where that is wanted."""
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
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it has stopped
    server = Server(config, settings, sock, as_json=as_json)
    try:
        server.run(sockets=[sock])
    finally:
        signal.signal(signal.SIGTERM, previous)
    if server.refused is not None:
        raise server.refused
    if app.state.service.failure is not None:
        raise app.state.service.failure
