"""gunicorn's threaded worker, but that no thread waits for a client.

gunicorn gives a thread to each connection that has begun to send, and reads in it; a few slow ones take all threads. Here the
loop that accepts connections also gathers their requests (`arrival.py`), and a thread gets a request when it is whole. There
are three groups of threads: for `/healthz`, `/readyz` and `/metrics`, for other GETs, which a client may fetch slowly, and for
whatever computes. Who sends or takes nothing for long is closed; where there is no room for another connection, the one that
has kept the service waiting longest makes room.
"""

from __future__ import annotations

import errno
import resource
import selectors
import socket
import ssl
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from gunicorn import http, util
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from selector.service.arrival import Arrival
from selector.service.sockets import AGAIN, patient
from selector.service.web.receipt import note_wait

PROBES = ("/healthz", "/readyz", "/metrics")
"""Answered by threads of their own: whoever watches over the service is answered whatever the others do."""

PROBE_THREADS, GET_THREADS = 2, 16
FIRST_BYTE_S = 15.0
"""Of a new connection; one that was used before is closed after gunicorn's `keepalive`."""
ARRIVES_WITHIN_S, LEAST_BYTES_PER_S = 20.0, 4096
"""A request has so long, and a second more for so many bytes that have come: Apache's mod_reqtimeout counts so too."""
LINGERS_S, MAX_DRAINED = 2.0, 64 * 1024
"""After the last answer what the client still sends is read, so that the answer is not torn from it by a reset."""
MAX_WAITING_BYTES = 256 * 2**20
"""Of all requests that are arriving; of more the largest are refused."""
SPARE_DESCRIPTORS = 128
"""Of those that the process may have, for files, databases, sessions."""
_RECEIVE = 256 * 1024


class Arrived(SocketUnreader):  # type: ignore[misc]
    """What the server reads: a request that has arrived, in pieces, because gunicorn copies what is left of one at each step;
    behind it the socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._left = memoryview(b"")

    def hold(self, request: bytearray) -> None:
        self._left = memoryview(request)

    def chunk(self, size_hint: int | None = None) -> bytes:
        if not self._left:
            return bytes(super().chunk(size_hint))
        size = min(max(size_hint or 0, self.mxchunk), self.max_body_chunk)
        piece, self._left = bytes(self._left[:size]), self._left[size:]
        return piece

    def take_buffered(self) -> bytes:
        ahead = bytes(super().take_buffered()) + bytes(self._left)
        self._left = memoryview(b"")
        return ahead


class Lane:
    """Threads, and how many requests they have or are waited for by."""

    def __init__(self, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.taken = 0


class Connection(TConn):  # type: ignore[misc]
    """Its request as far as it has arrived; until when it may go on like this (monotonic); whether its last answer is out."""

    arrival: Arrival
    until: float
    lane: Lane
    used = False
    initialized: bool
    drained: int | None = None  # bytes, after the last answer

    def init(self) -> None:
        """Without what gunicorn would do of TLS: the socket has it."""
        if not self.initialized:
            self.initialized = True
            self.sock.setblocking(True)
            self.parser = http.get_parser(self.cfg, self.sock, self.client)


class Worker(ThreadWorker):  # type: ignore[misc]
    """A deadline counts from a request's first byte: under load most of the waiting is for a thread."""

    tls: ssl.SSLContext | None = None

    @staticmethod
    def max_body(path: str, head: bytes) -> int:
        """Bytes of a request's body that are gathered; of a longer one only the head, to be refused."""
        return 2**21

    def init_process(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most: int = self.cfg.worker_connections
        self.worker_connections = most if soft == resource.RLIM_INFINITY else max(8, min(most, soft - SPARE_DESCRIPTORS))
        self._waiting: dict[Connection, None] = {}  # for bytes, in the order in which they began to
        self._looked_at = 0.0
        self._lanes = {name: Lane(threads) for name, threads in (("probes", PROBE_THREADS), ("gets", GET_THREADS))}
        self._lanes["others"] = Lane(self.cfg.threads)
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        if self.nr_conns >= self.worker_connections - 1:  # at the limit itself gunicorn would accept no more
            self._make_room()
        try:
            accepted, address = listener.accept()
            client = patient(accepted.detach(), self.tls)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, client, address, client.getsockname())
        conn.until = time.monotonic() + FIRST_BYTE_S
        conn.arrival = Arrival(self.max_body)
        self._wait(conn)

    def _wait(self, conn: Connection) -> None:
        """For its bytes."""
        conn.sock.setblocking(False)
        self._waiting[conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._readable(conn))

    def _no_longer(self, conn: Connection) -> None:
        del self._waiting[conn]
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)

    def _readable(self, conn: Connection) -> None:
        if conn not in self._waiting:  # it made room in this very round
            return
        try:
            received = conn.sock.recv(_RECEIVE)
        except AGAIN:
            return
        except OSError:
            received = b""
        if conn.drained is not None:
            conn.drained += len(received)
            if not received or conn.drained > MAX_DRAINED:
                self._drop(conn)
        elif received:
            self._add(conn, received)
        elif conn.arrival.begun is None:
            self._drop(conn)
        else:
            conn.arrival.end()
            self._go_on(conn)

    def _add(self, conn: Connection, received: bytes) -> None:
        arrival = conn.arrival
        if arrival.begun is None:
            conn.until = time.monotonic() + ARRIVES_WITHIN_S
        conn.until += len(received) / LEAST_BYTES_PER_S
        arrival.add(received)
        if arrival.waits_for_consent:
            arrival.waits_for_consent = False
            with suppress(OSError):
                conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        large = len(arrival.bytes) > 2 * _RECEIVE and not arrival.whole
        if large and sum(len(one.arrival.bytes) for one in self._waiting) > MAX_WAITING_BYTES:
            self._refuse(conn, 503, "Service Unavailable", "too much is being sent at once; try again in a second")
        else:
            self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        if conn.arrival.whole:
            self._no_longer(conn)
            self.enqueue_req(conn)

    def enqueue_req(self, conn: Connection) -> None:
        conn.ready_at = time.monotonic()
        method, path = conn.arrival.path()
        lane = self._lanes["probes" if path in PROBES else "gets" if method in ("GET", "HEAD") else "others"]
        if lane.taken >= self.worker_connections // 4:  # all connections together must leave room for a probe's
            self._refuse(conn, 503, "Service Unavailable", "too many requests wait already; try again in a second")
            return
        conn.lane = lane
        lane.taken += 1
        done = lane.pool.submit(self.handle, conn)
        done.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, conn, future))

    def handle(self, conn: Connection) -> Any:
        begun = conn.arrival.begun
        note_wait(time.monotonic() - conn.ready_at, conn.ready_at if begun is None else begun)
        conn.sock.setblocking(True)
        if not conn.initialized:
            conn.init()
            conn.data_ready = True
            conn.parser.unreader = Arrived(conn.sock)
        conn.parser.unreader.hold(conn.arrival.bytes)
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Connection) -> Any:
        if conn.arrival.cut:  # nobody reads the rest
            req.force_close()
        return super().handle_request(req, conn)

    def finish_request(self, conn: Connection, future: Future[Any]) -> None:
        """On the loop's thread: waits for the next request, or for the client to have taken the last answer."""
        goes_on = not future.cancelled() and future.exception() is None and future.result() is True
        conn.used = True
        conn.lane.taken -= 1
        try:
            if not goes_on:
                self._hang_up(conn)
                return
            ahead = conn.parser.unreader.take_buffered()
            conn.arrival = Arrival(self.max_body)
            linger = self.cfg.keepalive if self.alive else min(self.cfg.keepalive, STOP_KEEPALIVE_LINGER)
            conn.until = time.monotonic() + linger
            self._wait(conn)
            if ahead:  # of the next request, sent with this one
                self._add(conn, ahead)
        except (OSError, ValueError):
            self._close(conn)

    def _hang_up(self, conn: Connection) -> None:
        """RFC 9112, section 9.6, without keeping the others waiting."""
        try:
            conn.sock.end()
            conn.drained, conn.until = 0, time.monotonic() + LINGERS_S
            self._wait(conn)
        except (OSError, ValueError):
            self._close(conn)

    def _refuse(self, conn: Connection, status: int, reason: str, message: str) -> None:
        if conn in self._waiting:
            self._no_longer(conn)
        conn.arrival = Arrival(self.max_body)  # its bytes are not held any more
        with suppress(OSError):
            util.write_error(conn.sock, status, reason, message)
        self._hang_up(conn)

    def _drop(self, conn: Connection) -> None:
        self._no_longer(conn)
        self._close(conn)

    def _close(self, conn: Connection) -> None:
        self._waiting.pop(conn, None)
        self.nr_conns -= 1
        conn.close()

    def _make_room(self) -> None:
        """Closes a connection that waits: one whose answers are out, else whichever has waited longest."""
        if self._waiting:
            idle = (conn for conn in self._waiting if conn.drained is not None or (conn.used and conn.arrival.begun is None))
            self._drop(next(idle, next(iter(self._waiting))))

    def murder_pending(self) -> None:
        """Twice a second closes what has waited for too long; who has sent a part of a request is told so."""
        now = time.monotonic()
        if now < self._looked_at + 0.5 and self.alive:
            return
        self._looked_at = now
        for conn in [conn for conn in self._waiting if conn.until < now]:
            if conn.arrival.begun is None or conn.drained is not None:
                self._drop(conn)
            else:
                self._refuse(conn, 408, "Request Timeout", "the request did not arrive in time")

    def murder_keepalived(self, force: bool = False) -> None:
        """At the end closes whatever still waits; until then `murder_pending` does what is to be done."""
        if force:
            for conn in list(self._waiting):
                self._drop(conn)
            for lane in self._lanes.values():
                lane.pool.shutdown(wait=False)

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker stops: who has not begun with a request has until then."""
        for conn in self._waiting:
            if conn.arrival.begun is None:
                conn.until = min(conn.until, deadline)
