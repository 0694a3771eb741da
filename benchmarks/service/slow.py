"""200 slow and silent connections for a minute: does `/healthz` answer whatever they do, and queries too?

A quarter each sends nothing, half a head, half a body, and a request whose long answer it does not take; whoever is closed by
the service comes again at once. Beside them one client asks `/healthz` on a new connection, and one `POST /v1/select`.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import subprocess
import sys
import threading
import time
from itertools import cycle, islice

from benchmarks.service.fleet import bundle
from benchmarks.service.running import running
from tests.helpers.slow_clients import HALF_A_BODY, HALF_A_HEAD, SILENT

CONNECTIONS, SECONDS, EVERY_S = 200, 60.0, 0.02
NOTES = {
    "slow_clients_health_p99_ms": f"of /healthz, on a new connection each time, while {CONNECTIONS} connections send half a "
    f"head, half a body or nothing, or take nothing of their answers, for {SECONDS:g} s; an answer that is lost counts as 10 s",
    "slow_clients_health_max_ms": "the longest of them",
    "slow_clients_health_lost": "of them without an answer within 10 s",
    "slow_clients_health_asked": "how often it was asked",
    "slow_clients_select_p99_ms": "of POST /v1/select beside them",
    "slow_clients_select_lost": "of them without an answer within 10 s",
}
BUDGET = json.dumps({"budget": {}}).encode()


def measure() -> dict[str, float]:
    """A minute."""
    with running("sortednet", "serve", str(bundle().path)) as service:
        unread = f"GET {_charts(service.port)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 3
        command = [sys.executable, "-m", "benchmarks.service.slow", str(service.port), unread.decode()]
        taken: dict[str, list[float]] = {"health": [], "select": []}
        asked = {"health": ("GET", "/healthz", None), "select": ("POST", "/v1/select", BUDGET)}
        ended = threading.Event()
        asking = [threading.Thread(target=_ask, args=(service.port, *asked[name], taken[name], ended)) for name in taken]
        with subprocess.Popen(command) as slow:
            time.sleep(2)
            for thread in asking:
                thread.start()
            time.sleep(SECONDS)
            ended.set()
            for thread in asking:
                thread.join()
            if slow.poll() is not None:
                raise RuntimeError("the slow clients ended")
            slow.terminate()
    found: dict[str, float] = {"slow_clients_health_max_ms": max(taken["health"]) * 1e3}
    found["slow_clients_health_asked"] = len(taken["health"])
    for name, seconds in taken.items():
        found[f"slow_clients_{name}_p99_ms"] = sorted(seconds)[int(len(seconds) * 0.99)] * 1e3
        found[f"slow_clients_{name}_lost"] = sum(one >= 10 for one in seconds)
    return found


def _be_slow(port: int, unread: bytes) -> None:
    """All slow clients, in a process of their own, until it is ended."""
    polled, sent = select.poll(), {}
    for kind in islice(cycle((SILENT, HALF_A_HEAD, HALF_A_BODY, unread)), CONNECTIONS):
        client = _connected(port, kind)
        sent[client.fileno()] = client, kind
    for number, (_, kind) in sent.items():
        polled.register(number, 0 if kind is unread else select.POLLIN)
    while True:
        for number, _ in polled.poll():
            polled.unregister(number)
            client, kind = sent.pop(number)
            client.close()
            client = _connected(port, kind)
            sent[client.fileno()] = client, kind
            polled.register(client, 0 if kind is unread else select.POLLIN)


def _connected(port: int, kind: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(kind)
    return client


def _ask(port: int, method: str, path: str, body: bytes | None, taken: list[float], ended: threading.Event) -> None:
    while not ended.is_set():
        begun = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", "Connection": "close"})
            answer = connection.getresponse()
            answer.read()
            taken.append(time.perf_counter() - begun if answer.status in (200, 404) else 10.0)
        except (OSError, http.client.HTTPException):
            taken.append(10.0)
        finally:
            connection.close()
        ended.wait(EVERY_S)


def _charts(port: int) -> str:
    """The longest file that the page loads."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    page = connection.getresponse().read().decode()
    connection.close()
    return "/" + str(json.loads(page.split('id="config">')[1].split("</script>")[0])["charts"]).lstrip("/")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _be_slow(int(sys.argv[1]), sys.argv[2].encode())
    else:
        json.dump(measure(), sys.stdout, indent=1)
