"""What holds for every path of the REST service: its document, problems, ids, logs, headers, limits, and how it stops."""

from __future__ import annotations

import http.client
import json
import logging
import logging.config
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openapi_spec_validator import validate
from typer.testing import CliRunner

import sortednet
from selector.service import create_app
from selector.service.web import openapi
from selector.service.web.access import log_settings
from tests.helpers.server import ANSWERS_WITHIN_S, ENDS_WITHIN_S, Server, problem, serving

CONTRACT = {
    "/healthz": ["get"],
    "/metrics": ["get"],
    "/openapi.json": ["get"],
    "/readyz": ["get"],
    "/v1/bundles": ["get"],
    "/v1/bundles/{name}": ["get"],
    "/v1/bundles/{name}/files/{path}": ["get"],
    "/v1/bundles/{name}/profiles/{device}": ["get", "put"],
    "/v1/chat/completions": ["post"],
    "/v1/completions": ["post"],
    "/v1/generate": ["post"],
    "/v1/predict": ["post"],
    "/v1/select": ["post"],
}
"""What clients rely on: a path or method that goes missing breaks them."""

SURFACE = CONTRACT | {
    "/v1/bundles/{name}/blobs/{sha256}": ["get"],
    "/v1/bundles/{name}/models": ["get"],
    "/v1/bundles/{name}/models/{model}": ["get"],
    "/v1/bundles/{name}/profiles": ["get"],
    "/v1/bundles/{name}/rings": ["get"],
    "/v1/bundles/{name}/rings/{device}": ["put"],
    "/v1/bundles/{name}/runtime": ["get"],
    "/v1/bundles/{name}/subsets": ["post"],
    "/v1/bundles/{name}/subsets/{key}/files/{path}": ["get"],
    "/v1/models": ["get"],
    "/v1/models/{name}": ["get"],
    "/v2": ["get"],
    "/v2/health/live": ["get"],
    "/v2/health/ready": ["get"],
    "/v2/models/{name}": ["get"],
    "/v2/models/{name}/infer": ["post"],
    "/v2/models/{name}/ready": ["get"],
    "/v2/models/{name}/versions/{version}": ["get"],
    "/v2/models/{name}/versions/{version}/infer": ["post"],
    "/v2/models/{name}/versions/{version}/ready": ["get"],
}
"""What there is: a path that is new here is a promise, so that it is added with intent."""

CHUNKED = b"Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service") / "log", bundle_path) as found:
        yield found


def raw(server: Server, request: bytes) -> tuple[int, http.client.HTTPResponse, Any]:
    """Sends bytes as they are; the status, the answer and its document."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=ANSWERS_WITHIN_S) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response, json.loads(response.read())


def sent(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
    """`headers`: with `_` for `-`."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=ANSWERS_WITHIN_S)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if body is None else "POST", path, body, named)
    with connection.getresponse() as response:
        content = response.read()
    connection.close()
    is_json = "json" in response.headers.get_content_type()
    return response.status, json.loads(content) if is_json else content, response.headers


def test_a_body_that_ends_early_is_refused(server: Server) -> None:
    """It would be a whole document."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=ANSWERS_WITHIN_S) as connection:
        head = b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head + b"{}")
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, json.loads(response.read())["detail"]) == (400, "the body ends after 2 of 9 bytes")


def logged(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def test_the_document_is_valid_and_has_every_path(server: Server) -> None:
    document = server.get("/openapi.json").document
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert openapi.undescribed(create_app([])) == []
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == SURFACE


def test_what_a_budget_may_be_is_in_the_document_as_in_the_models(server: Server) -> None:
    schemas = server.get("/openapi.json").document["components"]["schemas"]
    assert schemas["QueryBudget"]["additionalProperties"] is False
    assert schemas["QueryBudget"]["properties"]["percentile"]["maximum"] == 99
    assert set(schemas["Selection"]["required"]) >= {"submodel", "feasible", "reason", "stages", "threshold"}
    asked = schemas["SelectRequest"]["properties"]
    assert set(asked) == {"bundle", "device", "profile", "measured", "budget", "battery", "cascades"}
    assert (asked["cascades"]["type"], asked["cascades"]["default"]) == (
        "boolean",
        False,
    )  # else a name may surprise
    assert set(schemas["BundleDocument"]["properties"]) >= {"submodels", "cascades"}


def test_the_api_pages_load_nothing_from_elsewhere(server: Server) -> None:
    status, page, headers = sent(server, "/docs")
    assert (status, headers.get_content_type()) == (200, "text/html")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert links
    for link in links:
        assert "//" not in link
        assert sent(server, f"/{link}")[0] == 200
    assert sent(server, "/docs/..%2f__init__.py")[0] == 404


def test_every_answer_has_an_id_and_keeps_browsers_safe(server: Server) -> None:
    for path in ("/healthz", "/docs", "/nowhere"):
        headers = sent(server, path)[2]
        assert headers["X-Request-Id"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "://" not in headers["Content-Security-Policy"]


def test_a_sane_request_id_is_kept_and_another_replaced(server: Server) -> None:
    assert sent(server, "/healthz", X_Request_Id="a-1_b.c:2")[2]["X-Request-Id"] == "a-1_b.c:2"
    for bad in ("two words", "x" * 129, '"quoted"', ""):
        assert sent(server, "/healthz", X_Request_Id=bad)[2]["X-Request-Id"] not in (bad, "")
    status, document, _ = sent(server, "/nowhere", X_Request_Id="seen")
    assert (status, document["request_id"]) == (404, "seen")


def test_a_request_is_one_line_of_json_in_the_log_without_body_or_token(server: Server) -> None:
    headers = {"X_Request_Id": "find-me", "Content_Type": "application/json", "Authorization": "Bearer hushhush"}
    sent(server, "/v1/select?key=hushhush", b'{"device": "hushhush"}', **headers)
    sent(server, "/v1/bundles/hushhush", X_Request_Id="and-me")
    lines = {line.get("request_id"): line for line in logged(server)}
    line = lines["find-me"]
    assert (line["method"], line["path"], line["status"], line["level"]) == ("POST", "/v1/select", 404, "info")
    assert line["bytes"] > 0
    assert line["duration_ms"] > 0
    assert lines["and-me"]["path"] == "/v1/bundles/<name>"
    assert "hushhush" not in server.log.read_text()


def test_an_unexpected_error_is_found_in_the_log_by_its_id(capfd: pytest.CaptureFixture[str]) -> None:
    app = create_app([])

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError("a defect")

    root = logging.getLogger()
    before = root.level, list(root.handlers)
    logging.config.dictConfig(log_settings())
    try:
        answer = app.test_client().get("/broken", headers={"X-Request-Id": "find-me"})
    finally:
        root.level, root.handlers = before
    assert (answer.status_code, answer.json["request_id"]) == (500, "find-me")
    (line,) = (one for one in map(json.loads, capfd.readouterr().err.splitlines()) if one["level"] == "error")
    assert (line["request_id"], line["method"], line["path"]) == ("find-me", "GET", "/broken")
    assert "a defect" in line["exception"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {},
        {"Content_Type": "application/json", "Content_Encoding": "gzip"},
    ],
)
def test_a_body_of_another_kind_is_refused(server: Server, headers: dict[str, str]) -> None:
    status, document, _ = sent(server, "/v1/select", b"{}", **headers)
    assert (status, document["status"]) == (415, 415)
    assert "application/json" in document["detail"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 200 + b"\r\n", 431),
        (b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (b"no request\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nBad Header: 1\r\n\r\n", 400),
        (b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v1/select HTTP/1.1\r\n" + CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", 400),  # no length
        (b"POST /v1/select HTTP/1.1\r\n" + CHUNKED + b"2\r\n{}, and more\r\n0\r\n\r\n", 400),  # longer than it says
        (b"BREW /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS /v1/select HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /v1//bundles HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /v1/bundles/%00%ff%2f.. HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_what_the_server_itself_refuses_is_a_problem_too(server: Server, request_bytes: bytes, status: int) -> None:
    found, response, document = raw(server, request_bytes)
    assert (found, document["status"]) == (status, status)
    assert response.headers.get_content_type() == "application/problem+json"
    assert document["request_id"] == response.headers["X-Request-Id"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert server.get("/healthz").status == 200


def test_a_problem_does_not_repeat_a_long_value_or_a_thousand_fields(server: Server) -> None:
    (error,) = problem(server.post("/v1/select", {"budget": {"objective": "x" * 5000}}), 422)["errors"]
    assert len(error["value"]) < 300
    many = {f"field{i}": 1 for i in range(1000)}
    assert 1 < len(problem(server.post("/v1/select", many), 422)["errors"]) < 100


def test_no_other_page_may_read_answers_unless_its_origin_is_named(server: Server, bundle_path: Path, tmp_path: Path) -> None:
    page = "https://fleet.example"
    assert "Access-Control-Allow-Origin" not in sent(server, "/v1/bundles", Origin=page)[2]
    with serving(tmp_path / "log", bundle_path, options=["--cors-origin", page]) as open_server:
        assert sent(open_server, "/v1/bundles", Origin=page)[2]["Access-Control-Allow-Origin"] == page
        exposed = sent(open_server, "/v1/bundles", Origin=page)[2]["Access-Control-Expose-Headers"].split(", ")
        assert {"ETag", "Sortednet-Selection", "Profile-Version", "Retry-After"} <= set(exposed)
        for other in ("https://evil.example", f"{page}.evil.example", "https://fleetXexample"):
            assert "Access-Control-Allow-Origin" not in sent(open_server, "/v1/bundles", Origin=other)[2]
        preflight = urllib.request.Request(
            f"{open_server.url}/v1/select",
            method="OPTIONS",
            headers={"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Content-Type"},
        )
        with urllib.request.urlopen(preflight, timeout=ANSWERS_WITHIN_S) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == page


@pytest.mark.parametrize("origin", ["*", "fleet.example", "https://fleet.example/path", "https://.*"])
def test_an_origin_that_is_none_is_refused(bundle_path: Path, origin: str) -> None:
    result = CliRunner().invoke(sortednet.app, ["serve", str(bundle_path), "--cors-origin", origin])
    assert result.exit_code == 2
    assert origin in result.stderr


def test_a_request_in_flight_is_answered_when_the_server_stops(bundle_path: Path, tmp_path: Path) -> None:
    body = b'{"budget": {}}'
    head = b"POST /v1/select HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(
        body
    )
    with serving(tmp_path / "log", bundle_path, options=["--workers", "2", "--threads", "2"]) as server:
        place = urlsplit(server.url)
        with socket.create_connection((place.hostname, place.port), timeout=ANSWERS_WITHIN_S) as connection:
            connection.sendall(head + b"Expect: 100-continue\r\n\r\n" + body[:4])
            go_on, told = b"HTTP/1.1 100 Continue\r\n\r\n", b""
            while len(told) < len(go_on):
                told += connection.recv(len(go_on) - len(told))
            assert told == go_on  # it is being read
            server.stop()
            connection.sendall(body[4:])
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, json.loads(response.read())["feasible"]) == (200, True)
        assert server.process.wait(ENDS_WITHIN_S) == 0
    assert all(line["level"] in ("info", "warning") for line in logged(server))
