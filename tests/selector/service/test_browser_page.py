"""A browser as a device: the page, its headers, https, and what it says where something is missing. What it measures and runs
is tested with npm's onnxruntime-web, where SORTEDNET_ONNXRUNTIME_WEB names its folder."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from selector.service.files.onnxruntime_web import OnnxRuntimeWeb, OnnxRuntimeWebError
from selector.service.fleet.store import Store
from selector.service.sockets import TlsError, checked_tls
from tests.helpers.dashboard import CHROMIUM, expect, needs_a_browser, sync_api
from tests.helpers.server import Server, serving

FILES = os.environ.get("SORTEDNET_ONNXRUNTIME_WEB")
OPENSSL = shutil.which("openssl")
NAME = "device.test"  # no name of loopback: to a browser plain http from there is no secure context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder, or one that looks like it."""
    if FILES:
        return Path(FILES)
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm", "ort.min.js", "secret.mjs"):
        (folder / name).write_bytes(b"export const x = 1; " * 50)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"


@pytest.fixture(scope="module")
def server(bundle_path: Path, files: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--allowed-host", NAME, "--onnxruntime-web", str(files), "--store", store)
    with serving(tmp_path_factory.mktemp("browser") / "log", bundle_path, options=options) as found:
        yield found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([str(OPENSSL), *command.split(), *names], check=True, capture_output=True)
    return cert, key


def got(address: str, context: ssl.SSLContext | None = None) -> tuple[dict[str, str], bytes]:
    with urllib.request.urlopen(address, context=context, timeout=60) as answer:
        return dict(answer.headers), answer.read()


def test_only_its_page_and_what_its_workers_load_may_compile_and_film(server: Server) -> None:
    page, html = got(f"{server.url}/browser")
    (folder,) = set(re.findall(r"assets/onnxruntime-web-[0-9a-f]+/", html.decode()))
    script, _ = got(f"{server.url}/{folder}ort.wasm.min.mjs")
    for headers in (page, script):
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "script-src 'self' 'wasm-unsafe-eval'" in headers["Content-Security-Policy"]
    assert page["Permissions-Policy"].startswith("camera=(self)")
    dashboard, _ = got(f"{server.url}/")
    assert "Cross-Origin-Embedder-Policy" not in dashboard
    assert "wasm" not in dashboard["Content-Security-Policy"]
    for headers in (dashboard, script):
        assert headers["Permissions-Policy"].startswith("camera=()")


def test_of_the_folder_only_that_packages_modules_are_served(server: Server, files: Path) -> None:
    _, html = got(f"{server.url}/browser")
    folder = re.findall(r"assets/onnxruntime-web-[0-9a-f]+/", html.decode())[0]
    request = urllib.request.Request(f"{server.url}/{folder}ort-wasm-simd-threaded.wasm", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert (answer.headers["Content-Type"], answer.headers["Content-Encoding"]) == ("application/wasm", "gzip")
        assert answer.read()[:2] == b"\x1f\x8b"
    for name in ("secret.mjs", "..%2Fsecret.mjs", "package.json"):
        assert server.get(f"/{folder}{name}").status == 404
    assert server.get(f"/{folder[:-2]}x/ort.wasm.min.mjs").status == 404


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxRuntimeWebError, match="npm install onnxruntime-web"):
        OnnxRuntimeWeb(tmp_path)


@pytest.mark.skipif(OPENSSL is None, reason="no openssl found")
def test_it_speaks_https_whoever_shakes_no_hand(
    bundle_path: Path, certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cert, key = certificate
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with serving(tmp_path_factory.mktemp("https") / "log", bundle_path, options=options, trusted=cert) as found:
        address = urlsplit(found.url)
        with ExitStack() as closing:
            place = (address.hostname or "", address.port or 0)
            silent = [closing.enter_context(socket.create_connection(place)) for _ in range(30)]
            silent[0].sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")  # no TLS: hung up on
            with suppress(ConnectionResetError):
                assert silent[0].recv(1 << 10)[:5] != b"HTTP/"
            for _ in range(3):
                query = {"budget": {"latency_ms": 2.0}, "bundle": "digits"}
                assert found.post("/v1/select", query).document["feasible"] is True
            manifest = found.get("/v1/bundles/digits/files/manifest.json").document
            path = manifest["weights"]
            _, content = got(f"{found.url}/v1/bundles/digits/files/{path}", ssl.create_default_context(cafile=cert))
            assert len(content) == manifest["files"][path]["bytes"]  # many records, to the end
            assert f"Dashboard: {found.url}/" in found.log.with_suffix(".said").read_text()


@pytest.mark.skipif(OPENSSL is None, reason="no openssl found")
def test_a_certificate_that_is_none_is_refused_by_name(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    assert checked_tls(None, None) is None
    assert checked_tls(cert, key) == (cert, key)
    for given, said in (
        ((cert, None), "together"),
        ((None, key), "together"),
        ((tmp_path / "no.pem", key), "tls_cert"),
        ((key, cert), "PEM"),
    ):
        with pytest.raises(TlsError, match=said):
            checked_tls(*given)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", f"--host-resolver-rules=MAP {NAME} 127.0.0.1"]
        options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


def opened(browser: Any, address: str, script: str = "", width: int = 1280) -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900})
    if script:
        context.add_init_script(script)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    expect(page.locator("#abilities dd")).to_have_count(4)
    return page


class TestInChromium:
    pytestmark = needs_a_browser

    @pytest.mark.parametrize(
        ("script", "place", "said", "runs"),
        [
            ("delete globalThis.SharedArrayBuffer", 1, "no SharedArrayBuffer", True),
            ("WebAssembly.validate = () => false", 0, "without SIMD", False),
            ("delete globalThis.WebAssembly", 0, "none: this browser", False),
            ("delete Navigator.prototype.mediaDevices", 3, "pick a picture", True),
        ],
    )
    def test_what_is_missing_is_said(
        self, browser: Any, server: Server, script: str, place: int, said: str, runs: bool
    ) -> None:
        page = opened(browser, f"{server.url}/browser", script)
        expect(page.locator("#abilities dd").nth(place)).to_contain_text(said)
        expect(page.locator("#measure")).to_be_enabled(enabled=runs)
        page.context.close()

    def test_over_plain_http_there_is_one_thread_and_no_camera_and_it_says_why(self, browser: Any, server: Server) -> None:
        page = opened(browser, server.url.replace("127.0.0.1", NAME) + "/browser", width=390)
        for place, said in ((1, "one: this page came over plain http"), (3, "--tls-cert")):
            expect(page.locator("#abilities dd").nth(place)).to_contain_text(said)
        expect(page.locator("#measure")).to_be_enabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.context.close()

    @pytest.mark.skipif(not FILES, reason="needs npm's onnxruntime-web: SORTEDNET_ONNXRUNTIME_WEB names its folder")
    @pytest.mark.parametrize("secure", [True, False])
    def test_it_measures_runs_and_sends(self, browser: Any, server: Server, store: str, secure: bool) -> None:
        with Store(store) as kept:
            _, token = kept.tokens.create("browser")
        url = server.url if secure else server.url.replace("127.0.0.1", NAME)
        page = opened(browser, f"{url}/browser")
        page.fill("#count", "2")
        page.click("#measure")
        expect(page.locator("#state")).to_contain_text(re.compile("^measured 2 sizes, "))
        expect(page.locator("#table tbody tr")).to_have_count(2)
        page.click("#again")  # this bundle's inputs are arrays
        expect(page.locator("#labels li")).to_have_count(3)
        expect(page.locator("#camera")).to_be_hidden()
        device = f"browser-{'secure' if secure else 'plain'}"
        page.fill("#name", device)
        page.fill("#token", token)
        page.click("#send")
        expect(page.locator("#sent")).to_contain_text(f"kept as version 1 of {device}")
        found = server.post("/v1/select", {"bundle": "digits", "device": device, "budget": {}})
        assert (found.status, found.document["device"]) == (200, device)
        page.context.close()
