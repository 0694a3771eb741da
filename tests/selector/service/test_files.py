"""Artefacts over HTTP as a client or a cache meets them: a real server, and http.client or a bare socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import socket
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from device_profiles import read_profile
from exporter.bundle import Bundle
from exporter.subset import subset
from selector import Budget, selector_for
from selector.service import create_app
from selector.service.files.subsets import SubsetStore
from tests.conftest import DEVICE
from tests.helpers.server import ANSWERS_WITHIN_S, Server, serving

CANARY = b"what lies outside of the bundle"
FOREVER = "public, max-age=31536000, immutable"


class Got(NamedTuple):
    status: int
    body: bytes
    headers: http.client.HTTPMessage

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def served(untrained_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with links to the outside in it."""
    root = tmp_path_factory.mktemp("served")
    (root / "canary.json").write_bytes(CANARY)
    path = Path(shutil.copytree(untrained_path, root / "digits"))
    (path / "link.json").symlink_to(root / "canary.json")
    (path / "profiles" / "link.json").symlink_to(root / "canary.json")
    (path / "models" / "up").symlink_to(root)
    (path / "unlisted.json").write_bytes(CANARY)
    return path


@pytest.fixture(scope="module")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service") / "log", served) as found:
        yield found


def ask(server: Server, path: str, method: str = "GET", body: Any = None, **headers: str) -> Got:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=ANSWERS_WITHIN_S)
    data = None if body is None else json.dumps(body)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, {**sent, **({"Content-Type": "application/json"} if data else {})})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return Got(response.status, content, response.headers)


FILES = "/v1/bundles/digits/files/"
WEIGHTS = f"{FILES}models/weights.bin"


@pytest.fixture
def weights(served: Path) -> bytes:
    return (served / "models" / "weights.bin").read_bytes()


def test_every_file_of_the_manifest_is_served_as_it_is(server: Server, served: Path) -> None:
    manifest = ask(server, f"{FILES}manifest.json")
    assert manifest.body == (served / "manifest.json").read_bytes()
    for name, entry in manifest.document["files"].items():
        got = ask(server, FILES + name)
        assert (got.status, hashlib.sha256(got.body).hexdigest()) == (200, entry["sha256"])
        assert got.headers["ETag"] == f'"{entry["sha256"]}"'
        assert got.headers["Cache-Control"] == "no-cache"
    profile = ask(server, f"{FILES}profiles/{DEVICE}.json")
    assert profile.body == (served / "profiles" / f"{DEVICE}.json").read_bytes()


def test_what_is_asked_for_by_its_hash_may_be_kept_for_ever(server: Server, weights: bytes) -> None:
    digest = hashlib.sha256(weights).hexdigest()
    for path in (f"{WEIGHTS}?sha256={digest}", f"/v1/bundles/digits/blobs/{digest}"):
        got = ask(server, path)
        assert (got.status, got.body, got.headers["Cache-Control"]) == (200, weights, FOREVER)
    for path in (f"{WEIGHTS}?sha256={'0' * 64}", f"/v1/bundles/digits/blobs/{'0' * 64}"):
        assert ask(server, path).status == 404


def test_head_says_what_get_would(server: Server, weights: bytes) -> None:
    got, head = ask(server, WEIGHTS), ask(server, WEIGHTS, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(weights))
    assert (head.headers["ETag"], head.headers["Accept-Ranges"]) == (got.headers["ETag"], "bytes")


def test_what_a_client_has_is_not_sent_again(server: Server) -> None:
    etag = ask(server, WEIGHTS, "HEAD").headers["ETag"]
    for condition in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        got = ask(server, WEIGHTS, If_None_Match=condition)
        assert (got.status, got.body, got.headers["ETag"]) == (304, b"", etag)
    assert ask(server, WEIGHTS, If_None_Match='"other"').status == 200
    assert ask(server, WEIGHTS, If_Match='"other"').status == 412
    assert ask(server, WEIGHTS, If_Match=etag).status == 200


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=100-", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=8-99999999", 8, None),
    ],
)
def test_a_range_is_a_part_of_the_file(server: Server, weights: bytes, asked: str, begin: int, end: int | None) -> None:
    got = ask(server, WEIGHTS, Range=asked)
    part = weights[begin:end]
    assert (got.status, got.body) == (206, part)
    first = weights.index(part) if begin < 0 else begin
    assert got.headers["Content-Range"] == f"bytes {first}-{first + len(part) - 1}/{len(weights)}"
    assert got.headers["ETag"] == ask(server, WEIGHTS, "HEAD").headers["ETag"]


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_length(server: Server, weights: bytes, asked: str) -> None:
    got = ask(server, WEIGHTS, Range=asked)
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{len(weights)}")
    assert got.headers.get_content_type() == "application/problem+json"


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "lines=0-1", "bytes=9-1", "bytes=x-", "bytes=-", f"bytes={'9' * 5000}-"])
def test_several_ranges_and_what_is_none_are_answered_with_the_whole(server: Server, weights: bytes, asked: str) -> None:
    got = ask(server, WEIGHTS, Range=asked)
    assert (got.status, got.body) == (200, weights)


def test_a_range_of_another_version_is_answered_with_the_whole(server: Server, weights: bytes) -> None:
    etag = ask(server, WEIGHTS, "HEAD").headers["ETag"]
    assert ask(server, WEIGHTS, Range="bytes=5-9", If_Range=etag).body == weights[5:10]
    for other in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        got = ask(server, WEIGHTS, Range="bytes=5-9", If_Range=other)
        assert (got.status, got.body) == (200, weights)


def test_an_empty_file_has_no_range(server: Server) -> None:
    path = made(server, submodels=["w0.50-d1-int8"])["files"] + "models/weights.bin"
    assert (ask(server, path).status, ask(server, path).body) == (200, b"")
    assert ask(server, path, Range="bytes=0-").status == 416


ELSEWHERE = r"""
link.json profiles/link.json models/up/canary.json unlisted.json ../canary.json ..%2fcanary.json %2e%2e/canary.json
%252e%252e/canary.json models/../manifest.json ./manifest.json /manifest.json ..\canary.json ..%5ccanary.json
manifest.json%00 manifest.json%00.bin models models/ profiles/ %c0%ae%c0%ae/canary.json %ef%bc%8e%ef%bc%8e/canary.json
MANIFEST.JSON manifest.json/ profiles/../canary.json profiles/..json models/weights.bin/ models//weights.bin CANARY
"""


@pytest.mark.parametrize("path", ["", *ELSEWHERE.split()])
def test_nothing_else_can_be_reached(server: Server, served: Path, path: str) -> None:
    """Over a bare socket: clients would tidy up such paths."""
    path = path.replace("CANARY", urllib.parse.quote(str(served.parent / "canary.json"), safe=""))
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN_S) as client:
        client.sendall(f"GET {FILES}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"404", b"400", b"308")
    assert CANARY not in answer


def test_a_file_that_was_replaced_is_not_served_under_the_old_hash(untrained_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(untrained_path, tmp_path / "digits"))
    graph = path / "models" / "w0.50-d1.onnx"
    with serving(tmp_path / "log", path) as server:
        assert ask(server, f"{FILES}models/{graph.name}").status == 200
        content = bytearray(graph.read_bytes())
        content[100] ^= 1
        graph.unlink()
        graph.write_bytes(content)
        assert ask(server, f"{FILES}models/{graph.name}").status == 503
        shutil.rmtree(path)
        assert ask(server, f"{FILES}manifest.json").status == 404


def made(server: Server, **request: Any) -> Any:
    got = ask(server, "/v1/bundles/digits/subsets", "POST", request)
    assert got.status == 200, got.body
    return got.document


def test_a_subset_is_the_bundle_that_the_exporter_cuts(server: Server, served: Path, tmp_path: Path) -> None:
    names = ["w0.75-d2", "w0.50-d1-int8"]
    answer = made(server, submodels=names)
    part = subset(Bundle(served), names, tmp_path / "part")
    assert json.dumps(answer["manifest"], indent=1) + "\n" == (part.path / "manifest.json").read_text()
    assert (answer["submodels"], answer["selection"], answer["profile"]) == (list(part.submodels), None, None)
    for name, entry in part.manifest.files.items():
        got = ask(server, f"{answer['files']}{name}?sha256={entry.sha256}")
        assert (got.body, got.headers["Cache-Control"]) == ((part.path / name).read_bytes(), FOREVER)
    assert ask(server, f"{answer['files']}manifest.json").document == answer["manifest"]
    assert ask(server, f"{answer['files']}models/w1.00-d2.onnx").status == 404


def test_a_subset_for_a_budget_is_what_select_chooses(server: Server, served: Path) -> None:
    bundle = Bundle(served)
    selector = selector_for(bundle, DEVICE)
    for budget in ({}, {"latency_ms": 1e6}, {"objective": "latency"}, {"latency_ms": 1e-6}):
        answer = made(server, device=DEVICE, budget=budget)
        chosen = selector.select(Budget(**budget))
        assert answer["selection"] == json.loads(json.dumps(chosen.document()))
        assert answer["submodels"] == [chosen.submodel]
        assert list(answer["profile"]["submodels"]) == [chosen.submodel]


def test_with_a_device_its_profile_comes_cut(server: Server, served: Path, tmp_path: Path) -> None:
    answer = made(server, submodels=["w0.50-d1", "w0.50-d2"], device=DEVICE)
    part = subset(Bundle(served), answer["submodels"], tmp_path / "part")
    expected = read_profile(part.path / "profiles" / f"{DEVICE}.json")
    assert answer["profile"] == expected.model_dump(mode="json")


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"submodels": ["w9"]}, 422, "'w9'"),
        ({"submodels": []}, 422, "submodels"),
        ({"submodels": ["w0.50-d1"], "budget": {}}, 422, "submodels and budget"),
        ({}, 422, "neither"),
        ({"budget": {"latency_ms": -1}}, 422, "budget.latency_ms"),
        ({"budget": {"plan": {"per_hour": 60, "for_hours": 2}}}, 422, "plan"),
        ({"budget": {}, "device": "phone"}, 404, "'phone'"),
        ({"submodels": ["w0.50-d1"], "device": "phone"}, 404, "'phone'"),
        ({"submodels": ["w0.50-d1"], "device": "../x"}, 422, "device"),
        ({"submodels": ["x" * 120] * 20_000}, 413, ""),
    ],
)
def test_a_wrong_request_is_a_problem_naming_the_field(server: Server, request_: Any, status: int, named: str) -> None:
    got = ask(server, "/v1/bundles/digits/subsets", "POST", request_)
    assert (got.status, got.headers.get_content_type()) == (status, "application/problem+json")
    assert named in got.body.decode()


def test_nothing_is_cut_for_a_device_that_nobody_knows(untrained_path: Path, tmp_path: Path) -> None:
    app = create_app([Bundle(untrained_path)])
    app.extensions["sortednet-subsets"] = SubsetStore(tmp_path / "subsets")
    query = {"submodels": ["w0.50-d1"], "device": "phone"}
    assert app.test_client().post("/v1/bundles/digits/subsets", json=query).status_code == 404
    assert not (tmp_path / "subsets").exists()


def test_many_at_once_get_the_same_subset(server: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda _: ask(server, "/v1/bundles/digits/subsets", "POST", {"submodels": ["w1.00-d1"]}), range(24))
        )
    assert {got.status for got in answers} == {200}
    assert len({got.body for got in answers}) == 1


def test_two_services_on_one_folder_make_one_subset_and_another_service_makes_it_again(
    server: Server, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas: one may be asked for what another has cut."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SORTEDNET_SUBSETS", str(tmp_path / "one" / "subsets"))
    query = {"submodels": ["w1.00-d1", "w0.75-d2-int8"]}
    with serving(tmp_path / "one" / "log", served) as a, serving(tmp_path / "other" / "log", served) as b:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda s: ask(s, "/v1/bundles/digits/subsets", "POST", query), [a, b] * 8))
        assert {(got.status, got.body) for got in answers} == {(200, answers[0].body)}
        assert len(list((tmp_path / "one" / "subsets").iterdir())) == 1
        document = answers[0].document
        for name, entry in document["manifest"]["files"].items():
            got = ask(server, f"{document['files']}{name}")  # which has a folder of its own
            assert (got.status, hashlib.sha256(got.body).hexdigest()) == (200, entry["sha256"])
