"""200 slow and silent connections for a minute: does `/healthz` answer whatever they do, and queries too?

A quarter each sends nothing, half a head, half a body, and a request whose long answer it does not take; whoever is closed by
the service comes again at once. Beside them one client asks `/healthz` on a new connection, and one `POST /v1/select`.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from itertools import cycle, islice

from benchmarks.service.fleet import bundle
from benchmarks.service.running import running
from tests.helpers.slow_clients import HALF_A_BODY, HALF_A_HEAD, SILENT, connected

CONNECTIONS, SECONDS, EVERY_S = 200, 60.0, 0.02
NOTES = {
    "slow_clients_health_p99_ms": f"of /healthz, each time on a new connection, while {CONNECTIONS} connections send half a head, "
    f"half a body or nothing, or take nothing of their answers, for {SECONDS:g} s; an answer that is lost counts as 10 s",
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
        charts = _charts(service.port)
        unread = f"GET {charts} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 3
        ended = threading.Event()
        kinds = islice(cycle((SILENT, HALF_A_HEAD, HALF_A_BODY, unread)), CONNECTIONS)
        slow = [threading.Thread(target=_wait, args=(service.url, kind, ended)) for kind in kinds]
        taken: dict[str, list[float]] = {"health": [], "select": []}
        asked = {"health": ("GET", "/healthz", None), "select": ("POST", "/v1/select", BUDGET)}
        asking = [threading.Thread(target=_ask, args=(service.port, *asked[name], taken[name], ended)) for name in taken]
        for thread in slow:
            thread.start()
        time.sleep(1)
        for thread in asking:
            thread.start()
        time.sleep(SECONDS)
        ended.set()
        for thread in asking + slow:
            thread.join()
    found: dict[str, float] = {"slow_clients_health_max_ms": max(taken["health"]) * 1e3}
    found["slow_clients_health_asked"] = len(taken["health"])
    for name, seconds in taken.items():
        found[f"slow_clients_{name}_p99_ms"] = sorted(seconds)[int(len(seconds) * 0.99)] * 1e3
        found[f"slow_clients_{name}_lost"] = sum(one >= 10 for one in seconds)
    return found


def _wait(url: str, sent: bytes, ended: threading.Event) -> None:
    """Sends this on one connection after the other, each for as long as the service lets it."""
    while not ended.is_set():
        try:
            with connected(url, sent, 1) as (client,):
                if sent.startswith(b"GET"):
                    ended.wait(5)
                client.settimeout(1)
                while not ended.is_set():
                    try:
                        if not client.recv(1):
                            break
                    except TimeoutError:
                        continue
        except OSError:
            ended.wait(0.05)


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
    json.dump(measure(), sys.stdout, indent=1)
