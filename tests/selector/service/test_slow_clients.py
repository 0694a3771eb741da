"""Clients that send slowly, take slowly or do nothing keep nobody else waiting, and no bytes are needed twice."""

from __future__ import annotations

import http.client
import json
import resource
import select
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector.service.arrival import MAX_HEAD_BYTES, Arrival
from tests.helpers.server import ANSWERS_WITHIN_S, Server, serving
from tests.helpers.slow_clients import HALF_A_BODY, HALF_A_HEAD, KINDS, connected

POST = b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = [
    b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    POST + b"Content-Length: 14\r\n\r\n" + b'{"budget": {}}',
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + b'4;a=b\r\n{"bu\r\nA\r\ndget": {}}\r\n0\r\n\r\n',
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + b'E\r\n{"budget": {}}\r\n0\r\nX-Sum: 1\r\n\r\n',
]


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("slow") / "log", bundle_path, options=["--threads", "2"]) as found:
        yield found


@pytest.mark.parametrize("sent", KINDS)
def test_connections_that_send_half_or_nothing_take_no_thread(server: Server, sent: bytes) -> None:
    with connected(server.url, sent, 60) as waiting:
        assert server.get("/healthz").status == 200
        assert server.post("/v1/select", {"budget": {}}).status == 200
        assert not select.select(waiting, [], [], 0)[0]  # none was answered or closed to make that possible


def test_a_client_that_takes_nothing_of_its_answers_keeps_neither_probes_nor_queries_waiting(server: Server) -> None:
    with urllib.request.urlopen(server.url, timeout=ANSWERS_WITHIN_S) as page:
        charts = json.loads(page.read().decode().split('id="config">')[1].split("</script>")[0])["charts"]
    ask = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % charts.lstrip("/").encode()
    with connected(server.url, ask * 3, 40):  # more than any buffer of the kernel holds
        assert server.get("/healthz").status == 200
        assert server.post("/v1/select", {"budget": {}}).status == 200


def test_a_request_that_arrives_bit_by_bit_is_answered(server: Server) -> None:
    with connected(server.url, b"", 1) as (client,):
        for request in WHOLE[1:]:
            for at in range(0, len(request), 7):
                client.sendall(request[at : at + 7])
            response = http.client.HTTPResponse(client)
            response.begin()
            assert (response.status, json.loads(response.read())["feasible"]) == (200, True)


def test_requests_sent_ahead_are_answered_in_their_order(server: Server) -> None:
    with connected(server.url, WHOLE[0] + WHOLE[1] + HALF_A_BODY, 1) as (client,):
        answers = b""
        while answers.count(b'"feasible"') < 1:
            answers += client.recv(65536)
        assert answers.index(b'"alive"') < answers.index(b'"feasible"')
        client.sendall(b'"budget": {}}')
        while answers.count(b'"feasible"') < 2:
            answers += client.recv(65536)
        assert answers.count(b"HTTP/1.1 200 OK") == 3


def test_there_is_always_room_for_another_connection(bundle_path: Path, tmp_path: Path) -> None:
    """Far more of them than the process may have descriptors for: those that wait longest make room."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        starting = serving(tmp_path / "log", bundle_path)
        server = starting.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    try:
        with connected(server.url, HALF_A_HEAD, 150), connected(server.url, b"", 150):
            assert server.get("/healthz").status == 200
            assert server.post("/v1/select", {"budget": {}}).status == 200
        assert "Traceback" not in server.log.read_text()
    finally:
        starting.__exit__(None, None, None)


def test_a_header_does_not_move_the_paths(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=ANSWERS_WITHIN_S)
    for name in ("SCRIPT_NAME", "Script-Name", "PATH_INFO"):
        connection.request("GET", "/healthz", headers={name: "/healthz"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (200, {"status": "alive"}), name
    connection.close()


@given(st.sampled_from(WHOLE), st.lists(st.integers(1, 200), max_size=30))
def test_a_request_is_whole_with_its_last_byte_and_not_before(request: bytes, cuts: list[int]) -> None:
    arrival, at = Arrival(lambda path, head: 1000), 0
    for size in cuts:
        if at + size >= len(request):
            break
        arrival.add(request[at : at + size])
        at += size
        assert not arrival.whole
    arrival.add(request[at:])
    assert (arrival.whole, arrival.cut) == (True, False)
    assert bytes(arrival.bytes) == request


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 1001\r\n\r\n",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"x" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_what_will_be_refused_is_not_waited_for(request_: bytes) -> None:
    arrival = Arrival(lambda path, head: 1000)
    arrival.add(request_)
    assert (arrival.whole, arrival.cut) == (True, True)


@pytest.mark.parametrize(("path", "status"), [("/v1/predict", 413), ("/v1/select", 413), ("/healthz", 405), ("/nowhere", 404)])
def test_a_body_that_is_too_long_is_refused_before_it_comes(server: Server, path: str, status: int) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {5 * 2**20}\r\n\r\n"
    with connected(server.url, head.encode(), 1) as (client,):
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, response.headers["Connection"]) == (status, "close")
        response.close()


def test_who_asks_before_sending_a_body_is_told_to_once(server: Server) -> None:
    body = b'{"budget": {}}'
    with connected(server.url, POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body), 1) as (client,):
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        client.shutdown(socket.SHUT_WR)
        answer, until = b"", time.monotonic() + ANSWERS_WITHIN_S
        while (more := client.recv(65536)) and time.monotonic() < until:
            answer += more
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"100 Continue" not in answer
