"""`POST /v1/select` for devices that the service does not know, and for many queries at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle
from selector.service import create_app
from tests.conftest import DEVICE
from tests.helpers.server import Server, problem, serving

MAX_QUERIES = 1000


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service") / "log", bundle_path) as found:
        yield found


@pytest.fixture
def profile(bundle: Bundle) -> dict[str, Any]:
    """Of another device, ten times as slow."""
    document = json.loads(bundle.profile(DEVICE).model_dump_json())
    document["device"]["name"] = "elsewhere"
    for costs in document["submodels"].values():
        costs["latency_ms"] |= {name: 10 * costs["latency_ms"][name] for name in ("p50", "p90", "p99", "mean")}
    return dict(document)


def some(profile: dict[str, Any], count: int) -> dict[str, Any]:
    return dict(list(profile["submodels"].items())[:count])


def test_a_profile_in_the_query_is_the_device(server: Server, profile: dict[str, Any]) -> None:
    known = server.post("/v1/select", {}).document
    for _ in range(2):  # the second is remembered
        sent = server.post("/v1/select", {"profile": profile}).document
        assert (sent["device"], sent["submodel"], sent["accuracy"]) == ("elsewhere", known["submodel"], known["accuracy"])
        assert sent["latency_ms"] == pytest.approx(10 * known["latency_ms"])


def test_the_others_are_predicted_from_a_few_measured_submodels(
    server: Server, profile: dict[str, Any], bundle: Bundle
) -> None:
    measured = some(profile, 2)
    answer = server.post("/v1/select", {"measured": measured, "budget": {"objective": "accuracy"}})
    assert (answer.status, answer.document["feasible"]) == (200, True)
    best = max(bundle.submodels.values(), key=lambda entry: entry.accuracy or 0)
    assert answer.document["accuracy"] == best.accuracy
    for name, costs in measured.items():  # one that was measured costs what was measured
        budget = {"latency_ms": costs["latency_ms"]["p50"], "min_accuracy": bundle.submodels[name].accuracy}
        assert server.post("/v1/select", {"measured": measured, "budget": budget}).document["feasible"]


@pytest.mark.parametrize(
    ("change", "field", "named"),
    [
        (lambda p: {"profile": p | {"bundle": "0" * 64}}, "profile.bundle", "fingerprint"),
        (lambda p: {"profile": p | {"submodels": {"nope": p["submodels"].popitem()[1]}}}, "profile.submodels", "bundle"),
        (lambda p: {"measured": {"nope": next(iter(p["submodels"].values()))}}, "measured", "bundle"),
        (lambda p: {"measured": {}}, "measured", "at least 1"),
        (lambda p: {"measured": some(p, 1), "profile": p}, "", "one of device, profile and measured"),
        (lambda p: {"measured": some(p, 1), "device": DEVICE}, "", "one of device, profile and measured"),
        (lambda p: {"profile": p | {"measured_at": "yesterday"}}, "profile.measured_at", "datetime"),
    ],
)
def test_figures_that_fit_no_bundle_are_a_problem_naming_the_field(
    server: Server, profile: dict[str, Any], change: Any, field: str, named: str
) -> None:
    (error,) = problem(server.post("/v1/select", change(profile)), 422)["errors"]
    assert error["field"] == field
    assert named in error["message"]


def test_figures_out_of_this_world_are_answered_or_refused(server: Server, profile: dict[str, Any]) -> None:
    for size in (5e-324, 1e-300, 1e300, 1.7e308):
        measured = some(profile, 3)
        for costs in measured.values():
            costs["latency_ms"] |= dict.fromkeys(("p50", "p90", "p99", "mean"), size)
        for query in ({"measured": measured}, {"profile": profile | {"submodels": measured}}):
            for budget in ({}, {"latency_ms": 1e-300}, {"memory_mb": 5e-324, "min_accuracy": 1}):
                assert server.post("/v1/select", query | {"budget": budget}).status in (200, 422)


def test_many_queries_are_answered_each_in_its_place(server: Server, profile: dict[str, Any]) -> None:
    queries: list[dict[str, Any]] = [
        {},
        {"device": "phone"},
        {"budget": {"latency_ms": 1e-6}},
        {"profile": profile},
        {"bundle": "nope"},
        {"profile": profile | {"bundle": "0" * 64}},
    ]
    found = server.post("/v1/select", {"queries": queries}).document["selections"]
    alone = [server.post("/v1/select", query) for query in queries]
    assert [one.get("status", 200) for one in found] == [answer.status for answer in alone] == [200, 404, 200, 200, 404, 422]
    for one, answer in zip(found, alone, strict=True):
        answer.document.pop("request_id", None)
        assert {name: value for name, value in one.items() if name != "request_id"} == answer.document


def test_the_number_of_queries_is_limited_and_a_wrong_one_named(server: Server, profile: dict[str, Any]) -> None:
    assert len(server.post("/v1/select", {"queries": [{}] * MAX_QUERIES}).document["selections"]) == MAX_QUERIES
    for queries in ([], [{}] * (MAX_QUERIES + 1), [{"measured": some(profile, 1)}] * 9):
        (error,) = problem(server.post("/v1/select", {"queries": queries}), 422)["errors"]
        assert error["field"] == "queries"
    wrong: dict[str, Any] = {"queries": [{}, {"budget": {"latency_ms": -1}}]}
    (error,) = problem(server.post("/v1/select", wrong), 422)["errors"]
    assert error["field"] == "queries.1.budget.latency_ms"
    problem(server.post("/v1/select", {"queries": [{}], "budget": {}}), 422)


def test_a_device_may_be_called_queries(bundle: Bundle) -> None:
    answer = create_app([bundle]).test_client().post("/v1/select", json={"device": "queries"})
    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")
