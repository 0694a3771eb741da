"""The REST service over many requests: it neither errs nor grows, and nothing that is made up breaks it. In small; the large
runs are `python -m benchmarks.service soak fuzz`."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from benchmarks.service import fuzz
from benchmarks.service.load import BODIES
from tests.helpers.server import ANSWERS_WITHIN_S, Server, serving

REQUESTS, WARM_UP = 3000, 1000
GROWTH_MB = 8  # a kilobyte kept per request would be 2


def test_thousands_of_queries_are_answered_without_growth_of_memory(bundle_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path) as server:
        (worker,) = psutil.Process(server.process.pid).children()
        send(server, WARM_UP)
        before = worker.memory_info().rss
        send(server, REQUESTS)
        assert (worker.memory_info().rss - before) / 2**20 < GROWTH_MB


def send(server: Server, count: int) -> None:
    """Over one connection that is kept."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=ANSWERS_WITHIN_S)
    for step in range(count):
        body = json.dumps(BODIES[step % len(BODIES)])
        connection.request("POST", "/v1/select", body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            response.read()
            assert response.status == 200
    connection.close()


@pytest.mark.slow
def test_nothing_made_up_from_the_document_breaks_it(bundle_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path) as server:
        found, output = fuzz.run(f"{server.url}/openapi.json", seed=1, examples=20)
    assert found["test_cases"]["generated"] > 100
    assert found["test_cases"]["unique_failures"] == 0, output
