"""Clients that keep a server busy: raw HTTP/1.1 on kept connections, so that they cost little beside it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """What came of one load.

    Attributes:
        statuses: How many answers had each status.
        latencies_s: Of the answers of status 200.
        texts: In those answers.
        seconds: From the first request to the last answer.
        cpu_s: Processor time of who answered, where the caller noted it.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    texts: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    def percentile_ms(self, share: float) -> float:
        """Return the latency that ``share`` of the accepted requests stay below, in milliseconds."""
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
    """Send requests from ``clients`` connections, each with its next as soon as it has its answer and it is time.

    Args:
        host: Where the server listens.
        port: Of the server.
        path: Of the route.
        bodies: JSON; taken in turn.
        texts: In each body.
        clients: Connections.
        seconds: After which no request is begun.
        rate: Requests a second of all clients together, evenly spaced, at most.
    """
    return asyncio.run(_load(host, port, path, bodies, texts, clients, seconds, rate))


async def _load(
    host: str, port: int, path: str, bodies: Sequence[bytes], texts: int, clients: int, seconds: float, rate: float
) -> Load:
    load, began, sent_in_all = Load(), time.perf_counter(), 0
    requests = [_request(path, body) for body in bodies]

    async def client(number: int) -> None:
        nonlocal sent_in_all
        reader, writer = await asyncio.open_connection(host, port)
        place = number * len(requests) // clients
        while max(time.perf_counter() - began, sent_in_all / rate) < seconds:
            early = began + sent_in_all / rate - time.perf_counter()
            sent_in_all += 1
            if early > 0:
                await asyncio.sleep(early)
            sent = time.perf_counter()
            writer.write(requests[place % len(requests)])
            status = await _answer(reader)
            place += 1
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies_s.append(time.perf_counter() - sent)
                load.texts += texts
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.seconds = time.perf_counter() - began
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
    """Return the bodies that embed ``texts``, so many in each."""
    return [json.dumps({"input": texts[start : start + each]}).encode() for start in range(0, len(texts), each)]
