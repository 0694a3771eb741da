"""A service as it is run, in a process of its own on loopback."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STARTS_WITHIN_S = 60.0


@contextmanager
def served(bundle: Path, scratch: Path) -> Iterator[int]:
    """`sortednet serve`; yields its port. What it keeps on disk lies in `scratch`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "sortednet", "serve", str(bundle), "--port", str(port)]
    environment = {**os.environ, "SORTEDNET_SUBSETS": str(scratch / "subsets"), "OMP_NUM_THREADS": "1"}
    with (
        (scratch / "service.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_ready(port, process)
            yield port
        finally:
            process.terminate()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the service does not start; see service.log")
        time.sleep(0.1)
