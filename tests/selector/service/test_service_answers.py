"""Answers that are compressed and answers under conditions (`If-Match`, `If-None-Match`), without a server in between."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

from exporter.bundle import Bundle
from selector.service import create_app
from selector.service.fleet import fleet
from selector.service.fleet.database import StoreUnavailable
from selector.service.fleet.fleet import REMEMBERED
from selector.service.fleet.store import Store
from tests.conftest import DEVICE, taking

GZIP = {"Accept-Encoding": "gzip, deflate"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as found:
        yield found


@pytest.fixture
def client(bundle: Bundle, store: Store) -> FlaskClient:
    return create_app([bundle], store).test_client()


@pytest.fixture
def writer(store: Store) -> dict[str, str]:
    """The headers of who may send profiles."""
    return {"Authorization": f"Bearer {store.tokens.create('fleet')[1]}", "Content-Type": "application/json"}


def document_paths(bundle: Bundle) -> list[str]:
    """Of documents that are large for any bundle."""
    root = f"/v1/bundles/{bundle.name}"
    return [root, f"{root}/profiles/{DEVICE}", "/openapi.json", "/"]


def test_large_documents_are_compressed_for_those_who_take_it(client: FlaskClient, bundle: Bundle) -> None:
    for path in document_paths(bundle):
        plain = client.get(path)
        for accepted in ({}, {"Accept-Encoding": "br"}, {"Accept-Encoding": "gzip;q=0"}):
            assert "Content-Encoding" not in client.get(path, headers=accepted).headers
        packed = client.get(path, headers=GZIP)
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.data) == plain.data
        assert packed.headers["Content-Length"] == str(len(packed.data))
        assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"
        assert client.head(path, headers=GZIP).headers["Content-Length"] == str(len(packed.data))


def test_small_answers_and_files_are_sent_as_they_are(client: FlaskClient, bundle: Bundle) -> None:
    root = f"/v1/bundles/{bundle.name}"
    for path in ("/healthz", "/v1/bundles", f"{root}/files/manifest.json", f"{root}/files/models/weights.bin"):
        with client.get(path, headers=GZIP) as answer:  # a file that stays open after it fails the test
            assert answer.status_code == 200
            assert {"Content-Encoding", "Vary"} & {*answer.headers.keys()} == set()
            assert len(answer.data) == answer.content_length
    assert "Content-Encoding" not in client.post("/v1/select", json={}, headers=GZIP).headers


def test_each_form_of_an_answer_has_an_etag_of_its_own(client: FlaskClient, bundle: Bundle) -> None:
    for path in ("/", f"/v1/bundles/{bundle.name}/profiles/{DEVICE}"):
        plain, packed = client.get(path), client.get(path, headers=GZIP)
        assert plain.headers["ETag"] != packed.headers["ETag"]
        for one, headers in ((plain, {}), (packed, GZIP)):
            again = client.get(path, headers={**headers, "If-None-Match": one.headers["ETag"]})
            assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", one.headers["ETag"])
        assert client.get(path, headers={"If-None-Match": packed.headers["ETag"]}).status_code == 200


def test_an_answer_that_is_not_the_one_wanted_is_a_problem(client: FlaskClient, bundle: Bundle) -> None:
    for path in ("/", f"/v1/bundles/{bundle.name}/profiles/{DEVICE}"):
        etag = client.get(path).headers["ETag"]
        refused = client.get(path, headers={"If-Match": '"other"'})
        assert (refused.status_code, refused.mimetype) == (412, "application/problem+json")
        assert etag in refused.json["detail"]
        for wanted in (etag, f'"other", {etag}', "*"):
            assert client.get(path, headers={"If-Match": wanted}).status_code == 200
        assert client.get(path, headers={"If-Match": etag, "If-None-Match": etag}).status_code == 304


def test_a_profile_is_replaced_under_the_etag_that_get_gave_it(
    client: FlaskClient, bundle: Bundle, writer: dict[str, str]
) -> None:
    """That of the bundle's own profile, of the one that the device sent, and of either when it was compressed."""
    path, profile = f"/v1/bundles/{bundle.name}/profiles/{DEVICE}", bundle.profile(DEVICE)

    def put(ms: float, **headers: str) -> int:
        sent = taking(profile, ms).model_dump_json()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.put(path, data=sent, headers={**writer, **named}).status_code

    for ms, accepted in ((1.0, {}), (2.0, {}), (3.0, GZIP)):
        etag = client.get(path, headers=accepted).headers["ETag"]
        assert put(9.0, If_Match='"other"') == 412
        assert put(ms, If_Match=etag) == (201 if ms == 1.0 else 200)
        assert put(9.0, If_Match=etag) == 412
    assert put(4.0, If_Match="*") == 200


def test_a_profile_may_be_sent_only_where_there_is_none(client: FlaskClient, bundle: Bundle, writer: dict[str, str]) -> None:
    profile = bundle.profile(DEVICE)
    for name, status in ((DEVICE, 412), ("phone", 201), ("phone", 412)):
        sent = profile.model_copy(update={"device": profile.device.model_copy(update={"name": name})})
        path = f"/v1/bundles/{bundle.name}/profiles/{name}"
        body = taking(sent, float(status)).model_dump_json()
        assert client.put(path, data=body, headers={**writer, "If-None-Match": "*"}).status_code == status
    etag = client.get(path).headers["ETag"]
    for condition, status in ((f"W/{etag}", 412), (f'"x", {etag}', 412), ('"x"', 200)):
        answer = client.put(path, data=sent.model_dump_json(), headers={**writer, "If-None-Match": condition})
        assert answer.status_code == status


def gone(*_: Any, **__: Any) -> Any:
    raise StoreUnavailable("gone")


def test_while_the_store_is_gone_each_query_of_many_is_answered_in_its_place(
    client: FlaskClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "newest", gone)
    monkeypatch.setattr(store, "models", gone)
    answer = client.post("/v1/select", json={"queries": [{}, {"device": DEVICE}, {"device": "phone"}]})
    assert answer.status_code == 200
    first, second, third = answer.json["selections"]
    assert (first["device"], second["device"]) == (DEVICE, DEVICE)
    assert third["status"] == 503


def test_a_store_that_does_not_answer_is_not_asked_by_every_query(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, now, newest = [], [time.monotonic()], store.newest
    monkeypatch.setattr(store, "newest", lambda *key: asked.append(key) or gone())
    monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: now[0]))
    client = create_app([bundle], store).test_client()
    many = {"queries": [{"device": f"phone-{number}"} for number in range(50)] + [{"device": DEVICE}] * 50}
    for times in (1, 2):
        found = client.post("/v1/select", json=many).json["selections"]
        assert [one.get("status") for one in found] == [503] * 50 + [None] * 50
        assert len(asked) == times
        now[0] += fleet.ASK_AGAIN_S
    monkeypatch.setattr(store, "newest", newest)
    assert client.post("/v1/select", json={"device": "phone"}).status_code == 404  # there is none


def test_while_the_store_is_gone_a_part_of_a_bundle_comes_with_its_own_profile(
    client: FlaskClient, bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "newest", gone)
    monkeypatch.setattr(store, "profile", gone)
    answer = client.post(f"/v1/bundles/{bundle.name}/subsets", json={"budget": {}, "device": DEVICE})
    assert (answer.status_code, answer.json["profile"]["device"]["name"]) == (200, DEVICE)


def test_no_answer_names_a_folder_of_the_server(untold: FlaskClient, bundle: Bundle) -> None:
    """Errors of the command line do: they are for who owns the bundle."""
    body = {"inputs": {bundle.manifest.inputs[0].name: next(iter(bundle.selftest_inputs.values()))[:1].tolist()}}
    for path, query in (("/v1/select", {}), ("/v1/predict", {**body, "budget": {"latency_ms": 60_000}})):
        refused = untold.post(path, json=query)
        assert refused.status_code in (404, 422)
        assert "sortednet profile bare" in refused.json["detail"]
        assert "/tmp" not in json.dumps(refused.json)


@pytest.fixture
def untold(bundle_path: Path, tmp_path: Path) -> FlaskClient:
    """Of a bundle without profiles."""
    copy = Path(shutil.copytree(bundle_path, tmp_path / "bare", ignore=shutil.ignore_patterns("profiles")))
    return create_app([Bundle(copy)]).test_client()


def test_what_is_asked_for_all_the_time_is_not_forgotten_for_what_is_asked_once(
    client: FlaskClient, bundle: Bundle, store: Store, writer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = bundle.profile(DEVICE)
    sent = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "phone"})})
    path = f"/v1/bundles/{bundle.name}/profiles/phone"
    assert client.put(path, data=sent.model_dump_json(), headers=writer).status_code == 201
    read: list[Any] = []
    original = store.profile
    monkeypatch.setattr(store, "profile", lambda *key: read.append(key) or original(*key))
    for number in range(2 * REMEMBERED):
        if number % 100 == 0:
            assert client.post("/v1/select", json={"device": "phone"}).json["device"] == "phone"
        client.post("/v1/select", json={"device": f"guessed-{number}"})
    assert len(read) == 1
