"""Servers on loopback, in processes of their own, and wrk, which sends them requests faster than they can answer."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

STARTS_WITHIN_S = 60
SCRIPT = """
local place, bodies = 0, {BODIES}
local requests = {}
function init()
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
  end
end
function request()
  place = place % #requests + 1
  return requests[place]
end
function done(summary, latency)
  local e = summary.errors
  local line = '{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "errors": %d}\\n'
  io.write("RESULT " .. string.format(line, summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Running(NamedTuple):
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rss_mb(self) -> float:
        """Of its workers: the processes that answer."""
        return float(sum(child.memory_info().rss for child in psutil.Process(self.process.pid).children())) / 2**20


class Load(NamedTuple):
    """What one run of wrk saw; an error is a status of 400 and above, or no answer."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def rps(self) -> float:
        return self.requests / self.seconds


@contextmanager
def running(module: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`python -m MODULE ARGUMENTS… --port N` until the end of the block; what it logs is thrown away. `environment`: variables
    beside the present ones."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, *map(str, arguments), "--port", str(port)]
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, env=variables) as process:
        try:
            service = Running(port, process)
            _wait_until_it_answers(f"{service.url}/healthz", process, log)
            yield service
        finally:
            process.terminate()
            process.wait(60)


def wrk(url: str, bodies: Sequence[Any], *, seconds: float, connections: int = 8) -> Load:
    """POSTs these documents in turn over so many connections."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    quoted = ", ".join(f"[==[{json.dumps(body)}]==]" for body in bodies)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.replace("BODIES", quoted))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", script.name, url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in output.splitlines() if line.startswith("RESULT "))
    return Load(**json.loads(line.removeprefix("RESULT ")))


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"the server does not start: {log.read().decode()[-2000:]}") from None
            time.sleep(0.1)
