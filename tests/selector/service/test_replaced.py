"""A bundle that is replaced under a running service, and what is open before the first request."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from exporter.bundle import Bundle
from exporter.subset import subset
from selector.service import PredictOptions, create_app, served
from selector.service.fleet.store import Store
from selector.ship.parts import open_signed
from selector.ship.signed import Trust
from tests.conftest import DEVICE
from tests.helpers.keys import made, signed_copy
from tests.helpers.predict_client import input_name
from tests.helpers.server import ANSWERS_WITHIN_S, serving


@pytest.fixture(autouse=True)
def _looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LOOK_AGAIN_S", 0.0)


def ready(client: FlaskClient, status: int, words: str = "") -> None:
    """Waits for `/readyz` to answer so."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while (answer := client.get("/readyz")).status_code != status or words not in answer.text:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.01)


def sub_models(client: FlaskClient) -> set[str]:
    return {one["id"] for one in client.get("/v1/bundles/digits").get_json()["submodels"]}


def chosen(client: FlaskClient, images: np.ndarray[Any, Any], bundle: Bundle) -> tuple[str, str]:
    """By `select` and by `predict`."""
    ran = client.post("/v1/predict", json={"inputs": {input_name(bundle): images[:1].tolist()}})
    assert ran.status_code == 200, ran.text
    asked = client.post("/v1/select", json={"budget": {}}).get_json()["submodel"]
    return asked, ran.get_json()["selection"]["submodel"]


def test_a_bundle_that_is_replaced_is_loaded_in_one_step(
    bundle_path: Path, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "digits"))
    client = create_app([Bundle(path)], predict=PredictOptions()).test_client()
    ready(client, 200)
    before, names = chosen(client, images, Bundle(path)), sub_models(client)
    least = min(Bundle(path).submodels, key=lambda name: Bundle(path).submodels[name].macs)
    assert least not in before

    new = subset(Bundle(path), [least], tmp_path / "new" / "digits").path
    path.rename(tmp_path / "old")
    new.rename(path)
    ready(client, 200)
    while sub_models(client) == names:
        time.sleep(0.01)
    assert sub_models(client) == {least}
    assert chosen(client, images, Bundle(path)) == (least, least)
    assert client.get("/v1/bundles/digits/files/manifest.json").status_code == 200


def test_with_a_key_what_it_has_not_signed_does_not_take_the_place_of_what_is_served(bundle_path: Path, tmp_path: Path) -> None:
    keys = made(tmp_path)
    path = signed_copy(bundle_path, tmp_path / "digits", keys)
    opening = partial(open_signed, trust=Trust(keys.public))
    client = create_app([opening(path)], opening=opening, predict=None, generate=None).test_client()
    names = sub_models(client)
    new = subset(Bundle(path), [min(names)], tmp_path / "new" / "digits").path
    path.rename(tmp_path / "old")
    new.rename(path)
    ready(client, 503, "is not signed")
    assert sub_models(client) == names


def test_one_that_cannot_be_loaded_is_told_by_readyz_and_the_one_before_goes_on(bundle_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "digits"))
    client = create_app([Bundle(path)]).test_client()
    manifest = (path / "manifest.json").read_bytes()
    for content, words in ((b"{}", "cannot be loaded"), (None, "no bundle"), (manifest, "")):
        if content is None:
            (path / "manifest.json").unlink()
        else:
            (path / "new").write_bytes(content)
            os.replace(path / "new", path / "manifest.json")
        ready(client, 503 if words else 200, words)
        assert str(path) not in client.get("/readyz").text
        assert client.post("/v1/select", json={"budget": {}}).status_code == 200


def test_sessions_are_open_before_the_service_is_ready(bundle_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path) as server:
        (runtime,) = server.get("/v1/bundles/digits/runtime").document["runtimes"]
        assert server.post("/v1/select", {"budget": {}}).document["submodel"] in runtime["sessions"]
        assert runtime["history"] == []


def test_where_nothing_is_measured_the_start_says_so(bundle_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "digits"))
    shutil.rmtree(path / "profiles")
    with serving(tmp_path / "log", path) as server:
        said = server.log.read_text().splitlines()[0]
        assert said.startswith(f"digits has not been measured here: `sortednet profile {path}` measures it.")


def test_without_a_device_the_only_one_that_sent_a_profile_counts(bundle_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "digits"))
    bundle = Bundle(path)
    profile = bundle.profile(DEVICE)
    shutil.rmtree(path / "profiles")
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        client = create_app([bundle], store).test_client()
        query = {"budget": {"latency_ms": 1000}}
        assert client.post("/v1/select", json=query).status_code == 404
        for name in ("phone", "tablet"):
            store.put("digits", profile.model_copy(update={"device": profile.device.model_copy(update={"name": name})}))
            answer = client.post("/v1/select", json=query)
            if name == "phone":
                assert (answer.status_code, answer.get_json()["device"]) == (200, "phone")
        assert answer.status_code == 404
        assert "phone, tablet" in answer.get_json()["detail"]
