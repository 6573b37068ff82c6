"""Load generator: raw HTTP/1.1 on persistent connections, cheap compared with the server."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """Result of one load.

    Attributes:
        statuses: Number of answers by status.
        latencies_s: Latencies of the answers with status 200.
        texts: Number of texts in those answers.
        seconds: From the first request to the last answer.
        cpu_s: Processor time of the server, if the caller measured it.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    texts: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    def percentile_ms(self, share: float) -> float:
        """Return the quantile ``share`` of the latency of accepted requests, in milliseconds."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def run_load(
    host: str,
    port: int,
    path: str,
    bodies: Sequence[bytes],
    texts: int,
    clients: int,
    seconds: float,
    rate: float = math.inf,
) -> Load:
    """Send requests from ``clients`` connections, each after its previous answer, limited to ``rate``.

    Args:
        host: Host of the server.
        port: Port of the server.
        path: Path of the route.
        bodies: JSON bodies, sent in turn.
        texts: Texts in each body.
        clients: Number of connections.
        seconds: Time after which no request starts.
        rate: Maximum requests per second of all clients together, evenly spaced.
    """
    return asyncio.run(_load(host, port, path, bodies, texts, clients, seconds, rate))


async def _load(
    host: str, port: int, path: str, bodies: Sequence[bytes], texts: int, clients: int, seconds: float, rate: float
) -> Load:
    load, start, total_sent = Load(), time.perf_counter(), 0
    requests = [_request(path, body) for body in bodies]

    async def client(number: int) -> None:
        nonlocal total_sent
        reader, writer = await asyncio.open_connection(host, port)
        index = number * len(requests) // clients
        while max(time.perf_counter() - start, total_sent / rate) < seconds:
            early = start + total_sent / rate - time.perf_counter()
            total_sent += 1
            if early > 0:
                await asyncio.sleep(early)
            sent = time.perf_counter()
            writer.write(requests[index % len(requests)])
            status = await _answer(reader)
            index += 1
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies_s.append(time.perf_counter() - sent)
                load.texts += texts
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read one answer and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split(" ")[1])


def bodies_of(texts: Sequence[str], each: int) -> list[bytes]:
    """Return request bodies for ``texts``, ``each`` per body."""
    return [json.dumps({"input": texts[first : first + each]}).encode() for first in range(0, len(texts), each)]
