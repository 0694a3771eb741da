"""Two replicas on one PostgreSQL behind nginx: under load one is killed and started again, then the other, and so on.

Reads (`POST /v1/select`, `GET` of a profile) and writes (`PUT` of profiles, each another content) come without a pause from
clients that do not try again. nginx runs with `deploy/nginx.conf`; only the addresses are replaced.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.askers import Askers
from benchmarks.service.fleet import Client, Replica, bundle, free_port, kept, profile, tokens
from benchmarks.service.postgres import cluster
from exporter.bundle import Bundle
from selector.service.fleet.store import canonical

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
ROUNDS = 6
QUIET_S = 3.0  # with two replicas
ALONE_S = 3.0  # with one
READERS = 6
WRITERS = 4
NOTES = {
    "replica_kill_failed_reads": "of the reads through nginx while replicas were killed (SIGKILL to all processes of one) and "
    "started again, the share that got no 200 or no whole answer; clients do not try again",
    "replica_kill_failed_writes": "the same of the writes",
    "replica_kill_lost_writes": "accepted writes (200 or 201) that are not in PostgreSQL afterwards",
    "replica_kill_doubled_writes": "rows beyond one for each content, though nginx sends a write again whose replica died",
    "replica_kill_reads": "reads in all",
    "replica_kill_writes": "writes in all",
    "replica_kills": "how often a replica was killed, in turn",
    "replica_kill_slowest_read_s": "the slowest read that was answered",
}


class Load(Askers):
    """Clients that go on until `stop`. What they count is read when they have ended."""

    def __init__(self, served: Bundle, port: int, given: list[str]) -> None:
        self.reads = self.failed_reads = self.writes = self.failed_writes = 0
        self.slowest_read_s = 0.0
        self.accepted: set[tuple[str, str]] = set()
        self.errors: list[str] = []
        self._served, self._port, self._given = served, port, given
        self._root = f"/v1/bundles/{served.name}/profiles"
        self._lock = threading.Lock()
        readers = [threading.Thread(target=self._read, args=(place,)) for place in range(READERS)]
        writers = [threading.Thread(target=self._write, args=(place,)) for place in range(WRITERS)]
        super().__init__([*readers, *writers])

    def _read(self, place: int) -> None:
        client, chance = Client(self._port), random.Random(place)
        while not self._stop.is_set():
            device = f"read-{chance.randrange(20)}"
            select = {"device": device, "budget": {"latency_ms": chance.uniform(1.0, 10.0)}}
            begun = time.monotonic()
            try:
                if chance.random() < 0.5:
                    answer = client.send("POST", "/v1/select", json.dumps(select).encode())
                else:
                    answer = client.send("GET", f"{self._root}/{device}")
                failure = "" if answer.status == 200 else f"{answer.status} {answer.body[:200]!r}"
            except OSError as error:
                failure = repr(error)
            with self._lock:
                self.reads += 1
                self.failed_reads += bool(failure)
                self.slowest_read_s = max(self.slowest_read_s, 0.0 if failure else time.monotonic() - begun)
                self.errors += [f"read: {failure}"] if failure else []

    def _write(self, place: int) -> None:
        client, turn = Client(self._port), 0
        while not self._stop.is_set():
            turn += 1
            one = profile(self._served, f"write-{place}-{turn % 50}", turn)
            token = self._given[(turn * WRITERS + place) % len(self._given)]
            try:
                answer = client.send("PUT", f"{self._root}/{one.device.name}", one.model_dump_json().encode(), token)
                failure = "" if answer.status in (200, 201) else f"{answer.status} {answer.body[:200]!r}"
            except OSError as error:
                failure = repr(error)
            with self._lock:
                self.writes += 1
                self.failed_writes += bool(failure)
                self.errors += [f"write: {failure}"] if failure else []
                if not failure:
                    self.accepted.add((one.device.name, sha256(canonical(one).encode()).hexdigest()))


def measure() -> dict[str, float]:
    """About a minute. Raises RuntimeError where PostgreSQL or nginx is not installed."""
    served = bundle()
    with TemporaryDirectory() as folder, cluster() as url:
        load = _killing(served, url, Path(folder))
        there = kept(url)
    for error in load.errors[:20]:
        print(error, file=sys.stderr)
    return {
        "replica_kill_failed_reads": load.failed_reads / load.reads,
        "replica_kill_failed_writes": load.failed_writes / load.writes,
        "replica_kill_lost_writes": len(load.accepted - there.contents),
        "replica_kill_doubled_writes": there.rows - len(there.contents) + there.gaps,
        "replica_kill_reads": load.reads,
        "replica_kill_writes": load.writes,
        "replica_kills": ROUNDS,
        "replica_kill_slowest_read_s": load.slowest_read_s,
    }


def _killing(served: Bundle, url: str, folder: Path) -> Load:
    logs = [folder / "replica-1.log", folder / "replica-2.log"]
    with Replica(served, url, logs[0]) as one, Replica(served, url, logs[1]) as two:
        given = tokens(url, 100)
        with balancer((one.port, two.port), folder) as port:
            client = Client(port)
            for number in range(20):
                device = profile(served, f"read-{number}", number)
                path = f"/v1/bundles/{served.name}/profiles/{device.device.name}"
                if client.send("PUT", path, device.model_dump_json().encode(), given[0]).status != 201:
                    raise RuntimeError("the first profiles were not accepted")
            load = Load(served, port, given)
            load.start()
            try:
                for turn in range(ROUNDS):
                    time.sleep(QUIET_S)
                    killed = (one, two)[turn % 2]
                    killed.kill()
                    time.sleep(ALONE_S)
                    killed.start()
                time.sleep(QUIET_S)
            finally:
                load.stop()
    return load


@contextmanager
def balancer(replicas: tuple[int, int], folder: Path) -> Iterator[int]:
    """nginx before two replicas; its port."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise RuntimeError("nginx is not installed: apt-get install nginx-light")
    port = free_port()
    text = CONFIGURATION.read_text(encoding="utf-8")
    for old, new in (
        ("replica-1:8080", f"127.0.0.1:{replicas[0]}"),
        ("replica-2:8080", f"127.0.0.1:{replicas[1]}"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
    ):
        if text.count(old) != 1:
            raise RuntimeError(f"{CONFIGURATION.name}: {old!r} is not there once")
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    settings = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;"
    with subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-g", settings]) as process:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    Client(port).send("GET", "/healthz")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"nginx did not start: {(folder / 'nginx.log').read_text()}") from None
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=1)
