"""Clients that leave, and more of them than there is room for."""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from flask import Flask

from selector import Budget
from selector.service import GenerateOptions, create_app
from selector.service.generate.generating import ClientGone, Generating
from selector.service.generate.streams import Events, client_gone
from tests.helpers.generators import write_bundle
from tests.helpers.server import ANSWERS_WITHIN_S, Server, serving

CONTEXT = 40_000
"""Of a text that takes longer than any of these tests."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("talkers")
    bundle = write_bundle(folder / "talker", context=CONTEXT)
    options = ("--max-tokens", str(CONTEXT), "--memory-mb", "200")
    with serving(folder / "log", bundle.path, options=options) as found:
        yield found


def figure(server: Server, name: str) -> float:
    """Of the metrics; 0 where there is none."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=ANSWERS_WITHIN_S) as response:
        lines = response.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_frees_its_place(server: Server, stream: bool, reset: bool) -> None:
    gone = 'sortednet_generate_requests_total{bundle="talker",finish="gone"}'
    tokens = 'sortednet_generated_tokens_total{bundle="talker"}'
    before = figure(server, gone), figure(server, tokens)
    body = json.dumps({"prompt": "x", "stream": stream, "options": {"ignore_eos": True}}).encode()
    place = urlsplit(server.url)
    client = socket.create_connection((place.hostname, place.port), ANSWERS_WITHIN_S)
    lines = ("POST /v1/generate HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
    client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    if stream:
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    else:
        wait_until(server, "sortednet_generate_running", 1.0)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(server, "sortednet_generate_running", 0.0)
    assert figure(server, gone) == before[0] + 1
    assert 0 < figure(server, tokens) - before[1] < CONTEXT - 10  # it was not generated to its end for nobody


def wait_until(server: Server, name: str, value: float) -> None:
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while figure(server, name) != value:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_fifty_at_once_each_is_answered_or_told_when_to_come_again(server: Server) -> None:
    body = json.dumps({"prompt": "x" * 50, "stream": False, "options": {"max_tokens": 8, "ignore_eos": True}}).encode()

    def ask(_: int) -> tuple[int, str | None, int]:
        request = urllib.request.Request(f"{server.url}/v1/generate", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S) as response:
                return response.status, None, json.loads(response.read())["usage"]["completion_tokens"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Retry-After"], 0

    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(ask, range(50)))
    assert {status for status, _, _ in answers} <= {200, 503}
    assert {count for status, _, count in answers if status == 200} == {8}
    assert all(after and int(after) >= 1 for status, after, _ in answers if status == 503)
    assert ask(0)[0] == 200


def test_whether_a_client_is_there() -> None:
    """One that sends the next request already is; one that has closed its end, or reset the connection, is not."""
    app = Flask("there")
    for leave in (socket.socket.close, lambda one: one.shutdown(socket.SHUT_WR)):
        here, there = socket.socketpair()
        with app.test_request_context(environ_overrides={"gunicorn.socket": here}):
            gone = client_gone()
        assert not gone()
        there.sendall(b"GET")
        assert not gone()
        here.recv(3)
        leave(there)
        assert gone()
        here.close()
        there.close()
    with app.test_request_context():
        assert not client_gone()()


def test_no_token_is_computed_for_a_client_that_has_gone() -> None:
    class Text:
        computed, closed = 0, ""

        def __iter__(self) -> Iterator[int]:
            while True:
                self.computed += 1
                yield self.computed

        def gone(self) -> None:
            self.closed = "gone"

        def close(self) -> None:
            self.closed = self.closed or "closed"

    text = Text()
    made = Events(
        text,  # type: ignore[arg-type]
        lambda: text.computed == 3,
        of_piece=lambda piece: str(piece).encode(),
        end=lambda: b"end",
        failed=lambda error: b"failed",
    )
    assert list(made) == [b"1", b"2", b"3"]
    assert (text.computed, text.closed) == (3, "gone")


def test_a_stream_that_fails_in_its_middle_says_so() -> None:
    class Text:
        closed = False

        def __iter__(self) -> Iterator[int]:
            yield 1
            raise ValueError("damaged")

        def close(self) -> None:
            self.closed = True

    text = Text()
    made = Events(
        text,  # type: ignore[arg-type]
        lambda: False,
        of_piece=lambda piece: b"1",
        end=lambda: b"end",
        failed=lambda error: str(error).encode(),
    )
    assert list(made) == [b"1", b"damaged"]
    made.close()
    assert text.closed


def test_one_whose_client_has_left_the_queue_is_not_generated(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "talker")
    app = create_app([bundle], generate=GenerateOptions(cores=1))
    generating: Generating = app.extensions["sortednet.generating"]
    with pytest.raises(ClientGone):
        generating.begin(bundle, None, "x", {}, Budget(), time.monotonic(), lambda: True)
    assert generating.gate.running == 0
    (kept,) = generating.opened(bundle)
    assert kept.generator.free_slots == 1
    assert 'sortednet_generate_refused_total{bundle="talker",reason="gone"} 1.0' in app.test_client().get("/metrics").text
    kept.generator.close()
