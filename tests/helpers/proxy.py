"""A proxy before the service that breaks connections, changes bytes, and keeps what was asked."""

from __future__ import annotations

import http.client
import http.server
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.helpers.server import ANSWERS_WITHIN_S


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]


Fault = Callable[[Request, int, bytes], "tuple[int, bytes, int | None] | None"]
"""Request, status, body → another status and body, and after how many bytes the connection breaks; None: as it is."""


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to the service and remembers them; `fault` makes of the answers what a bad network would."""

    daemon_threads = True

    def __init__(self, upstream: str, prefix: str = "") -> None:
        """`prefix`: below which the service is put, such as `/models`; nothing else is there."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.prefix = prefix
        self.seen: list[Request] = []
        self.fault: Fault = lambda request, status, body: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no matter here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Connection")}
        if not self.path.startswith(f"{self.server.prefix}/"):
            self.send_error(404)
            return
        request = Request(self.command, self.path.removeprefix(self.server.prefix), headers)
        self.server.seen.append(request)
        connection = http.client.HTTPConnection(self.server.upstream, timeout=ANSWERS_WITHIN_S)
        connection.request(self.command, request.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        changed = self.server.fault(request, response.status, content)
        status, sent, breaks_after = changed or (response.status, content, None)
        self.send_response(status)
        for name, value in response.headers.items():
            if name not in ("Connection", "Content-Length", "Date", "Server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent[:breaks_after])
        self.close_connection = True

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        """Silence."""
