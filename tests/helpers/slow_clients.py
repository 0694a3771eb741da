"""Clients that keep a server waiting, all of them on one thread."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

HALF_A_HEAD = b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Ty"
HALF_A_BODY = b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"
HALF_IN_CHUNKS = (
    b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"
)
SILENT = b""
KINDS = (HALF_A_HEAD, HALF_A_BODY, HALF_IN_CHUNKS, SILENT)


@contextmanager
def connected(url: str, sent: bytes, count: int) -> Iterator[Sequence[socket.socket]]:
    """So many connections, each of which has sent these bytes and sends no more."""
    place = urlsplit(url)
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=60)))
            found[-1].sendall(sent)
        yield found
