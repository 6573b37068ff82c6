"""A command in a process of its own that ends with the server which started it: standard input closes then."""

from __future__ import annotations

import os
import signal
import sys
import threading

PATIENCE_S = 10.0


def main() -> None:
    """Run the command of the arguments until it is done or standard input ends."""
    server = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_watch, args=(server,), daemon=True).start()
    from api.cli.main import main as run

    run(sys.argv[1:])


def _watch(server: int) -> None:
    while os.read(server, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)  # what is embedded so far is kept
    threading.Event().wait(PATIENCE_S)
    os._exit(130)


if __name__ == "__main__":
    main()
