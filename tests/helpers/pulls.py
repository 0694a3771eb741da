"""`sortednet pull` in this process and in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import sortednet
from tests.helpers.proxy import Proxy, Request
from tests.helpers.server import ANSWERS_WITHIN_S

SMALL = "w0.50-d1"


def pulled(*arguments: str | Path, code: int = 0) -> Any:
    """The JSON document of a pull, or the one line that an expected error prints."""
    result = CliRunner().invoke(sortednet.app, ["pull", *map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    if code:
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line
    return json.loads(result.stdout)


class Stall:
    """A fault: the answer with the weights is held up until it is let go on."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, request: Request, status: int, body: bytes) -> None:
        if "weights.bin" in request.path:
            self.reached.set()
            self.goes_on.wait(ANSWERS_WITHIN_S)


@contextmanager
def pulling(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A pull in a process of its own."""
    command = [sys.executable, "-m", "sortednet", "pull", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_asked(proxy: Proxy) -> list[str]:
    paths = [urllib.parse.urlsplit(request.path).path for request in proxy.seen]
    return [path.partition("/files/")[2] for path in paths if "/files/" in path]
