"""Pulls on bad networks: broken off, killed, with wrong bytes, beside others."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from exporter.bundle import Bundle
from tests.helpers.proxy import Proxy, Request
from tests.helpers.pulls import SMALL, Stall, contents, pulled, pulling
from tests.helpers.server import ANSWERS_WITHIN_S, Server


def test_a_broken_connection_is_gone_on_with(proxy: Proxy, tmp_path: Path) -> None:
    """Every file's connection breaks after a third of what is left, again and again."""

    def breaks(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        return (status, body, len(body) // 3) if "/files/models" in request.path and len(body) > 500 else None

    proxy.fault = breaks
    document = pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    Bundle(tmp_path / "mine")
    ranges = [request.headers for request in proxy.seen if "Range" in request.headers]
    assert len(ranges) > 10
    assert all(headers["If-Range"].startswith('"') for headers in ranges)
    assert document["fetched_bytes"] == sum(entry.bytes for entry in Bundle(tmp_path / "mine").manifest.files.values())


def test_a_pull_that_gave_up_or_was_killed_is_gone_on_with_by_the_next(proxy: Proxy, tmp_path: Path) -> None:
    def ends(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        if "weights.bin" not in request.path:
            return None
        return (206, b"", None) if "Range" in request.headers else (status, body, 4000)

    proxy.fault = ends
    line = pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=1)
    assert "weights.bin" in line
    assert not (tmp_path / "mine").exists()
    proxy.fault = lambda request, status, body: None
    proxy.seen.clear()
    pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    (headers,) = (request.headers for request in proxy.seen if "weights.bin" in request.path)
    assert headers["Range"] == "bytes=4000-"
    Bundle(tmp_path / "mine")


def test_a_killed_pull_leaves_the_old_bundle(proxy: Proxy, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(proxy.url, "--out", mine, "--submodels", SMALL)
    before = contents(mine)
    proxy.fault = stall = Stall()
    with pulling(proxy.url, "--out", mine, "--submodels", "w1.00-d2") as process:
        assert stall.reached.wait(60)
        os.kill(process.pid, signal.SIGKILL)
    stall.goes_on.set()
    assert contents(mine) == before
    proxy.fault = lambda request, status, body: None
    pulled(proxy.url, "--out", mine, "--submodels", "w1.00-d2")
    assert list(Bundle(mine).submodels) == ["w1.00-d2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.versions", "mine"]


def test_readers_find_the_old_bundle_or_the_new_one_at_any_moment(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(server.url, "--out", mine, "--submodels", SMALL)
    done = threading.Event()
    wrong: list[Exception] = []
    looks = 0

    def look() -> None:
        nonlocal looks
        while not done.is_set():
            looks += 1
            try:
                json.loads((mine / "manifest.json").read_bytes())
            except Exception as error:
                wrong.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for name in ("w0.75-d1", SMALL, "w1.00-d1"):
        pulled(server.url, "--out", mine, "--submodels", name)
    done.set()
    reader.join()
    assert looks > 10
    assert wrong == []


def test_a_byte_changed_on_the_way_is_noticed_and_fetched_again(proxy: Proxy, tmp_path: Path) -> None:
    falsified = []

    def once(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        if "weights.bin" in request.path and not falsified:
            falsified.append(request)
            return status, body[:10] + bytes([body[10] ^ 1]) + body[11:], None
        return None

    proxy.fault = once
    pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    assert falsified
    Bundle(tmp_path / "mine")


def test_bytes_that_are_always_wrong_are_an_error_and_the_old_bundle_stays(proxy: Proxy, tmp_path: Path) -> None:
    pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    before = contents(tmp_path / "mine")
    proxy.fault = lambda request, status, body: (status, b"x" * len(body), None) if "weights.bin" in request.path else None
    line = pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", "w1.00-d1", code=1)
    assert "weights.bin" in line
    assert "sha256" in line
    assert contents(tmp_path / "mine") == before


def test_an_altered_manifest_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    def alters(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        if not request.path.endswith("/subsets"):
            return None
        return status, gzip.compress(gzip.decompress(body).replace(b'"macs":', b'"macs": 1')), None

    proxy.fault = alters
    assert "altered" in pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=1)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_service_is_asked_again(proxy: Proxy, tmp_path: Path) -> None:
    left = {"/subsets": 3, "/files/": 3}

    def busy(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        for part in left:
            if part in request.path and left[part]:
                left[part] -= 1
                return 503, b"later", None
        return None

    proxy.fault = busy
    pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    assert not any(left.values())


@pytest.mark.parametrize("choice", [(), ("--submodels", SMALL)])
def test_a_document_that_breaks_off_is_asked_for_again(proxy: Proxy, tmp_path: Path, choice: tuple[str, ...]) -> None:
    broken = []

    def breaks(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        if request.path.endswith(("/subsets", "manifest.json")) and len(broken) < 2:
            broken.append(request)
            return status, body, len(body) // 2
        return None

    proxy.fault = breaks
    pulled(proxy.url, "--out", tmp_path / "mine", *choice)
    assert len(broken) == 2


def test_documents_come_compressed_and_one_that_unpacks_without_end_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    sizes = []

    def look(request: Request, status: int, body: bytes) -> tuple[int, bytes, int | None] | None:
        if request.path.endswith("/subsets"):
            sizes.append((len(body), len(gzip.decompress(body))))
        return None

    proxy.fault = look
    pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    assert sizes[0][0] < sizes[0][1] / 2
    bomb = gzip.compress(bytes(100 * 2**20))
    proxy.fault = lambda request, status, body: (status, bomb, None) if request.path.endswith("/subsets") else None
    assert "answers no JSON" in pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=2)
    damaged = gzip.compress(b"{}" * 1000)[:-20] + bytes(20)
    proxy.fault = lambda request, status, body: (status, damaged, None) if request.path.endswith("/subsets") else None
    assert "answers no JSON" in pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=2)


def test_damaged_files_of_the_old_bundle_are_fetched_again(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(server.url, "--out", mine, "--submodels", SMALL)
    before = contents(mine)
    graph = next((mine / "models").glob("*.onnx"))
    graph.write_bytes(b"x")
    (mine / "manifest.json").write_text("{")
    document = pulled(server.url, "--out", mine, "--submodels", SMALL)
    assert (document["fetched_files"], document["reused_files"]) == (1, 2)
    assert contents(mine) == before


def test_two_pulls_to_one_place_do_not_disturb_each_other(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = stall = Stall()
    with pulling(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL) as process:
        assert stall.reached.wait(60)
        assert "another pull" in pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", "w1.00-d1", code=1)
        stall.goes_on.set()
        assert process.wait(ANSWERS_WITHIN_S) == 0
    assert list(Bundle(tmp_path / "mine").submodels) == [SMALL]
