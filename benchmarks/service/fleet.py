"""What the benchmarks of the store share: a bundle, profiles that devices would send, service processes, and clients."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from device_profiles import DeviceInfo, LatencyMs, Measurement, Profile
from exporter.bundle import Bundle
from selector.service.fleet.store import Store

BUNDLE = Path("build/adapt/bundle")
MEASURED = 12
"""Sub-models in a profile, as after `sortednet profile --measure 12`, without those predicted."""

STARTS_WITHIN_S = 60.0


def bundle() -> Bundle:
    """160 sub-models; trained where it is not there (some minutes)."""
    if (BUNDLE / "manifest.json").exists():
        return Bundle(BUNDLE)
    from benchmarks.adapt.bundles import trained

    return trained()


def profile(of: Bundle, device: str, turn: int) -> Profile:
    """A device's profile; another `turn`, another content."""
    info = DeviceInfo(
        name=device,
        cpu=f"Benchmark {crc32(device.encode()) % 7}",
        cores=4,
        threads=4,
        ram_mb=4096,
        os="Linux",
        onnxruntime="1.32.0",
        execution_provider="CPUExecutionProvider",
    )
    names = list(of.submodels)[:: max(1, len(of.submodels) // MEASURED)][:MEASURED]
    costs = {}
    for place, name in enumerate(names):
        ms = 1.0 + place + turn * 1e-6
        latency = LatencyMs(p50=ms, p90=ms, p99=ms, mean=ms, n=100)
        costs[name] = Measurement(latency_ms=latency, memory_mb=1.0, source={"latency_ms": "measured", "memory_mb": "measured"})
    return Profile(device=info, bundle=of.fingerprint, measured_at=datetime(2026, 1, 1, tzinfo=UTC), submodels=costs)


def tokens(url: str, count: int) -> list[str]:
    """New ones: each may send only so many profiles a minute."""
    with Store(url) as store:
        return [store.tokens.create(f"client {number}")[1] for number in range(count)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Replica:
    """A service in processes of its own, on one port. Use as a context manager."""

    def __init__(self, served: Bundle, store: str, log: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "sortednet", "serve", str(served.path), "--port", str(self.port), "--store", store]
        self._command, self._log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True, env=environment)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            with suppress(OSError):
                if Client(self.port).send("GET", "/readyz").status == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start: {self._log.read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """All its processes at once (SIGKILL)."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Replica:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class Answer(NamedTuple):
    status: int
    body: bytes


class Client:
    """One connection on loopback, made anew after an error or where the server closed it."""

    def __init__(self, port: int, timeout: float = 35.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def send(self, method: str, path: str, body: bytes | None = None, token: str | None = None) -> Answer:
        """Raises OSError when there is no whole answer."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return Answer(response.status, response.read())
        except http.client.HTTPException as error:
            self._connection.close()
            raise ConnectionError(repr(error)) from error
        except OSError:
            self._connection.close()
            raise


class Kept(NamedTuple):
    """What a store holds of some devices."""

    contents: set[tuple[str, str]]  # device, hash of the document
    rows: int
    gaps: int  # versions that are missing between the first and the newest of a device


def kept(url: str) -> Kept:
    """Of all devices of a store, read from its table."""
    import sqlalchemy as sa

    from selector.service.fleet.tables import profiles

    with Store(url) as store, store.engine.connect() as connection:
        columns = (profiles.c.device, profiles.c.sha256, profiles.c.version)
        rows: Sequence[Any] = connection.execute(sa.select(*columns)).all()
    newest: dict[str, int] = {}
    for row in rows:
        newest[row.device] = max(newest.get(row.device, 0), row.version)
    return Kept({(row.device, row.sha256) for row in rows}, len(rows), sum(newest.values()) - len(rows))
