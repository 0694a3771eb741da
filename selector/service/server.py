"""The server that runs the application."""

from __future__ import annotations

import errno
import re
import shutil
import socket
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from threading import Thread
from typing import Any
from uuid import uuid4

from flask import Flask

from selector.service.app import MAX_BODY_BYTES
from selector.service.generate.generating import Generating
from selector.service.predict.predictor import Predictor
from selector.service.routes.file import MAX_SUBSET_BYTES
from selector.service.routes.profile import MAX_PROFILE_BYTES
from selector.service.routes.select import MAX_SELECT_BYTES
from selector.service.sockets import Tls, tls_context
from selector.service.web.access import CONTENT_POLICY, HEADERS, log_settings
from selector.service.web.metrics import Metrics, process_ended
from selector.service.web.problems import problem_json

MAX_HEADERS, MAX_HEADER_BYTES, MAX_REQUEST_LINE_BYTES = 64, 8190, 4094
"""Of a request; a longer line is answered with 414, more or longer headers with 431."""

BACKLOG = 2048
_ARRAYS = re.compile(rb"\r\ncontent-type:[ \t]*application/x-np", re.IGNORECASE)
THREADS = 16
"""Where nothing is run here. A query takes a thread for less than a millisecond, and none waits for a request to arrive."""


class ListenError(ValueError):
    """No address to listen on, or one that is taken."""

    exit_code = 2


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. `host`: a name or an address, one of IPv6 with or without brackets. Raises ListenError."""
    name = host.removeprefix("[").removesuffix("]")
    if not name:
        raise ListenError("host = '': allowed is an address or a name; 0.0.0.0 stands for all addresses")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ListenError(f"host = {host!r}: {why}; allowed is an address or a name of this machine") from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        hint = "; is it running already? --port takes another" if error.errno == errno.EADDRINUSE else ""
        why = (error.strerror or str(error)).partition(" (while ")[0]  # Python says the address again
        raise ListenError(f"host = {host!r}, port = {port}: {why}{hint}") from None


def shown_url(listener: socket.socket, *, tls: bool = False) -> str:
    """For a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "localhost"
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"


def serve(
    app: Flask,
    listener: socket.socket,
    *,
    workers: int = 1,
    threads: int | None = None,
    graceful_timeout: int = 30,
    tls: Tls | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are answered first, for up to `graceful_timeout` seconds. `ready` is
    called once, when it is about to begin. The listener (`listening`) is its own from now on. With `tls` it speaks https.

    Raises TlsError where the certificate or its key is none.

    Each worker is a process with so many `threads`; default: as many as predictions and texts may keep waiting, and more. ONNX
    Runtime must not have been imported: it starts a thread that a forked worker does not have and aborts without at its end
    (1.32). This module and what it imports do without it.
    """
    from gunicorn import util
    from gunicorn.app.base import BaseApplication
    from gunicorn.glogging import Logger

    class WithoutAccess(Logger):  # type: ignore[misc]
        """`Access` logs each request; with a `logconfig_dict` gunicorn would gather the same again (7 % of a request)."""

        def access(self, *_: object) -> None:
            pass

    util.write_error = write_error

    from selector.service.worker import Worker

    predictor: Predictor | None = app.extensions.get("sortednet.predictor")
    generating: Generating | None = app.extensions.get("sortednet.generating")
    computing = [one for one in (predictor, generating) if one is not None]
    descriptor = listener.detach()  # the server closes it when it has one of its own
    most_bytes = staticmethod(partial(_most_bytes, predictor, generating))
    patient = type("PatientWorker", (Worker,), {"max_body": most_bytes, "tls": None if tls is None else tls_context(*tls)})
    metrics: Metrics | None = app.extensions.get("sortednet.metrics")

    def when_ready(server: Any) -> None:
        ready()

    def post_worker_init(worker: Any) -> None:
        for one in computing:
            one.warming = True
            Thread(target=one.warm, args=(list(app.extensions["sortednet"].served.all().values()),)).start()

    def child_exit(server: Any, worker: Any) -> None:
        process_ended(worker.pid)

    def on_exit(server: Any) -> None:
        if metrics is not None and metrics.folder is not None:
            shutil.rmtree(metrics.folder, ignore_errors=True)

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", f"fd://{descriptor}")
            self.cfg.set("worker_class", patient)
            if tls is not None:  # for the scheme of a request: `sockets.py` does the rest
                self.cfg.set("certfile", str(tls.certificate))
                self.cfg.set("keyfile", str(tls.key))
            self.cfg.set("workers", workers)
            self.cfg.set("threads", threads or sum(one.threads for one in computing) or THREADS)
            self.cfg.set("forwarder_headers", "")  # nobody may move the application by a header SCRIPT_NAME
            self.cfg.set("forwarded_allow_ips", "")
            self.cfg.set("graceful_timeout", graceful_timeout)
            self.cfg.set("limit_request_fields", MAX_HEADERS)
            self.cfg.set("limit_request_field_size", MAX_HEADER_BYTES)
            self.cfg.set("limit_request_line", MAX_REQUEST_LINE_BYTES)
            self.cfg.set("control_socket_disable", True)  # a second way in, which nobody asked for
            self.cfg.set("logger_class", WithoutAccess)
            self.cfg.set("logconfig_dict", log_settings())
            self.cfg.set("proc_name", "sortednet")
            self.cfg.set("when_ready", when_ready)
            self.cfg.set("post_worker_init", post_worker_init)
            self.cfg.set("child_exit", child_exit)
            self.cfg.set("on_exit", on_exit)

        def load(self) -> Flask:
            return app

    Server().run()


def _most_bytes(predictor: Predictor | None, generating: Generating | None, path: str, head: bytes) -> int:
    """Of a request's body, before it has come; the application looks again, and more closely."""
    if path == "/v1/predict" and predictor is not None:
        return predictor.options.body_bytes if _ARRAYS.search(head) else predictor.options.json_bytes
    if path in ("/v1/generate", "/v1/completions", "/v1/chat/completions") and generating is not None:
        return generating.options.body_bytes
    if path == "/v1/select":
        return MAX_SELECT_BYTES
    return max(MAX_SUBSET_BYTES, MAX_PROFILE_BYTES) if path.startswith("/v1/bundles/") else MAX_BODY_BYTES


def write_error(client: socket.socket, status: int, reason: str, message: str) -> None:
    """Answers what the server itself refuses, before any application sees it; takes the place of gunicorn's HTML."""
    from gunicorn import util

    identifier = uuid4().hex
    body = problem_json(status, message or HTTPStatus(status).description or reason, {"request_id": identifier})
    headers = [
        ("Connection", "close"),
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
        *HEADERS,
        CONTENT_POLICY,
        ("X-Request-Id", identifier),
    ]
    head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
    util.write_nonblock(client, head.encode("latin-1") + b"\r\n" + body)
