"""A registry of containers on loopback: Debian's docker-registry."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STARTS_WITHIN_S = 60
CONFIGURATION = """version: 0.1
log: {{accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Yields its address. Skips where it is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no registry here (Debian: apt-get install docker-registry)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    configuration = folder / "config.yml"
    configuration.write_text(CONFIGURATION.format(folder=folder / "storage", port=port))
    command = [program, "serve", configuration]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as found:
        try:
            deadline = time.monotonic() + STARTS_WITHIN_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                except OSError:
                    assert found.poll() is None, (folder / "log").read_text()
                    assert time.monotonic() < deadline
            yield f"127.0.0.1:{port}"
        finally:
            found.terminate()
