"""`GET /metrics` of a real server process, and the files in `deploy/` that go by its names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from device_profiles import write_profile
from exporter.bundle import Bundle
from selector import Battery, Runtime
from selector.choose.budget import Selection
from selector.service.predict.gate import REASONS
from selector.service.predict.predictor import PredictOptions, Predictor
from selector.service.predict.schemas import PredictQuery
from selector.service.web.metrics import SUBMODELS, Metrics
from tests.conftest import DEVICE
from tests.helpers.predict_client import NPY, budget_path, npy_of, send, slowly
from tests.helpers.server import ANSWERS_WITHIN_S, Server, serving

DEPLOY = Path(__file__).parents[3] / "deploy"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("metrics") / "log", bundle_path) as found:
        yield found


def scraped(server: Server) -> Samples:
    """By name and labels; the text is checked by the parser of prometheus_client."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=ANSWERS_WITHIN_S) as response:
        assert response.headers.get_content_type() == "text/plain"
        return samples(response.read().decode())


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((f"sortednet_{name}", frozenset(labels.items())), 0.0)


def names(found: Samples) -> set[str]:
    return {name for name, _ in found}


@pytest.fixture
def body(images: np.ndarray[Any, Any]) -> bytes:
    return npy_of(images)


def test_requests_are_counted_by_what_became_of_them(server: Server, bundle: Bundle, body: bytes) -> None:
    before, name = scraped(server), bundle.name
    answers = [server.post("/v1/select", {"budget": budget}) for budget in ({}, {}, {"latency_ms": 1e-6})]
    assert [answer.status for answer in answers] == [200] * 3
    chosen = [answer.document["submodel"] for answer in answers]
    assert send(server, budget_path({"latency_ms": 60_000}), body, Content_Type=NPY).status == 200
    assert send(server, budget_path({"latency_ms": 300}), slowly(body, 0.35), Content_Type=NPY).status == 503
    assert server.get(f"/v1/bundles/{name}").status == 200
    assert server.get("/nope/1").status == server.get("/nope/2").status == 404
    after = scraped(server)

    def more(metric: str, **labels: str) -> float:
        return value(after, metric, **labels) - value(before, metric, **labels)

    assert more("select_requests_total", bundle=name, feasible="yes") == 2
    assert more("select_requests_total", bundle=name, feasible="no") == 1
    assert more("chosen_submodels_total", bundle=name, submodel=chosen[0], path="select") == chosen.count(chosen[0])
    assert more("predict_requests_total", bundle=name) == 1
    assert more("predict_examples_total", bundle=name) == 2
    assert more("predict_deadlines_total", bundle=name, outcome="met") == 1
    assert more("predict_refused_total", bundle=name, reason="deadline_passed") == 1
    assert more("predict_run_seconds_count", bundle=name) == more("predict_queue_seconds_count", bundle=name) == 1
    assert more("http_requests_total", method="POST", route="/v1/predict", status="503") == 1
    assert more("http_requests_total", method="GET", route="/v1/bundles/<name>", status="200") == 1
    assert more("http_requests_total", method="GET", route="unmatched", status="404") == 2
    assert more("http_request_seconds_count", method="POST", route="/v1/select") == 3
    assert value(after, "sessions_open", bundle=name) >= 1
    assert value(after, "session_pool_bytes", bundle=name) > 0
    assert value(after, "slow_down_ratio", bundle=name, device="test-device") > 0
    assert value(after, "predict_queue_length") == value(after, "predict_running") == 0
    assert after["process_resident_memory_bytes", frozenset()] > 1e6


def test_several_workers_answer_for_all(bundle_path: Path, bundle: Bundle, body: bytes, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path, options=("--workers", "2")) as server:
        asked = 30
        for _ in range(asked):
            assert server.post("/v1/select", {}).status == 200
            assert send(server, "/v1/predict", body, Content_Type=NPY).status == 200
        found = scraped(server)
        assert value(found, "select_requests_total", bundle=bundle.name, feasible="yes") == asked
        assert value(found, "predict_requests_total", bundle=bundle.name) == asked
        assert value(found, "predict_run_seconds_count", bundle=bundle.name) == asked
        assert value(found, "sessions_open", bundle=bundle.name) >= 1
        assert not any("pid" in dict(labels) for _, labels in found)
        processes = {server.get(f"/v1/bundles/{bundle.name}/runtime").document["process"] for _ in range(asked)}
        assert 1 <= len(processes) <= 2
        assert server.get(f"/v1/bundles/{bundle.name}/runtime").document["workers"] == 2
    left = re.findall(r"Traceback|SIGABRT|terminate called", server.log.read_text())
    assert not left


def test_labels_of_submodels_are_bounded() -> None:
    metrics = Metrics()
    for number in range(2 * SUBMODELS):
        metrics.selected("bundle", Selection(f"w{number}", True, 0.9, 1.0, None, None, "", "device"))
    found = samples(metrics.text()[0].decode())
    chosen = {dict(labels)["submodel"]: count for (name, labels), count in found.items() if name.endswith("submodels_total")}
    assert len(chosen) == SUBMODELS + 1
    assert chosen["other"] == SUBMODELS


def test_a_worker_that_is_not_asked_shows_its_sessions_and_battery_too(
    bundle_path: Path, images: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whichever worker answers `/metrics` shows the others as they left their gauges."""
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "digits"))
    profile = bundle.profile(DEVICE)
    one = dict(list(profile.submodels.items())[:1])  # it has no neighbours that would be opened too, sooner or later
    write_profile(profile.model_copy(update={"submodels": one}), bundle.path / "profiles" / f"{DEVICE}.json")
    monkeypatch.setattr(Runtime, "battery", lambda runtime: Battery(percent=37))
    metrics = Metrics()
    predictor = Predictor(PredictOptions(), metrics)
    predictor.predict(bundle, PredictQuery(), {bundle.manifest.inputs[0].name: images[:1]}, time.monotonic())
    found = samples(metrics.text()[0].decode())
    assert value(found, "sessions_open", bundle=bundle.name) == 1
    assert value(found, "battery_ratio", bundle=bundle.name) == pytest.approx(0.37)


def every_name() -> set[str]:
    """What the service can expose, whether or not it has happened yet."""
    metrics = Metrics()
    metrics.answered("GET", "/", 200, 0.1)
    metrics.waited(0.1)
    metrics.selected("bundle", Selection("w1", True, 0.9, 1.0, None, None, "", "device"))
    metrics.ran("bundle", "w1", 1, 0.1, 0.1, True)
    for reason in REASONS:
        metrics.refused("bundle", reason)
        metrics.text_refused("bundle", reason)
    metrics.generated("bundle", "w1", 9, "stop", 0.1, 0.1, 30.0)
    metrics.texts(1, 1)
    metrics.load(1, 1)
    metrics.sessions("bundle", 1, 1.0)
    metrics.slow_down("bundle", "device", 1.0)
    metrics.battery("bundle", 80.0)
    return names(samples(metrics.text()[0].decode()))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) >= 10
    known = every_name()
    for expression in expressions:
        asked = set(re.findall(r"\b(?:sortednet|process)_[a-z_]+\b", expression))
        assert asked, expression
        assert asked <= known, expression
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) - {"__rate_interval"}
    assert used <= variables
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_has_a_unit_or_counts_something() -> None:
    endings = (
        "_total",
        "_bucket",
        "_count",
        "_sum",
        "_bytes",
        "_seconds",
        "_per_second",
        "_ratio",
        "_length",
        "_running",
        "_open",
    )
    own = {name for name in every_name() if name.startswith("sortednet_")}
    assert own
    assert all(name.endswith(endings) for name in own), own
    assert np.all([name.islower() for name in own])


def test_the_service_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine has no systemd-analyze")
    unit = (DEPLOY / "sortednet.service").read_text()
    checked = tmp_path / "sortednet.service"
    checked.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit, flags=re.MULTILINE))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", checked], capture_output=True, text=True)
    said = [line for line in result.stderr.splitlines() if "sortednet" in line]
    assert (result.returncode, said) == (0, [])


def test_deployed_commands_are_those_of_the_command_line() -> None:
    import typer

    import sortednet

    serve = typer.main.get_command(sortednet.app).commands["serve"]  # type: ignore[attr-defined]
    options = {option for parameter in serve.params for option in (*parameter.opts, *parameter.secondary_opts)}
    docs = DEPLOY.parent / "docs" / "service.md"
    for file in (DEPLOY / "sortednet.service", DEPLOY / "Containerfile"):
        for line in re.findall(r"^(?:ExecStart=|CMD |ENTRYPOINT ).*$", file.read_text(), flags=re.MULTILINE):
            assert set(re.findall(r"(?<![\w-])--[a-z-]+", line)) <= options, line
    (runtime,) = re.findall(r"^ +args: .*$", (DEPLOY / "kserve.yaml").read_text(), flags=re.MULTILINE)
    asked = set(re.findall(r"(?<![\w-])--[a-z-]+", runtime))
    assert asked
    assert asked <= options
    documented = set(re.findall(r"^\| `(--[a-z-]+)", docs.read_text(), flags=re.MULTILINE))
    assert documented
    assert documented <= options
