"""Profiles: what a file may say, whose it is, and the harness that measures (with a clock of the test's own)."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

import device_profiles
import sortednet
from device_profiles import (
    DeviceInfo,
    LatencyMs,
    Measurement,
    Profile,
    ProfileError,
    default_device_name,
    describe_device,
    measure,
    read_profile,
    write_profile,
)
from exporter.bundle import Bundle, BundleError
from tests.conftest import DEVICE

COMMITTED = sorted(Path(device_profiles.__file__).parent.glob("*.json"))

positive = st.floats(min_value=1e-9, max_value=1e12)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # a lone surrogate is no text
count = st.integers(1, 10**9)
latency = st.builds(
    lambda percentiles, mean, n: LatencyMs(
        **dict(zip(("p50", "p90", "p99"), sorted(percentiles), strict=True)), mean=mean, n=n
    ),
    st.tuples(positive, positive, positive),
    positive,
    count,
)


def measurement(latency_ms: LatencyMs, figures: dict[str, float], source: str) -> Measurement:
    return Measurement(latency_ms=latency_ms, **figures, source=dict.fromkeys(["latency_ms", *figures], source))


profiles = st.builds(
    Profile,
    device=st.builds(
        DeviceInfo,
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True),
        cpu=text,
        cores=count,
        threads=count,
        ram_mb=count,
        os=text,
        onnxruntime=text,
        execution_provider=text,
        label=text,
    ),
    bundle=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    measured_at=st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30))])),
    submodels=st.dictionaries(
        text,
        st.builds(
            measurement,
            latency,
            st.dictionaries(st.sampled_from(["load_ms", "memory_mb", "energy_mj"]), st.floats(min_value=0, max_value=1e12)),
            st.sampled_from(["measured", "predicted", "declared"]),
        ),
        min_size=1,
        max_size=3,
    ),
)


@settings(deadline=None)
@given(profiles)
def test_what_is_written_is_read_again(profile: Profile) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "profiles" / "device.json"
        write_profile(profile, path)
        assert read_profile(path) == profile
        assert [entry.name for entry in path.parent.iterdir()] == ["device.json"]


def test_a_profile_that_cannot_be_written_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine.json").mkdir()
    with pytest.raises(ProfileError, match=r"mine\.json.*cannot be written"):
        write_profile(bundle.profile(DEVICE), tmp_path / "mine.json")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such thing here")
def test_cores_are_those_that_this_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from device_profiles.host import physical_cores; print(physical_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def document() -> dict[str, Any]:
    """A whole profile, as JSON values."""
    return {
        "device": describe_device(name="x", onnxruntime="1", execution_provider="CPUExecutionProvider").model_dump(),
        "bundle": "a" * 64,
        "measured_at": datetime.now(UTC).isoformat(),
        "submodels": {
            "s": {
                "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0, "mean": 1.5, "n": 10},
                "load_ms": 1.0,
                "memory_mb": 2.0,
                "energy_mj": None,
                "source": {"latency_ms": "measured", "load_ms": "measured", "memory_mb": "measured"},
            }
        },
    }


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("submodels.s.latency_ms.p90", 0.5, "submodels.s.latency_ms: .*p50 1.0, p90 0.5"),
        ("submodels.s.latency_ms.p50", float("nan"), "submodels.s.latency_ms.p50"),
        ("submodels.s.latency_ms.mean", 0.0, "submodels.s.latency_ms.mean"),
        ("submodels.s.load_ms", -1.0, "submodels.s.load_ms"),
        ("submodels.s.energy_mj", 5.0, "submodels.s: .*source names"),
        ("submodels.s.source.energy_mj", "measured", "submodels.s: .*source names"),
        ("submodels.s.source.load_ms", "guessed", "submodels.s.source.load_ms"),
        ("submodels", {}, "submodels"),
        ("device.name", "../up", "device.name"),
        ("device.threads", 0, "device.threads"),
        ("bundle", "abc", "bundle"),
        ("measured_at", "2026-01-01T00:00:00", "measured_at"),
    ],
)
def test_a_figure_that_makes_no_sense_is_refused_by_file_and_field(tmp_path: Path, place: str, value: Any, named: str) -> None:
    whole = document()
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(whole))
    read_profile(path)

    *above, last = place.split(".")
    target = whole
    for key in above:
        target = target[key]
    target[last] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(ProfileError, match=rf"phone\.json.*{named}"):
        read_profile(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", json.dumps(document()).encode()[:-20]])
def test_a_damaged_file_is_named(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "phone.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"phone\.json"):
        read_profile(path)
    with pytest.raises(BundleError, match=r"phone\.json"):
        bundle.profile(path)
    with pytest.raises(ProfileError, match=r"missing\.json"):
        read_profile(tmp_path / "missing.json")


def test_a_profile_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = bundle.profile(DEVICE).model_copy(update={"bundle": "0" * 64})
    path = tmp_path / "phone.json"
    write_profile(other, path)
    with pytest.raises(BundleError, match=r"phone\.json.*another bundle"):
        bundle.profile(path)
    for command in (["select"], ["inspect"], ["report", "--out", str(tmp_path / "x.html")]):
        result = CliRunner().invoke(sortednet.app, [command[0], str(bundle.path), *command[1:], "--device", str(path)])
        assert result.exit_code == 2
        assert "another bundle" in result.stderr


def test_a_profile_with_a_submodel_that_the_bundle_lacks_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    whole = bundle.profile(DEVICE)
    write_profile(whole.model_copy(update={"submodels": {"w9": whole.submodels["w1.00-d2"]}}), tmp_path / "phone.json")
    with pytest.raises(BundleError, match="'w9'"):
        bundle.profile(tmp_path / "phone.json")


class Device:
    """Sub-models that take as long as `ms` says, on a clock that nothing else moves, and 5 MB while they are open."""

    def __init__(self, ms: dict[str, float]) -> None:
        self.ms, self.now = ms, 0.0
        self.loads: list[str] = []
        self.opened: list[weakref.ref[Any]] = []
        self.runs: Counter[str] = Counter()

    def load(self, name: str) -> Callable[[], object]:
        assert self.still_open() == [], "the sub-model before is still in memory"
        self.loads.append(name)
        self.now += 0.007

        def run() -> None:
            self.runs[name] += 1
            self.now += self.ms[name] / 1e3

        self.opened.append(weakref.ref(run))
        return run

    def still_open(self) -> list[Any]:
        return [run for ref in self.opened if (run := ref()) is not None]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device({"a": 1.0, "b": 2.0, "c": 30.0})
    harness = importlib.import_module("device_profiles.harness")  # the package hands on the function of the same name
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: found.now))
    monkeypatch.setattr(harness, "private_memory_mb", lambda: 100.0 + 5.0 * len(found.still_open()))
    return found


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 5, 6, 7, 11, 23, 50])
def test_as_many_runs_as_asked_for_are_timed(device: Device, repeats: int) -> None:
    measured = measure(device.load, ["a", "b"], repeats=repeats, show_progress=False)
    assert {name: m.latency_ms.n for name, m in measured.items()} == {"a": repeats, "b": repeats}


def test_rounds_are_interleaved_and_only_one_submodel_is_open_at_a_time(device: Device) -> None:
    measure(device.load, ["a", "b", "c"], repeats=20, show_progress=False)
    rounds = [device.loads[i : i + 3] for i in range(0, len(device.loads), 3)]
    assert len(rounds) > 1
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1  # and in another order each time
    assert all(runs >= 20 for runs in device.runs.values())


@pytest.mark.parametrize("repeats", [None, 10])
def test_figures_are_those_of_the_clock(device: Device, repeats: int | None) -> None:
    measured = measure(device.load, ["a", "b", "c"], repeats=repeats, show_progress=False)
    for name, m in measured.items():
        expected = pytest.approx(device.ms[name], abs=1e-4)
        assert (m.latency_ms.p50, m.latency_ms.p90, m.latency_ms.p99, m.latency_ms.mean) == (expected,) * 4
        assert m.load_ms == pytest.approx(7.0, abs=1e-2)
        assert (m.memory_mb, m.energy_mj) == (5.0, None)
        assert m.source == dict.fromkeys(["latency_ms", "load_ms", "memory_mb"], "measured")


def test_where_the_system_does_not_tell_memory_there_is_no_figure(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["device_profiles.harness"], "private_memory_mb", lambda: None)
    (found,) = measure(device.load, ["a"], repeats=2, show_progress=False).values()
    assert found.memory_mb is None
    assert set(found.source) == {"latency_ms", "load_ms"}


def test_a_submodel_that_becomes_twice_as_slow_shows_it(device: Device) -> None:
    before = measure(device.load, ["a", "b"], show_progress=False)
    device.ms["b"] *= 2
    after = measure(device.load, ["a", "b"], show_progress=False)
    assert after["b"].latency_ms.p50 == pytest.approx(2 * before["b"].latency_ms.p50)
    assert after["a"].latency_ms.p50 == before["a"].latency_ms.p50


def test_an_unsteady_submodel_is_measured_longer_than_a_steady_one(device: Device) -> None:
    def load(name: str) -> Callable[[], object]:
        device.ms["b"] = 1.0 + device.loads.count("b") % 2  # every other round takes twice as long
        return device.load(name)

    measured = measure(load, ["a", "b"], show_progress=False)
    assert measured["b"].latency_ms.n > measured["a"].latency_ms.n


@pytest.mark.parametrize("threads", [None, 1, 64])
def test_this_device_has_a_name_that_a_profile_accepts(threads: int | None) -> None:
    name = default_device_name(threads)
    info = describe_device(threads=threads, onnxruntime="1", execution_provider="CPUExecutionProvider")
    assert (info.name, info.threads) == (name, threads or info.cores)
    with pytest.raises(ValidationError):
        describe_device(name="no/name", onnxruntime="1", execution_provider="CPUExecutionProvider")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_profile_is_valid_and_named_after_its_device(path: Path) -> None:
    assert read_profile(path).device.name == path.stem
