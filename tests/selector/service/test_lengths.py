"""Over REST a budget may say how long the input is, and inputs are run by what their own length costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from device_profiles import profile_document
from device_profiles.lengths import bucket
from exporter.bundle import Bundle
from selector.service import PredictOptions, create_app
from tests.helpers.figures import ranks
from tests.helpers.lengths import LENGTHS, taking

LIMIT = taking(2.0, 256)
PLENTY_MS = 3_600_000.0
"""Of a deadline that waiting takes nothing of: the machine may be busy."""


@pytest.fixture
def words(words_path: Path, tmp_path: Path) -> Bundle:
    return Bundle(shutil.copytree(words_path, tmp_path / "words"))


@pytest.fixture
def client(words: Bundle) -> FlaskClient:
    return create_app([words], predict=PredictOptions(cores=1)).test_client()


def smallest_first(bundle: Bundle) -> list[str]:
    return sorted(ranks(bundle), key=lambda name: ranks(bundle)[name])


def selected(client: FlaskClient, **query: Any) -> Any:
    answer = client.post("/v1/select", json=query)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_select_goes_by_the_length(client: FlaskClient, words: Bundle) -> None:
    names = smallest_first(words)
    document = profile_document(words.profile("bench"))
    for device in ({"device": "bench"}, {"profile": document}, {"measured": document["submodels"]}):
        at_longest = selected(client, budget={"latency_ms": LIMIT}, **device)
        short = selected(client, budget={"latency_ms": LIMIT, "length": 30}, **device)
        assert (at_longest["submodel"], short["submodel"]) == (names[1], names[-1])
        assert short["latency_ms"] == pytest.approx(taking(len(names), bucket(30)))
    one_size = {name: {k: v for k, v in costs.items() if k != "lengths"} for name, costs in document["submodels"].items()}
    assert "whatever the length" in selected(client, budget={"latency_ms": LIMIT, "length": 30}, measured=one_size)["reason"]


@pytest.mark.parametrize("length", [0, -3, 1.5, "16", True, 2**20 + 1])
def test_a_length_that_is_none_names_the_field(client: FlaskClient, length: Any) -> None:
    answer = client.post("/v1/select", json={"device": "bench", "budget": {"length": length}})
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["errors"][0]["field"] == "budget.length"


@pytest.mark.parametrize("said", [None, 1, 1000])
def test_inputs_are_run_by_their_own_length(client: FlaskClient, words: Bundle, said: int | None) -> None:
    """Whatever the budget says of it. A floor of quality and the least latency: no time that passes decides."""
    names = smallest_first(words)
    budget = {"latency_ms": PLENTY_MS, "min_quality": words.qualities[names[1]], "objective": "latency", "length": said}
    for length in (20, 256):
        body = {"device": "bench", "budget": budget, "inputs": {"tokens": [[1] * length]}}
        answer = client.post("/v1/predict", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json is not None
        selection = answer.json["selection"]
        assert selection["submodel"] == names[1]
        assert f"for inputs of up to {bucket(length)}" in selection["reason"]


def test_a_profile_is_kept_with_its_lengths_and_the_page_asks_for_a_frontier(client: FlaskClient, words: Bundle) -> None:
    stored = client.get("/dashboard/frontiers/words/bench").json
    there = client.get("/dashboard/frontiers/words/bench?length=64").json
    assert stored is not None
    assert there is not None
    assert stored["lengths"] == there["lengths"] == list(LENGTHS)
    assert stored["submodels"] == {}
    places = ranks(words)
    for limit, name in there["frontiers"]["latency_ms.p50"]:
        assert limit == there["submodels"][name]["latency_ms"]["p50"] == pytest.approx(taking(places[name], 64))
    assert len(there["frontiers"]["latency_ms.p50"]) == len(words.submodels)
    assert client.get("/dashboard/frontiers/words/bench?length=x").status_code == 422
    assert client.get("/dashboard/frontiers/words/test-device?length=64").json["submodels"] == {}  # type: ignore[index]


def test_the_document_of_the_api_knows_the_length(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    assert document is not None
    schemas = document["components"]["schemas"]
    assert "length" in schemas["QueryBudget"]["properties"]
    assert any("lengths" in one.get("properties", {}) for name, one in schemas.items() if name.startswith("Measurement"))
