"""`sortednet pull` against a real service, over a proxy that breaks and falsifies what goes through it."""

from __future__ import annotations

import gzip
import http.client
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import sortednet
from device_profiles import read_profile, write_profile
from exporter import export
from exporter.bundle import Bundle
from exporter.bundle.verify import self_test
from exporter.subset import subset
from selector.choose.cascades import Cascade, read_cascades, write_cascades
from selector.fetch import transfer
from tests.conftest import DEVICE
from tests.selector.service.test_service import ANSWERS_WITHIN_S, Server, serving
from trainer import NestedModel

SMALL = "w0.50-d1"


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]


Fault = Callable[[Request, int, bytes], "tuple[int, bytes, int | None] | None"]
"""Request, status, body → another status and body, and after how many bytes the connection breaks; None: as it is."""


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to the service and remembers them; `fault` makes of the answers what a bad network would."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[Request] = []
        self.fault: Fault = lambda request, status, body: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no matter here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Connection")}
        request = Request(self.command, self.path, headers)
        self.server.seen.append(request)
        connection = http.client.HTTPConnection(self.server.upstream, timeout=ANSWERS_WITHIN_S)
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        changed = self.server.fault(request, response.status, content)
        status, sent, breaks_after = changed or (response.status, content, None)
        self.send_response(status)
        for name, value in response.headers.items():
            if name not in ("Connection", "Content-Length", "Date", "Server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent[:breaks_after])
        self.close_connection = True

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        """Silence."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.001)


@pytest.fixture(scope="module")
def server(untrained_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service") / "log", untrained_path) as found:
        yield found


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.url) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def pulled(*arguments: str | Path, code: int = 0) -> Any:
    """The JSON document of a pull, or the one line that an expected error prints."""
    result = CliRunner().invoke(sortednet.app, ["pull", *map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    if code:
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line
    return json.loads(result.stdout)


class Stall:
    """A fault: the answer with the weights is held up until it is let go on."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, request: Request, status: int, body: bytes) -> None:
        if "weights.bin" in request.path:
            self.reached.set()
            self.goes_on.wait(ANSWERS_WITHIN_S)


@contextmanager
def pulling(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A pull in a process of its own."""
    command = [sys.executable, "-m", "sortednet", "pull", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_asked(proxy: Proxy) -> list[str]:
    paths = [urllib.parse.urlsplit(request.path).path for request in proxy.seen]
    return [path.partition("/files/")[2] for path in paths if "/files/" in path]


def test_one_sub_model_is_the_subset_and_runs(server: Server, untrained_path: Path, tmp_path: Path) -> None:
    document = pulled(server.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    part = subset(Bundle(untrained_path), [SMALL], tmp_path / "part")
    shutil.rmtree(part.path / "profiles")
    assert contents(tmp_path / "mine") == contents(part.path)
    assert (document["submodels"], document["changed"], document["fetched_files"]) == ([SMALL], True, 3)
    assert self_test(Bundle(tmp_path / "mine")).submodels == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "part"]  # nothing is left beside it


def test_without_a_choice_the_whole_bundle_comes(server: Server, untrained_path: Path, tmp_path: Path) -> None:
    pulled(f"{server.url}/v1/bundles/digits", "--out", tmp_path / "mine", "--device", DEVICE)
    mine, served = contents(tmp_path / "mine"), contents(untrained_path)
    profiles = [json.loads(found.pop(f"profiles/{DEVICE}.json")) for found in (mine, served)]  # it is written anew
    assert mine == served
    assert profiles[0] == profiles[1]


def test_a_budget_fetches_what_select_chooses_and_the_profile(server: Server, untrained_path: Path, tmp_path: Path) -> None:
    budget = ("--latency-ms", "1000", "--objective", "latency")
    document = pulled(server.url, "--out", tmp_path / "mine", "--bundle", "digits", "--device", DEVICE, *budget)
    chosen = json.loads(CliRunner().invoke(sortednet.app, ["select", str(untrained_path), *budget, "--json"]).stdout)
    assert document["selection"] == chosen
    mine = Bundle(tmp_path / "mine")
    assert list(mine.submodels) == [chosen["submodel"]]
    assert mine.profile(DEVICE).submodels[chosen["submodel"]].latency_ms.p50 == chosen["latency_ms"]


def test_a_bundle_may_have_any_name(untrained_path: Path, tmp_path: Path) -> None:
    served = Path(shutil.copytree(untrained_path, tmp_path / "ein Modell; 模型?#%"))
    with serving(tmp_path / "log", served) as server:
        for arguments in ((), ("--submodels", SMALL)):
            document = pulled(server.url, "--out", tmp_path / "mine", *arguments)
            assert (document["bundle"], document["changed"]) == (served.name, True)


def test_nothing_fits_exits_with_3_and_fetches_nothing(server: Server, tmp_path: Path) -> None:
    assert "nothing fits" in pulled(server.url, "--out", tmp_path / "mine", "--latency-ms", "1e-6", code=3)
    assert list(tmp_path.iterdir()) == []


def test_a_second_pull_fetches_nothing(proxy: Proxy, tmp_path: Path) -> None:
    arguments = (proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, "--device", DEVICE)
    pulled(*arguments)
    before = {path: path.stat() for path in (tmp_path / "mine").rglob("*")}
    proxy.seen.clear()
    document = pulled(*arguments)
    assert (document["changed"], document["fetched_bytes"], files_asked(proxy)) == (False, 0, [])
    assert {path: path.stat() for path in (tmp_path / "mine").rglob("*")} == before


def test_an_update_fetches_only_what_changed(untrained: NestedModel, untrained_path: Path, tmp_path: Path) -> None:
    """One file of the bundle is another one now: a tokenizer."""
    served, log = tmp_path / "served", tmp_path / "log"
    one = untrained.submodels[:2]
    export(untrained, served, submodels=one, files={"tokenizer.json": b"{}", "words.txt": b"a b"}, show_progress=False)
    with serving(log, served) as server:
        pulled(server.url, "--out", tmp_path / "mine")
    export(untrained, served, submodels=one, files={"tokenizer.json": b"[1]", "words.txt": b"a b"}, show_progress=False)
    with serving(log, served) as server, Proxy(server.url) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        document = pulled(proxy.url, "--out", tmp_path / "mine")
        proxy.shutdown()
        changed = [name for name in files_asked(proxy) if name != "manifest.json"]
    new = Bundle(served).manifest.files
    assert "tokenizer.json" in changed
    assert "words.txt" not in changed
    assert "models/weights.bin" not in changed
    assert document["reused_files"] + document["fetched_files"] == len(new)
    assert document["fetched_bytes"] == sum(new[name].bytes for name in changed)
    assert contents(tmp_path / "mine") == contents(served)


def test_another_choice_keeps_what_is_common_and_what_was_measured_here(proxy: Proxy, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(proxy.url, "--out", mine, "--submodels", f"{SMALL},w0.75-d1", "--device", DEVICE)
    profile = Bundle(mine).profile(DEVICE)
    own = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "here"})})
    write_profile(own, mine / "profiles" / "here.json")
    pulled(proxy.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1")
    new = Bundle(mine)
    assert set(new.submodels) == {SMALL, "w1.00-d1"}
    assert new.devices() == sorted([DEVICE, "here"])
    assert new.profile("here").submodels == {SMALL: own.submodels[SMALL]}
    pulled(proxy.url, "--out", mine, "--submodels", SMALL, "--device", DEVICE)
    assert read_profile(mine / "profiles" / "here.json").bundle == Bundle(mine).fingerprint


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
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


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


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["ftp://host", "--out", "OUT"], 2, ["'ftp://host'", "http://"]),
        (["host:8080", "--out", "OUT"], 2, ["'host:8080'"]),
        (["http://host:port", "--out", "OUT"], 2, ["'http://host:port'"]),
        (["URL", "--out", "OUT", "--bundle", "nope"], 2, ["'nope'", "digits"]),
        (["URL", "--out", "OUT", "--submodels", "w9"], 2, ["'w9'", SMALL]),
        (["URL", "--out", "OUT", "--submodels", ""], 2, ["''", SMALL]),
        (["URL", "--out", "OUT", "--device", "phone"], 2, ["phone"]),
        (["URL", "--out", "OUT", "--device", "phone", "--latency-ms", "1"], 2, ["'phone'", DEVICE]),
        (["URL", "--out", "OUT", "--latency-ms", "-1"], 2, ["latency_ms", "-1"]),
        (["URL", "--out", "OUT", "--submodels", SMALL, "--latency-ms", "1"], 2, ["submodels", "latency_ms"]),
        (["URL/healthz", "--out", "OUT"], 2, ["/healthz"]),
        (["http://127.0.0.1:9", "--out", "OUT"], 1, ["127.0.0.1:9", "refused"]),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(
    server: Server, tmp_path: Path, arguments: list[str], code: int, named: list[str]
) -> None:
    given = [a.replace("URL", server.url).replace("OUT", str(tmp_path / "mine")) for a in arguments]
    line = pulled(*given, code=code)
    assert [part for part in named if part not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_bundle_stays_one(server: Server, tmp_path: Path) -> None:
    pulled(server.url, "--out", tmp_path / "mine", "--submodels", SMALL)
    (tmp_path / "link").symlink_to("mine")
    pulled(server.url, "--out", tmp_path / "link", "--submodels", "w0.75-d1")
    assert (tmp_path / "link").is_symlink()
    assert list(Bundle(tmp_path / "mine").submodels) == ["w0.75-d1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_a_cascade_found_here_stays_while_its_sub_models_answer_as_before(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    pulled(server.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1")
    figures = {"threshold": 0.5, "escalation": 0.2, "accuracy": 0.9, "floor": 0.8, "confidence": 0.95, "examples": 100}
    cascade = Cascade(id="both", first=SMALL, then="w1.00-d1", **figures)
    write_cascades(Bundle(mine), [cascade])
    pulled(server.url, "--out", mine, "--submodels", f"{SMALL},w1.00-d1,w0.75-d2")
    assert read_cascades(Bundle(mine)) == [cascade]
    pulled(server.url, "--out", mine, "--submodels", SMALL)
    assert read_cascades(Bundle(mine)) == []


def test_a_folder_that_is_no_bundle_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert "is no bundle" in pulled(server.url, "--out", tmp_path, "--submodels", SMALL, code=2)
    assert contents(tmp_path) == {"letters.txt": b"dear"}


def test_too_small_a_disk_is_told_before_anything_is_fetched(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    line = pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL, code=1)
    assert "10 are free" in line
    assert files_asked(proxy) == []
    assert list(tmp_path.iterdir()) == []


def test_two_pulls_to_one_place_do_not_disturb_each_other(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = stall = Stall()
    with pulling(proxy.url, "--out", tmp_path / "mine", "--submodels", SMALL) as process:
        assert stall.reached.wait(60)
        assert "another pull" in pulled(proxy.url, "--out", tmp_path / "mine", "--submodels", "w1.00-d1", code=1)
        stall.goes_on.set()
        assert process.wait(ANSWERS_WITHIN_S) == 0
    assert list(Bundle(tmp_path / "mine").submodels) == [SMALL]


def test_for_people_it_says_what_to_do_next(server: Server, tmp_path: Path) -> None:
    arguments = ["pull", server.url, "--out", str(tmp_path / "mine"), "--submodels", SMALL]
    first, second = (CliRunner().invoke(sortednet.app, arguments) for _ in range(2))
    assert f"sortednet verify {tmp_path / 'mine'}" in first.stdout.replace("\n", "")
    assert "up to date" in second.stdout
