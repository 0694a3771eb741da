"""Rings over HTTP: a service with a new version, and devices that pull, tell and go back."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle
from selector.service import create_app
from selector.service.fleet.rings import RingRules
from selector.service.fleet.store import Store
from selector.ship.state import Figures, read_state, trial_of
from selector.ship.versions import accept, content_of, rollback, signed_version
from sortednet.signing import sign
from tests.helpers.commands import document, refused
from tests.helpers.keys import Keys, made, signed_copy
from tests.helpers.pulls import SMALL, pulled
from tests.helpers.server import Server, problem, serving
from tests.helpers.shelf import broken, larger, other_weights

GOOD = Figures(runs=50, submodel=SMALL, p50_ms=2.0, p50_ms_before=2.0)


class Fleet:
    """Devices of one model, and what the service says."""

    def __init__(self, server: Server, keys: Keys, folder: Path, token: str) -> None:
        self.server, self.keys, self.folder, self.token = server, keys, folder, token

    def pull(self, device: str, *more: str, code: int = 0, named: bool = True) -> Any:
        given = ("--device", device, "--token", self.token) if named else ()
        out = ("--out", self.folder / device, "--submodels", SMALL, "--key", self.keys.public)
        return pulled(self.server.url, *out, *given, *more, code=code)

    def rings(self) -> Any:
        return self.server.get("/v1/bundles/digits/rings").document

    def version(self, device: str) -> int | None:
        return signed_version(self.folder / device)


def put(fleet: Fleet, device: str, body: dict[str, Any], token: str | None = None) -> Any:
    """The document that a device is answered."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token or fleet.token}"}
    url = f"{fleet.server.url}/v1/bundles/digits/rings/{device}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers, method="PUT")) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return json.loads(error.read())


@pytest.fixture
def fleet(first: Path, second: Path, keys: Keys, tmp_path: Path) -> Iterator[Fleet]:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    token = document("token", "create", "fleet", "--bundle", "digits", "--store", store)["token"]
    rules = ("--canary-rule", "devices=1", "--canary-rule", "accepted=1", "--canary-rule", "taken_back=1")
    options = ("--canary", str(second), *rules, "--key", str(keys.public), "--store", store, "--no-predict", "--no-generate")
    with serving(tmp_path / "log", first, options=options) as server:
        yield Fleet(server, keys, tmp_path / "devices", token)


def test_a_new_version_goes_from_the_first_device_to_all(fleet: Fleet) -> None:
    assert fleet.server.get("/v1/bundles").document["bundles"][0]["name"] == "digits"
    assert len(fleet.server.get("/v1/bundles").document["bundles"]) == 1
    assert [fleet.pull(name)["version"] for name in ("a", "b")] == [1, 1]  # there is nothing yet to compare it with
    assert fleet.pull("b", "--no-trial")["version"] == 1  # nor does this one
    assert fleet.rings()["models"] == []
    assert [fleet.pull(name)["version"] for name in ("a", "b")] == [2, 1]  # there is one place
    found = fleet.rings()
    assert (found["everyone"]["number"], found["canary"]["number"]) == (1, 2)
    assert [(one["ring"], one["trying"], one["accepted"]) for one in found["models"]] == [("canary", 1, 0)]
    assert fleet.pull("nobody", named=False)["version"] == 1
    assert fleet.pull("a")["changed"] is False  # it keeps its place


def test_what_a_trial_shows_is_told_by_the_next_pull(fleet: Fleet, first: Path, keys: Keys, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert fleet.pull(name, named=False)["version"] == 1
    assert [fleet.pull(name)["version"] for name in ("a", "b")] == [2, 1]
    mine = fleet.folder / "a"
    trial = trial_of(mine)
    assert trial is not None
    assert trial.published == fleet.rings()["canary"]["version"]
    assert trial.figures.quality is not None  # on the labelled examples, before it was put in place
    accept(mine, trial, GOOD.model_copy(update={"quality": 0.9, "quality_before": 0.9}))
    assert fleet.rings()["models"][0]["accepted"] == 0
    assert fleet.pull("a")["changed"] is False
    (model,) = fleet.rings()["models"]
    assert (model["ring"], model["accepted"], model["slower"], model["points"]) == ("all", 1, 1.0, 0.0)
    assert fleet.pull("b")["version"] == 2
    assert fleet.pull("c", named=False)["version"] == 2  # who does not say who it is, too

    rollback(fleet.folder / "b")  # by hand: the next pull tells that too
    assert fleet.pull("b")["version"] == 1
    (model,) = fleet.rings()["models"]
    assert (model["ring"], model["taken_back"]) == ("stopped", 1)
    assert [one["reason"] for one in fleet.rings()["devices"] if one["device"] == "b"] == ["rolled back by hand"]
    assert fleet.pull("d", named=False)["version"] == 1
    assert fleet.pull("a")["version"] == 2  # it has accepted it


def test_a_version_that_is_stopped_elsewhere_is_not_tried_any_longer(fleet: Fleet) -> None:
    fleet.pull("a", named=False)
    assert fleet.pull("a")["version"] == 2
    (model,) = fleet.rings()["models"]
    body = {"model": model["model"], "version": fleet.rings()["canary"]["version"], "state": "taken back", "reason": "slow"}
    put(fleet, "z", body)
    assert fleet.pull("a")["version"] == 1
    assert trial_of(fleet.folder / "a") is None
    assert list(read_state(fleet.folder / "a").refused.values()) == ["1 of 1 devices took it back"]


def test_a_version_that_is_offered_no_longer_is_not_tried_any_longer(
    first: Path, second: Path, keys: Keys, tmp_path: Path
) -> None:
    """Withdrawn, or another one is tried now: a device could go neither on nor back."""
    third = Path(shutil.copytree(second, tmp_path / "third" / "digits"))
    other_weights(third, lambda weights: larger(weights, 1.001))
    sign(Bundle(third), key=keys.private, version=3)
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        _, token = store.tokens.create("fleet", ["profiles:write"], bundle="digits")
        trying = {"model": "phone", "version": content_of(Bundle(second)), "state": "trying"}
        for canary in (None, third, second):
            bundles = [Bundle(first), *([Bundle(canary, name="digits@canary")] if canary else [])]
            client = create_app(bundles, store, ring_rules=RingRules(devices=1, accepted=1)).test_client()
            headers = {"Authorization": f"Bearer {token}"}
            others = {"model": "phone"}
            if canary == third:
                client.put("/v1/bundles/digits/rings/other", json=others, headers=headers)  # the only place
            found = client.put("/v1/bundles/digits/rings/mine", json=trying, headers=headers).get_json()
            expected = None if canary == second else "the service does not offer it any more"
            assert found["withdrawn"] == expected, found


def test_a_version_that_is_worse_before_it_is_put_in_place_is_told_at_once(first: Path, keys: Keys, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(first, tmp_path / "next" / "digits"))
    broken(bad)
    sign(Bundle(bad), key=keys.private, version=2)
    store = f"sqlite:///{tmp_path / 'store.db'}"
    token = document("token", "create", "fleet", "--store", store)["token"]
    options = ("--canary", str(bad), "--store", store, "--no-predict", "--no-generate")
    with serving(tmp_path / "log", first, options=options) as server:
        fleet = Fleet(server, keys, tmp_path / "devices", token)
        assert fleet.pull("a")["version"] == 1
        assert "the self-test fails" in fleet.pull("a", code=1)
        (one,) = fleet.rings()["devices"]
        assert (one["device"], one["state"]) == ("a", "taken back")
        assert "the self-test fails" in one["reason"]
        assert fleet.pull("a")["changed"] is False  # it gets the one before again


def test_of_bundles_that_are_not_signed_a_part_is_told_under_the_name_of_the_whole(bundle_path: Path, tmp_path: Path) -> None:
    """What the device has is cut by the service, and has another hash. The canary's folder is replaced while it is served."""
    old, new = (Path(shutil.copytree(bundle_path, tmp_path / name / "digits")) for name in ("old", "new"))
    other_weights(new, lambda weights: larger(weights, 1.001))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    token = document("token", "create", "fleet", "--store", store)["token"]
    given = ("--out", tmp_path / "a", "--submodels", SMALL, "--device", "a", "--token", token)
    options = ("--canary", str(new), "--store", store, "--no-predict", "--no-generate")
    with serving(tmp_path / "log", old, options=options) as server:
        assert [pulled(server.url, *given)["trial"] for _ in range(2)] == [False, True]
        trial = trial_of(tmp_path / "a")
        assert trial is not None
        canary = server.get("/v1/bundles/digits/rings").document["canary"]
        assert trial.published == canary["version"] != trial.content
        accept(tmp_path / "a", trial, GOOD)
        assert pulled(server.url, *given)["changed"] is False
        found = server.get("/v1/bundles/digits/rings").document
        assert [(one["device"], one["state"]) for one in found["devices"]] == [("a", "accepted")]

        newer = Path(shutil.copytree(bundle_path, tmp_path / "newer" / "digits"))
        other_weights(newer, lambda weights: larger(weights, 1.002))
        new.rename(tmp_path / "gone")
        newer.rename(new)
        while (found := server.get("/v1/bundles/digits/rings").document)["canary"] == canary:
            time.sleep(0.05)
        assert found["devices"] == []
        assert pulled(server.url, *given)["trial"] is True


def test_only_who_may_write_a_devices_profile_tells_of_it(fleet: Fleet) -> None:
    assert put(fleet, "a", {"model": "m"}, "snt_none")["status"] == 401
    wrong = put(fleet, "a", {"model": "m", "state": "accepted"})
    assert wrong["status"] == 422
    assert "version and state: allowed are both or none" in wrong["errors"][0]["message"]
    assert put(fleet, "a", {"model": "m", "version": "x", "state": "accepted"})["errors"][0]["field"] == "version"
    assert "needs --device NAME" in pulled(fleet.server.url, "--out", fleet.folder / "a", "--token", "x", code=2)
    problem(fleet.server.get("/v1/bundles/nope/rings"), 404)
    line = pulled(fleet.server.url, "--out", fleet.folder / "a", "--device", "a", "--token", "wrong", code=2)
    assert "the token is unknown" in line
    assert not (fleet.folder / "a").exists()


def test_what_devices_would_refuse_is_no_new_version(first: Path, second: Path, keys: Keys, tmp_path: Path) -> None:
    assert "is version 1; allowed are signed ones after version 2" in refused("serve", second, "--canary", first)
    bare = signed_copy(first, tmp_path / "digits", keys, 3)
    for name in ("signed.json", "signed.sig"):
        (bare / name).unlink()
    assert "is not signed; allowed are signed ones" in refused("serve", second, "--canary", bare)
    other = signed_copy(second, tmp_path / "other", made(tmp_path, "other"), 9)
    assert "is no signature" in refused("serve", second, "--canary", other, "--key", keys.public, code=1)
    assert "of which bundle?" in refused("serve", first, bare.parent / "other", "--canary", tmp_path / "nope")
    assert "canary_rule = 'x=1'" in refused("serve", first, "--canary", second, "--canary-rule", "x=1")
