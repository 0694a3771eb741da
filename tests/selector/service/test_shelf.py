"""What a service has opened: one for a bundle and a profile however that is asked for, and a place for whoever comes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from device_profiles import Profile
from exporter.bundle import Bundle
from selector.choose.budget import Budget
from selector.service import GenerateOptions, create_app
from selector.service.generate.generating import Generating
from selector.service.generate.text import Text
from selector.service.predict import shelf
from selector.service.predict.predictor import Predictor
from tests.helpers.decoding import profile_of
from tests.helpers.generators import WEIGHTS, write_bundle
from tests.helpers.predict_client import input_name

DEVICES = ("one", "two", "three")
FEW = 2


@pytest.fixture
def talker(tmp_path: Path) -> Bundle:
    """With a profile more than may be open."""
    bundle = write_bundle(tmp_path / "talker", profiled=False)
    for name in DEVICES:
        bundle.save_profile(profile_of(WEIGHTS, bundle.fingerprint, device=name))
    return bundle


@pytest.fixture
def app(talker: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    monkeypatch.setattr(shelf, "RUNTIMES", FEW)
    made = create_app([talker], predict=None, generate=GenerateOptions(cores=8))
    yield made
    closed(made, talker)


def generating(app: Flask) -> Generating:
    found: Generating = app.extensions["sortednet.generating"]
    return found


def closed(app: Flask, bundle: Bundle) -> None:
    for kept in generating(app).opened(bundle):
        kept.generator.close()


def said(client: FlaskClient, device: str | None, status: int = 200) -> Any:
    body = {"prompt": "x", "stream": False, "options": {"max_tokens": 1}, **({} if device is None else {"device": device})}
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == status, answer.text
    return answer


def begun(app: Flask, bundle: Bundle, device: str) -> Text:
    options = {"max_tokens": 4, "ignore_eos": True}
    return generating(app).begin(bundle, device, "x", options, Budget(), time.monotonic())


def devices(app: Flask, bundle: Bundle) -> list[str]:
    return [kept.profiles[0].device.name for kept in generating(app).opened(bundle)]


@pytest.mark.parametrize("first", [None, "bench"])
def test_a_profile_has_one_generator_named_or_not(tmp_path: Path, first: str | None) -> None:
    bundle = write_bundle(tmp_path / "talker")
    app = create_app([bundle], predict=None, generate=GenerateOptions(cores=1, memory_mb=200.0))
    for device in (first, None, "bench"):
        assert said(app.test_client(), device).json["selection"]["device"] == "bench"
        assert len(generating(app).opened(bundle)) == 1
    bundle.save_profile(profile_of(WEIGHTS, bundle.fingerprint, device="other"))
    assert "which one" in said(app.test_client(), None, 404).text  # what it came to is looked up again
    closed(app, bundle)


def test_while_a_version_is_on_trial_no_name_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another profile of each of the two versions."""
    bundle = write_bundle(tmp_path / "talker")
    monkeypatch.setattr(shelf, "in_use", lambda one: Bundle(one.path, name=one.name))  # the version before
    app = create_app([bundle], predict=None, generate=GenerateOptions(cores=1))
    for device in (None, "bench", None):
        said(app.test_client(), device)
    assert len(generating(app).opened(bundle)) == 2
    closed(app, bundle)


def test_what_was_asked_for_longest_ago_makes_room(app: Flask, talker: Bundle) -> None:
    client = app.test_client()
    for device in ("one", "two", "one"):
        said(client, device)
    (two, _) = generating(app).opened(talker)
    said(client, "three")
    assert devices(app, talker) == ["one", "three"]
    assert not two.generator.runtime.pool.loaded
    said(client, "nobody", 404)  # takes nobody's place
    assert devices(app, talker) == ["one", "three"]


def test_what_generates_makes_no_room(app: Flask, talker: Bundle) -> None:
    texts = [begun(app, talker, "one"), begun(app, talker, "two")]
    answer = said(app.test_client(), "three", 503)
    assert answer.json["reason"] == "queue_full"
    assert int(answer.headers["Retry-After"]) >= 1
    assert 'sortednet_generate_refused_total{bundle="talker",reason="queue_full"} 1.0' in app.test_client().get("/metrics").text
    assert len(list(texts[1])) == 4
    said(app.test_client(), "three")
    assert devices(app, talker) == ["one", "three"]
    assert len(list(texts[0])) == 4


def test_the_dashboard_shows_texts_of_what_is_closed(talker: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "RUNTIMES", 1)
    other = write_bundle(tmp_path / "other")
    app = create_app([talker, other], predict=None, generate=GenerateOptions(cores=8))
    list(begun(app, talker, "one"))
    list(begun(app, other, "bench"))
    assert not generating(app).opened(talker)
    answer = app.test_client().get("/dashboard/runtime")
    assert answer.status_code == 200
    assert set(answer.json["bundles"]) == {"talker", "other"}  # type: ignore[index]
    closed(app, other)


def test_the_memory_of_a_bundle_is_for_one_profile_at_a_time(talker: Bundle) -> None:
    app = create_app([talker], predict=None, generate=GenerateOptions(cores=8, memory_mb=60.0))
    client = app.test_client()

    def used() -> float:
        return sum(k.generator.cache_used_mb + k.generator.runtime.pool.memory_used_mb for k in generating(app).opened(talker))

    text = begun(app, talker, "one")
    (one,) = generating(app).opened(talker)
    assert "by another profile" in said(client, "two", 503).text
    said(client, "one")  # beside it, of the same memory
    assert len(list(text)) == 4
    said(client, "two")
    assert devices(app, talker) == ["two"]
    assert not one.generator.runtime.pool.loaded
    assert 0 < used() <= 60
    closed(app, talker)


def test_what_the_service_itself_has_wrong_is_no_mistake_of_the_client(
    talker: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    little = create_app([talker], predict=None, generate=GenerateOptions(memory_mb=2.0)).test_client()
    assert "memory_mb = 2" in said(little, "one", 500).text
    assert "memory_mb = 2" in caplog.text
    client = create_app([talker], predict=None, generate=GenerateOptions()).test_client()
    for name in DEVICES[1:]:
        (talker.path / "profiles" / f"{name}.json").unlink()
    (talker.path / "profiles" / "one.json").write_text("{}")
    for device in (None, "one"):
        said(client, device, 500)


@pytest.fixture
def pictures(bundle_path: Path, tmp_path: Path) -> Bundle:
    """With DEVICES beside its own profile."""
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "digits"))
    profile = bundle.profile(bundle.devices()[0])
    for file in (bundle.path / "profiles").iterdir():
        file.unlink()
    for name in DEVICES:
        bundle.save_profile(renamed(profile, name))
    return bundle


def renamed(profile: Profile, name: str) -> Profile:
    return profile.model_copy(update={"device": profile.device.model_copy(update={"name": name})})


def test_predictions_do_the_same(pictures: Bundle, images: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "RUNTIMES", FEW)
    app = create_app([pictures])
    predictor: Predictor = app.extensions["sortednet.predictor"]
    inputs = {input_name(pictures): images[:1].tolist()}

    def ask(device: str | None, status: int = 200) -> None:
        body = {"inputs": inputs, **({} if device is None else {"device": device})}
        answer = app.test_client().post("/v1/predict", json=body)
        assert answer.status_code == status, answer.text

    for device in DEVICES:
        ask(device)
    first, second = predictor.opened(pictures)
    assert [first.device, second.device] == ["two", "three"]
    (pictures.path / "profiles" / "one.json").unlink()
    (pictures.path / "profiles" / "two.json").unlink()
    ask("two", 404)
    assert not first.runtime.pool.loaded
    ask(None)
    ask("three")
    (pictures.path / "profiles" / "one.json").write_text("{}")
    ask("one", 500)
    (pictures.path / "profiles" / "one.json").unlink()
    ask(None)
    assert [kept.device for kept in predictor.opened(pictures)] == ["three"]
    for kept in predictor.opened(pictures):
        kept.runtime.close()
