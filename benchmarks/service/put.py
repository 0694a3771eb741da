"""10,000 profiles from 50 clients at once, over SQLite and over PostgreSQL: is any lost, is any there twice?

1,000 devices with ten profiles each; the ten come from ten clients at the same time, so that they fight for the next version.
A client that gets no answer, or a 5xx, sends the same once more, as devices do. Afterwards every tenth profile that is a
device's newest is sent again, which must change nothing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.service.fleet import Client, Replica, bundle, kept, profile, tokens
from benchmarks.service.postgres import cluster
from exporter.bundle import Bundle
from selector.service.fleet.store import canonical

PROFILES = 10_000
CLIENTS = 50
PER_DEVICE = 10
TRIES = 20
NOTES = {
    "profiles_put_lost": f"of {PROFILES} different profiles that {CLIENTS} clients sent at once, how many are not in the store "
    "or were never accepted; SQLite and PostgreSQL together",
    "profiles_put_doubled": "rows of the store beyond one for each profile, and version numbers left out; both together",
    "profiles_put_sent": "profiles sent, both together",
    "profiles_put_retries": "requests sent again after no answer or a 5xx",
    "profiles_put_per_s.sqlite": "accepted per second, durable (fsync); one service process, clients on the same two cores",
    "profiles_put_per_s.postgresql": "the same, PostgreSQL on the same two cores",
}


def measure() -> dict[str, float]:
    """Some minutes."""
    served = bundle()
    found: dict[str, float] = {}
    with TemporaryDirectory() as folder, cluster() as postgresql:
        for name, url in (("sqlite", f"sqlite:///{folder}/store.db"), ("postgresql", postgresql)):
            for key, value in _put(served, url, Path(folder) / f"{name}.log").items():
                found[f"{key}.{name}"] = value
    for key in ("profiles_put_lost", "profiles_put_doubled", "profiles_put_sent", "profiles_put_retries"):
        found[key] = sum(found.pop(f"{key}.{name}") for name in ("sqlite", "postgresql"))
    return found


def _put(served: Bundle, url: str, log: Path) -> dict[str, float]:
    sent = [profile(served, f"device-{number // PER_DEVICE:04}", number) for number in range(PROFILES)]
    bodies = [one.model_dump_json().encode() for one in sent]
    contents = {(one.device.name, sha256(canonical(one).encode()).hexdigest()) for one in sent}
    paths = [f"/v1/bundles/{served.name}/profiles/{one.device.name}" for one in sent]
    with Replica(served, url, log) as replica:
        given = tokens(url, CLIENTS)
        accepted, retries, seconds = _clients(replica.port, paths, bodies, given)
        _send_again(replica.port, paths, bodies, tokens(url, 10))
    there = kept(url)
    return {
        "profiles_put_sent": len(sent),
        "profiles_put_lost": len(contents - there.contents) + (len(sent) - accepted),
        "profiles_put_doubled": there.rows - len(there.contents) + there.gaps + len(there.contents - contents),
        "profiles_put_retries": retries,
        "profiles_put_per_s": accepted / seconds,
    }


def _clients(port: int, paths: Sequence[str], bodies: Sequence[bytes], given: Sequence[str]) -> tuple[int, int, float]:
    """How many were accepted, how often one was sent again, and the seconds that all took."""
    accepted, retries = [0] * CLIENTS, [0] * CLIENTS
    together = threading.Barrier(CLIENTS + 1)

    def run(place: int) -> None:
        client = Client(port)
        together.wait()
        for number in range(place, len(paths), CLIENTS):
            for attempt in range(TRIES):
                try:
                    status = client.send("PUT", paths[number], bodies[number], given[place]).status
                except OSError:
                    status = 0
                if status in (200, 201):
                    accepted[place] += 1
                    break
                if 0 < status < 500:
                    break  # refused: counted as lost
                retries[place] += 1
                time.sleep(0.05 * attempt)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(CLIENTS)]
    for thread in threads:
        thread.start()
    together.wait()
    begun = time.monotonic()
    for thread in threads:
        thread.join()
    return sum(accepted), sum(retries), time.monotonic() - begun


def _send_again(port: int, paths: Sequence[str], bodies: Sequence[bytes], given: Sequence[str]) -> None:
    """The newest of each tenth device."""
    client = Client(port)
    for turn, place in enumerate(range(0, len(paths), PER_DEVICE * 10)):
        newest = client.send("GET", paths[place]).body
        answer = client.send("PUT", paths[place], newest, given[turn % len(given)])
        if answer.status != 200 or json.loads(answer.body)["created"]:
            raise RuntimeError(f"{paths[place]}: the newest profile sent again: {answer.status} {answer.body[:200]!r}")


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=1)
