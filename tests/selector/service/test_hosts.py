"""Under which names the service answers, and where it listens."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

import sortednet
from exporter.bundle import Bundle
from selector.service import create_app
from selector.service.web.hosts import Hosts
from tests.helpers.server import ANSWERS_WITHIN_S, Server, serving


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--allowed-host", "models.example", "--allowed-host", "EDGE.example."]
    with serving(tmp_path_factory.mktemp("hosts") / "log", bundle_path, options=options) as found:
        yield found


def asked(server: Server, path: str, host: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=ANSWERS_WITHIN_S)
    connection.request(method, path, headers={"Host": host})
    with connection.getresponse() as response:
        found = response.status, json.loads(response.read())
    connection.close()
    return found


@pytest.mark.parametrize(
    "host", ["models.example", "Models.Example.:81", "edge.example", "localhost:8080", "127.0.0.1", "[::1]:9"]
)
def test_a_known_host_is_answered(server: Server, host: str) -> None:
    assert asked(server, "/v1/bundles", host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "models.example.evil.example", "xmodels.example", "192.0.2.7", "localhost.evil"]
)
def test_another_host_is_refused_and_the_option_named(server: Server, host: str) -> None:
    """Its name may have been made to point here, by whoever owns the page that asks."""
    for method, path in (("GET", "/v1/bundles"), ("GET", "/"), ("POST", "/v1/predict"), ("POST", "/v1/select"), ("GET", "/x")):
        status, document = asked(server, path, host, method)
        assert (status, document["status"]) == (421, 421)
        assert "--allowed-host" in str(document["detail"])
        assert host in str(document["detail"])
    assert asked(server, "/healthz", host)[0] == asked(server, "/readyz", host)[0] == 200


def test_an_address_is_known_where_the_service_listens_on_it() -> None:
    assert Hosts(["192.0.2.7"]).know("192.0.2.7:8080", "192.0.2.7")
    assert not Hosts(["127.0.0.1"]).know("192.0.2.7", "127.0.0.1")
    everywhere = Hosts(["0.0.0.0"])
    assert everywhere.know("192.0.2.7", "10.0.0.1")  # as a container is asked, through a port of its host
    assert not everywhere.know("evil.example", "10.0.0.1")
    assert Hosts(["127.0.0.1", "*"]).know("evil.example", "127.0.0.1")
    assert not Hosts(["127.0.0.1"]).know("[::1", "127.0.0.1")


def test_an_application_of_ones_own_knows_every_host_unless_it_is_told_some(bundle_path: Path) -> None:
    for hosts, status in ((None, 200), ([], 421), (["a.example"], 200)):
        app = create_app([Bundle(bundle_path)], allowed_hosts=hosts)
        assert app.test_client().get("/v1/bundles", headers={"Host": "a.example"}).status_code == status


def test_a_metric_is_read_under_any_name(bundle_path: Path) -> None:
    app = create_app([Bundle(bundle_path)], allowed_hosts=[])
    assert app.test_client().get("/metrics", headers={"Host": "replica-1:8080"}).status_code == 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--host", ""], "host = ''"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--host", "192.0.2.7"], "192.0.2.7"),
        (["--allowed-host", "https://models.example"], "allowed_host = 'https://models.example'"),
    ],
)
def test_where_it_cannot_listen_one_line_says_why(bundle_path: Path, options: list[str], named: str) -> None:
    result = CliRunner().invoke(sortednet.app, ["serve", str(bundle_path), "--port", "0", *options])
    assert result.exit_code == 2
    assert named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_said_at_once(bundle_path: Path, server: Server) -> None:
    port = str(urlsplit(server.url).port)
    result = CliRunner().invoke(sortednet.app, ["serve", str(bundle_path), "--port", port])
    assert result.exit_code == 2
    assert f"port = {port}: Address already in use" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_address_of_ipv6_may_stand_in_brackets(bundle_path: Path, tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with serving(tmp_path / "log", bundle_path, host="[::1]") as server:
        assert server.get("/v1/bundles").status == 200
        assert server.url in server.log.with_suffix(".said").read_text()


def test_one_line_says_where_the_dashboard_is_and_no_log_of_the_server_is_in_the_way(server: Server) -> None:
    (line,) = server.log.with_suffix(".said").read_text().splitlines()
    assert f"{server.url}/ " in line
    assert f"{server.url}/docs" in line
    assert "unicorn" not in server.log.read_text()
    assert "Booting" not in server.log.read_text()


@pytest.mark.parametrize(
    ("made", "named"), [("missing", "a folder that is there"), ("file", "a folder that"), ("full", "notes.txt")]
)
def test_a_folder_for_metrics_that_is_none_is_told_at_the_start(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, named: str
) -> None:
    folder = tmp_path / "metrics"
    if made == "file":
        folder.touch()
    elif made == "full":
        folder.mkdir()
        (folder / "notes.txt").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    result = CliRunner().invoke(sortednet.app, ["serve", str(bundle_path), "--port", "0"])
    assert result.exit_code == 2
    assert named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_values_of_processes_that_have_ended_make_room_in_the_folder_for_metrics(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "metrics").mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / f"counter_{ended.pid}.db").write_bytes(b"torn")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    with serving(tmp_path / "log", bundle_path) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=ANSWERS_WITHIN_S)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert (response.status, b"sortednet_http_requests_total" in response.read()) == (200, True)
        connection.close()
