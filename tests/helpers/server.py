"""A real server process on loopback, and a client of it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

STARTS_WITHIN_S = 120  # however busy the machine is


ENDS_WITHIN_S = 60


ANSWERS_WITHIN_S = 60


HELD = Path(__file__).parent / "held.py"


class Answer(NamedTuple):
    status: int
    type: str
    document: Any
    headers: http.client.HTTPMessage


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    trusted: Path | None = None  # the certificate of one that speaks https

    def get(self, path: str, method: str = "GET") -> Answer:
        return self._send(urllib.request.Request(self.url + path, method=method))

    def post(self, path: str, body: Any) -> Answer:
        """`body`: a JSON document, or the bytes (or chunks of them) as they are."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Content-Type": "application/json"}
        return self._send(urllib.request.Request(self.url + path, data=data, headers=headers, method="POST"))

    def _send(self, request: urllib.request.Request) -> Answer:
        context = None if self.trusted is None else ssl.create_default_context(cafile=self.trusted)
        try:
            response = urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S, context=context)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            kind = response.headers.get_content_type()
            return Answer(response.status, kind, json.loads(response.read()), response.headers)

    def stop(self) -> None:
        """Asks it to stop, and waits until it has begun to."""
        self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + ENDS_WITHIN_S
        while "Handling signal: term" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)


@contextmanager
def serving(
    log: Path,
    *bundles: Path,
    host: str = "127.0.0.1",
    options: Sequence[str] = (),
    held_by: Path | None = None,
    trusted: Path | None = None,
) -> Iterator[Server]:
    """`trusted`: its certificate, where the options make it speak https. `held_by`: while that file is there, inputs that have
    their turn are not run yet (`tests.helpers.held`)."""
    bare = host.strip("[]")
    with socket.create_server((bare, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        port = free.getsockname()[1]
    program = ["-m", "sortednet"] if held_by is None else [str(HELD), str(held_by)]
    command = [sys.executable, *program, "serve", *map(str, bundles), "--host", host, "--port", str(port), *options]
    with (
        log.open("wb") as output,
        log.with_suffix(".said").open("wb") as said,
        subprocess.Popen(command, cwd=log.parent, stdout=said, stderr=output, start_new_session=True) as process,
    ):
        scheme = "http" if trusted is None else "https"
        address = f"[{bare}]:{port}" if ":" in host else f"{host}:{port}"
        server = Server(f"{scheme}://{address}", process, log, trusted)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_WITHIN_S)
            with suppress(ProcessLookupError):  # whoever is left, its workers too
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not _is_ready(server):
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def _is_ready(server: Server) -> bool:
    try:
        return server.get("/readyz").status == 200
    except OSError:
        return False


def problem(answer: Answer, status: int) -> dict[str, Any]:
    """The problem details of RFC 9457, checked for what each of them has."""
    assert (answer.status, answer.type) == (status, "application/problem+json")
    assert answer.document["status"] == status
    assert all(isinstance(answer.document[name], str) and answer.document[name] for name in ("type", "title", "detail"))
    return answer.document
