"""``python -m api.cli.job_child ARGUMENTS``: a command that stops when the server that started it dies.

The server holds the other end of this process's stdin; end of file means that the server is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

PATIENCE_S = 10.0


def main() -> None:
    """Run a command until it ends or stdin is closed."""
    server = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_watch, args=(server,), daemon=True).start()
    from api.cli.main import main as run

    run(sys.argv[1:])


def _watch(server: int) -> None:
    while os.read(server, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)  # complete shards are kept
    threading.Event().wait(PATIENCE_S)
    os._exit(130)


if __name__ == "__main__":
    main()
