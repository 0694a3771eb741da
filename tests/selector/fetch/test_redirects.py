"""Services that have moved, and such that want a password."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from selector.fetch.transfer import Client, PullError, service_url
from tests.helpers.proxy import Proxy
from tests.helpers.pulls import SMALL, pulled


class Moved(http.server.ThreadingHTTPServer):
    """Answers everything with a redirect to the same path of another service."""

    daemon_threads = True

    def __init__(self, target: str, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Moved)
        self.target, self.status, self.url = target, status, f"http://127.0.0.1:{self.server_port}"


class _Moved(http.server.BaseHTTPRequestHandler):
    server: Moved

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.target}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Silence."""


@pytest.fixture(params=[301, 302, 307, 308])
def moved(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Moved]:
    with Moved(proxy.url, request.param) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_a_service_that_has_moved_is_followed_with_whole_queries(moved: Moved, proxy: Proxy, tmp_path: Path) -> None:
    address = moved.url.replace("//", "//me:secret@")
    document = pulled(address, "--out", tmp_path / "mine", "--submodels", SMALL)
    assert document["submodels"] == [SMALL]
    assert [one.method for one in proxy.seen if one.path.endswith("/subsets")] == ["POST"]
    assert not any("Authorization" in one.headers for one in proxy.seen)  # it was not meant for that host


def test_a_user_and_password_are_sent_and_in_no_message(proxy: Proxy, tmp_path: Path) -> None:
    address = proxy.url.replace("//", "//me:s%40cret@")
    pulled(address, "--out", tmp_path / "mine", "--submodels", SMALL)
    assert {one.headers["Authorization"] for one in proxy.seen} == {f"Basic {base64.b64encode(b'me:s@cret').decode()}"}
    line = pulled(address, "--out", tmp_path / "mine", "--submodels", "nothing", code=2)
    assert proxy.url in line
    assert "cret" not in line
    for url in ("http://me:secret@127.0.0.1:1x", "http://me:secret@", "ftp://me:secret@host", "http://me:secret@host/?a"):
        with pytest.raises(PullError) as error:
            service_url(url)
        assert "secret" not in str(error.value)
    with pytest.raises(PullError) as refused:
        Client("http://me:secret@127.0.0.1:1", tries=1).document("/v1/bundles")
    assert "secret" not in str(refused.value)
