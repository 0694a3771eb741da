"""Cascades over REST: offered to those who ask for them, and by predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.bundle import Bundle
from selector.choose.cascades import CASCADES_FILE, Cascade, write_cascades
from selector.service import PredictOptions, create_app
from selector.service.fleet.store import Store
from tests.conftest import DEVICE
from tests.helpers.cascades import cascades_of
from tests.helpers.commands import document
from tests.helpers.predict_client import predicted


def test_over_rest_it_is_offered_to_those_who_ask_for_it(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    client = create_app([bundle]).test_client()
    profile = bundle.profile(DEVICE)
    sent = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "elsewhere"})})
    measured = {name: costs.model_dump() for name, costs in profile.submodels.items()}
    devices: list[dict[str, Any]] = [{}, {"device": DEVICE}, {"profile": sent.model_dump(mode="json")}, {"measured": measured}]
    for device in devices:
        query = {**device, "budget": {"min_accuracy": 0.995}}
        for _ in range(2):  # the second is remembered
            found = client.post("/v1/select", json=query | {"cascades": True}).get_json()
            assert (found["submodel"], found["feasible"]) == (cascade.id, True)
            assert (found["stages"], found["threshold"]) == ([cascade.first, cascade.then], 0.8)
            for single in (query, query | {"cascades": False}):
                alone = client.post("/v1/select", json=single).get_json()
                assert (alone["submodel"] in bundle.submodels, alone["stages"]) == (True, [])
    listed = client.get(f"/v1/bundles/{bundle.name}").get_json()
    assert listed == document("inspect", bundle.path)
    query = {"device": DEVICE, "budget": {"min_accuracy": 0.995}, "cascades": True}
    answers = client.post("/v1/select", json={"queries": [query, query | {"cascades": False}]}).get_json()["selections"]
    assert [answer["feasible"] for answer in answers] == [True, False]

    write_cascades(bundle, [])
    assert not client.post("/v1/select", json=query).get_json()["feasible"]
    write_cascades(bundle, [cascade.model_copy(update={"threshold": 0.7})])
    assert client.post("/v1/select", json=query).get_json()["threshold"] == 0.7
    (bundle.path / CASCADES_FILE).unlink()
    assert not client.post("/v1/select", json=query).get_json()["feasible"]


def test_over_rest_it_is_offered_on_devices_that_sent_their_profile(
    with_cascade: tuple[Bundle, Cascade], tmp_path: Path
) -> None:
    bundle, cascade = with_cascade
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        client = create_app([bundle], store).test_client()
        profile = bundle.profile(DEVICE)
        phone = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "phone", "cpu": "Snapdragon"})})
        store.put(bundle.name, phone)
        (model,) = store.models(bundle.name, bundle.fingerprint)
        for device in ("phone", model.model):
            query = {"device": device, "budget": {"min_accuracy": 0.995}}
            assert client.post("/v1/select", json=query | {"cascades": True}).get_json()["submodel"] == cascade.id
            assert client.post("/v1/select", json=query).get_json()["submodel"] in bundle.submodels


def test_predict_sees_one_that_is_written_while_it_serves(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    (bundle.path / CASCADES_FILE).unlink()
    client = create_app([bundle], predict=PredictOptions()).test_client()
    known = [predicted(bundle, client).status_code]
    runtimes = [client.application.extensions["sortednet.predictor"].opened(bundle)[0].runtime]
    for cascades in ([cascade], []):
        write_cascades(bundle, cascades)
        known.append(predicted(bundle, client).status_code)
        runtimes.append(client.application.extensions["sortednet.predictor"].opened(bundle)[0].runtime)
    assert known == [200] * 3
    assert [cascades_of(runtime) for runtime in runtimes] == [[], [cascade.id], []]
