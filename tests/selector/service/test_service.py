"""The REST service as a client meets it: a real server process on loopback, and urllib."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sortednet
from device_profiles import read_profile, write_profile
from tests.conftest import DEVICE, taking
from tests.helpers.server import ENDS_WITHIN_S, Server, problem, serving

MAX_BODY_BYTES = 1024 * 1024


@pytest.fixture(scope="module")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("service") / "log", bundle_path) as found:
        yield found


def printed(*arguments: str | Path) -> Any:
    """The document that a command prints."""
    return json.loads(CliRunner().invoke(sortednet.app, [*map(str, arguments), "--json"]).stdout)


def test_it_says_that_it_is_alive_and_ready(server: Server, bundle_path: Path) -> None:
    assert server.get("/healthz")[:2] == (200, "application/json")
    ready = server.get("/readyz")
    assert (ready.status, ready.document["bundles"]) == (200, [bundle_path.name])


def test_it_lists_bundles_and_shows_one_as_inspect_does(server: Server, bundle_path: Path) -> None:
    (listed,) = server.get("/v1/bundles").document["bundles"]
    inspected = printed("inspect", bundle_path)
    assert (listed["name"], listed["devices"]) == (bundle_path.name, [DEVICE])
    assert (listed["submodels"], listed["bytes_total"]) == (len(inspected["submodels"]), inspected["bytes_total"])
    assert server.get(f"/v1/bundles/{bundle_path.name}").document == inspected


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, []),
        ({"budget": {"latency_ms": 1000}}, ["--latency-ms", "1000"]),
        (
            {"device": DEVICE, "budget": {"memory_mb": 1e6, "percentile": 90, "objective": "latency", "min_accuracy": 0.2}},
            ["--device", DEVICE, "--memory-mb", "1e6", "--percentile", "90", "--objective", "latency", "--min-accuracy", "0.2"],
        ),
        ({"battery": {"percent": 10, "discharging": True}}, ["--battery", "10", "--discharging"]),
        ({"battery": {"percent": 10, "discharging": False}}, ["--battery", "10"]),
        ({"budget": {"latency_ms": 1e-6}}, ["--latency-ms", "1e-6"]),
        ({"budget": {"energy_mj": 5}}, ["--energy-mj", "5"]),
    ],
)
def test_select_answers_what_the_command_line_answers(
    server: Server, bundle_path: Path, body: dict[str, Any], options: list[str]
) -> None:
    answer = server.post("/v1/select", body)
    assert answer[:2] == (200, "application/json")
    assert answer.document == printed("select", bundle_path, *options)


def test_nothing_fits_is_an_answer_with_the_nearest_submodel(server: Server) -> None:
    answer = server.post("/v1/select", {"budget": {"latency_ms": 1e-6}})
    assert (answer.status, answer.document["feasible"]) == (200, False)
    assert "nothing fits" in answer.document["reason"]


def test_a_wrong_path_or_method_is_a_problem(server: Server) -> None:
    problem(server.get("/v2/bundles"), 404)
    refused = server.get("/v1/select", method="DELETE")
    problem(refused, 405)
    assert "POST" in refused.headers["Allow"]
    assert "'nope'" in problem(server.get("/v1/bundles/nope"), 404)["detail"]


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        (b"no json", "", None),
        (b"", "", None),
        (b"[" * 5000, "", None),
        (b"[1]", "", None),
        (b'{"budget": {"latency_ms": NaN}}', "budget.latency_ms", "nan"),
        (b'{"budget": {"latency_ms": -Infinity}}', "budget.latency_ms", "-inf"),
        (b'{"budget": {"latency_ms": "\xff"}}', "", None),
        ({"budget": {"latency_ms": -1.5}}, "budget.latency_ms", -1.5),
        ({"budget": {"plan": {"per_hour": 60, "for_hours": 2}}}, "budget.plan", None),
        ({"budget": {"latency_ms": "5"}}, "budget.latency_ms", "5"),
        ({"budget": {"min_accuracy": 96}}, "budget.min_accuracy", 96),
        ({"budget": {"percentile": 99.9}}, "budget.percentile", 99.9),
        ({"budget": {"latencyms": 5}}, "budget.latencyms", 5),
        ({"budgets": 5}, "budgets", 5),
        ({"battery": {"percent": 101}}, "battery.percent", 101),
        ({"battery": {"percent": "15"}}, "battery.percent", "15"),
        ({"battery": {"percent": 15, "discharging": "yes"}}, "battery.discharging", "yes"),
        ({"device": "../x"}, "device", "../x"),
        ({"device": "x" * 200}, "device", "x" * 200),
    ],
)
def test_a_body_that_fits_no_schema_is_a_problem_naming_field_and_value(
    server: Server, body: Any, field: str, value: Any
) -> None:
    (error,) = problem(server.post("/v1/select", body), 422)["errors"]
    assert (error["field"], error["value"]) == (field, value)
    assert error["message"]


def test_an_unknown_bundle_or_device_is_a_problem_that_lists_what_there_is(server: Server, bundle_path: Path) -> None:
    unknown = problem(server.post("/v1/select", {"bundle": "nope"}), 404)["detail"]
    assert "'nope'" in unknown
    assert bundle_path.name in unknown
    unknown = problem(server.post("/v1/select", {"device": "phone"}), 404)["detail"]
    assert "'phone'" in unknown
    assert DEVICE in unknown


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    fits = b'{"budget": {}}'.ljust(MAX_BODY_BYTES)
    assert server.post("/v1/select", fits).status == 200
    problem(server.post("/v1/select", fits + b" "), 413)
    problem(server.post("/v1/select", iter([fits, b"no end"])), 413)  # sent in chunks, its length unannounced


def test_several_bundles_need_a_name_and_new_profiles_are_seen(bundle_path: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(bundle_path, one)
    shutil.copytree(bundle_path, two)
    with serving(tmp_path / "log", one, two) as server:
        assert [bundle["name"] for bundle in server.get("/v1/bundles").document["bundles"]] == ["one", "two"]
        (error,) = problem(server.post("/v1/select", {}), 422)["errors"]
        assert error["field"] == "bundle"
        assert "one, two" in error["message"]
        assert server.post("/v1/select", {"bundle": "two"}).document["device"] == DEVICE

        phone = {"bundle": "two", "device": "phone"}
        problem(server.post("/v1/select", phone), 404)
        profile = read_profile(two / "profiles" / f"{DEVICE}.json")
        device = profile.device.model_copy(update={"name": "phone"})
        for ms in (5.0, 7.0):  # a new device, then the same one measured again
            remade = taking(profile, ms).model_copy(update={"device": device})
            write_profile(remade, two / "profiles" / "phone.json")
            answer = server.post("/v1/select", phone).document
            assert (answer["device"], answer["latency_ms"]) == ("phone", ms)


def test_a_device_is_a_name_and_no_file_of_the_server(server: Server, bundle_path: Path) -> None:
    shutil.copy(bundle_path / "profiles" / f"{DEVICE}.json", server.log.parent / "stray.json")  # where the server runs
    problem(server.post("/v1/select", {"device": "stray.json"}), 404)


def test_it_serves_on_an_ipv6_address(bundle_path: Path, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(tmp_path / "log", bundle_path, host="::1") as server:
        assert server.get("/healthz").status == 200


def test_sigterm_ends_the_server_in_order(bundle_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path) as server:
        assert server.post("/v1/select", {}).status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(ENDS_WITHIN_S) == 0
        with pytest.raises(urllib.error.URLError):
            server.get("/healthz")
    log = server.log.read_text()
    assert "terminate called" not in log  # its worker ended by itself too
    assert "SIGABRT" not in log
    assert "Traceback" not in log


def test_two_bundles_of_one_name_and_a_damaged_bundle_are_not_served(bundle_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle_path, damaged)
    (damaged / "models" / "weights.bin").write_bytes(b"")
    for bundles, named in (([bundle_path, bundle_path], repr(bundle_path.name)), ([damaged], "models/weights.bin")):
        result = CliRunner().invoke(sortednet.app, ["serve", *map(str, bundles)])
        assert result.exit_code == 2
        assert named in result.stderr
