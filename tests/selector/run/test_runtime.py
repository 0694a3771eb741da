"""`Runtime` on the device: the graph's own numbers, what was chosen, refused inputs, the battery, missing profiles."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from device_profiles import default_device_name, write_profile
from exporter.bundle import Bundle, BundleError
from selector import Battery, Budget, BudgetError, Runtime, Selector, find_profile, profile_bundle, read_battery
from selector.adapt.quiet import fitted
from selector.choose.profiles import find_profiles
from selector.run.pool import SessionPool
from tests.conftest import DEVICE
from tests.helpers.runtimes import INPUT, OUTPUT, images, runtime_of, stock, text_bundle, unmeasured


def test_outputs_are_those_of_stock_onnx_runtime_on_the_chosen_graph(ranked: Path) -> None:
    runtime, inputs = runtime_of(ranked), images(3)
    chosen = set()
    for limit in range(1, 7):
        result = runtime.run({INPUT: inputs}, Budget(latency_ms=limit))
        chosen.add(result.selection.submodel)
        assert result.selection.feasible
        assert result.selection.latency_ms <= limit
        assert list(result.outputs) == [OUTPUT]
        expected = stock(runtime.bundle, result.selection.submodel, inputs)
        np.testing.assert_allclose(result.outputs[OUTPUT], expected, rtol=1e-5, atol=1e-5)
    assert len(chosen) > 2


def test_a_result_says_what_was_chosen_and_how_long_it_took(ranked: Path) -> None:
    runtime = runtime_of(ranked)
    best = max(runtime.bundle.manifest.submodels, key=lambda entry: entry.accuracy)
    result = runtime.run(images(1))
    assert result.selection == runtime.select(Budget())
    assert result.selection.accuracy == best.accuracy
    assert result.selection.device == DEVICE
    assert result.latency_ms > 0

    missed = runtime.run(images(1), Budget(latency_ms=0.5))  # the nearest one runs, and the result says so
    assert (missed.selection.feasible, missed.selection.latency_ms) == (False, 1.0)
    assert missed.outputs[OUTPUT].shape == (1, 10)


def test_without_accuracies_a_measured_bundle_runs_and_a_limit_is_an_error(tmp_path: Path) -> None:
    bundle = text_bundle(tmp_path / "text")
    write_profile(
        profile_bundle(bundle, device=DEVICE, repeats=1, show_progress=False), bundle.path / f"profiles/{DEVICE}.json"
    )
    runtime = Runtime(bundle.path)
    assert runtime.run(np.zeros((1, 6), np.int64)).selection.submodel == "h3-l2"
    with pytest.raises(BudgetError, match="no accuracy is known"):
        runtime.run(np.zeros((1, 6), np.int64), Budget(latency_ms=5))


@pytest.mark.parametrize(
    ("battery", "saves"),
    [(None, False), (Battery(percent=10, discharging=True), True), (Battery(percent=10, discharging=False), False)],
)
def test_a_low_battery_changes_the_choice(ranked: Path, battery: Battery | None, saves: bool) -> None:
    selection = Runtime(ranked, feedback=False, battery=lambda: battery).run(images(1), Budget(min_accuracy=0.0)).selection
    best = max(entry.accuracy for entry in Bundle(ranked).submodels.values())
    assert (selection.latency_ms == 1.0) == saves
    assert (selection.accuracy == best) == (not saves)
    assert ("battery at 10 %" in selection.reason) == saves


def test_what_was_run_is_kept_without_feedback_and_without_a_profile_too(ranked: Path) -> None:
    runtime = runtime_of(ranked, feedback=False)
    runtime.run(images(1), Budget(latency_ms=3))
    runtime.run(images(4))
    assert [(record.device, record.limit_ms, record.slow_down) for record in runtime.history] == [
        (DEVICE, 3, 1.0),
        (DEVICE, None, 1.0),
    ]
    shutil.rmtree(ranked / "profiles")
    runtime = runtime_of(ranked, feedback=True)
    result = runtime.run(images(4))
    (record,) = runtime.history
    assert (record.submodel, record.slow_down, record.met) == (result.selection.submodel, 1.0, True)
    assert record.latency_ms == pytest.approx(result.latency_ms / 4)


def test_a_graph_that_has_gone_is_named(ranked: Path) -> None:
    runtime = runtime_of(ranked, cache=False)
    chosen = runtime.select(Budget()).submodel
    (ranked / "models" / f"{chosen}.onnx").unlink()
    with pytest.raises(BundleError, match=rf"sub-model '{chosen}': cannot be opened"):
        runtime.run(images(1))
    assert runtime.run(images(1), Budget(latency_ms=1)).selection.feasible


def test_a_session_of_what_there_is_none_of_is_an_error_naming_it(ranked: Path) -> None:
    runtime = runtime_of(ranked)
    name = next(iter(runtime.bundle.submodels))
    with pytest.raises(BundleError, match="'w9'"):
        runtime.program("w9")
    with pytest.raises(BudgetError, match=rf"device = 'phone': allowed is {DEVICE}"):
        runtime.program(name, "phone")


def test_a_battery_whose_driver_hangs_stops_no_run(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selector.adapt.battery_reader.WAIT_SECONDS", 0.05)
    asked, released = threading.Semaphore(0), threading.Event()

    def hang() -> Battery:
        asked.release()
        assert released.wait(30)
        return Battery(percent=10, discharging=True)

    runtime = runtime_of(ranked, battery=hang, cache=False)
    for _ in range(50):
        assert "battery" not in runtime.run(images(1)).selection.reason
    assert asked.acquire(timeout=30)
    assert not asked.acquire(blocking=False)  # it is asked once, not by every run
    released.set()
    for _ in range(1000):
        if runtime.battery() is not None:
            break
        time.sleep(0.01)
    assert "battery at 10 %" in runtime.run(images(1)).selection.reason


def test_a_reading_of_the_battery_grows_old(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, charge = [0.0], [Battery(percent=50)]
    monkeypatch.setattr("selector.adapt.battery_reader.seconds", lambda: now[0])
    runtime = runtime_of(ranked, battery=lambda: charge[0], cache=False)
    assert runtime.battery() == Battery(percent=50)
    charge[0], now[0] = Battery(percent=40), 9.0
    assert runtime.battery() == Battery(percent=50)
    now[0] = 11.0
    assert runtime.battery() == Battery(percent=50)  # and is read again meanwhile
    for _ in range(1000):
        if runtime.battery() == Battery(percent=40):
            break
        time.sleep(0.01)
    charge[0] = Battery(percent=35)
    assert runtime.battery() == Battery(percent=40)
    now[0] = 3600.0  # the next run, an hour later
    assert runtime.battery() == Battery(percent=35)
    charge[0], now[0] = 30.0, 7200.0  # type: ignore[assignment]  # a reader of one's own that gives something else
    assert runtime.battery() is None


def test_a_choice_stays_possible_while_every_session_is_being_closed(ranked: Path) -> None:
    """Two profiles, and memory that gets short between two looks at the pool."""
    profile = Bundle(ranked).profile(DEVICE)
    device = profile.device.model_copy(update={"name": "second"})
    write_profile(profile.model_copy(update={"device": device}), ranked / "profiles" / "second.json")
    runtime = Runtime(Bundle(ranked), device=[DEVICE, "second"], battery=lambda: None, sensors=False, cache=False)
    runtime.run(images(1), Budget(latency_ms=1))
    runtime.pool.settle()

    class Emptied(SessionPool[Any]):
        @property
        def loaded(self) -> Any:
            found = super().loaded
            self.limit(0.0)
            return found

    runtime.pool.__class__ = Emptied
    for _ in range(3):
        assert runtime.run(images(1), Budget(latency_ms=6)).selection.feasible


def test_a_runtime_that_was_closed_still_answers(ranked: Path) -> None:
    runtime = Runtime(ranked, battery=lambda: None, sensors=False, cache=False)
    runtime.close()
    runtime.close()
    assert runtime.run(images(1), Budget(latency_ms=3)).selection.feasible
    runtime.pool.limit(0.0)


def test_without_a_profile_the_most_accurate_runs_and_a_limit_is_an_error(bundle_path: Path, tmp_path: Path) -> None:
    runtime = Runtime(unmeasured(bundle_path, tmp_path))
    best = max(entry.accuracy for entry in runtime.bundle.submodels.values())
    result = runtime.run(images(2))
    assert (result.selection.accuracy, result.selection.feasible) == (best, True)
    assert result.selection.latency_ms is None
    np.testing.assert_allclose(
        result.outputs[OUTPUT], stock(runtime.bundle, result.selection.submodel, images(2)), rtol=1e-5, atol=1e-5
    )
    for budget in (Budget(latency_ms=1e6), Budget(objective="latency"), Budget(min_accuracy=0.1)):
        with pytest.raises(BudgetError, match="sortednet profile"):
            runtime.run(images(2), budget)


def test_without_qualities_what_fits_on_the_second_device_alone_runs_there(bundle_path: Path, tmp_path: Path) -> None:
    path = unmeasured(bundle_path, tmp_path, devices=("large", "small"))
    for device, memory_mb in (("large", 500.0), ("small", 6.0)):
        profile = Bundle(path).profile(device)
        submodels = {
            name: costs.model_copy(update={"memory_mb": memory_mb, "source": costs.source | {"memory_mb": "measured"}})
            for name, costs in profile.submodels.items()
        }
        write_profile(profile.model_copy(update={"submodels": submodels}), path / "profiles" / f"{device}.json")
    bundle = Bundle(path)
    bundle.manifest = bundle.manifest.model_copy(
        update={
            "submodels": [
                one.model_copy(update={"quality": None, "accuracy": None, "metrics": {}}) for one in bundle.manifest.submodels
            ]
        }
    )
    bundle.submodels = {one.id: one for one in bundle.manifest.submodels}
    largest = max(bundle.submodels.values(), key=lambda one: one.macs).id
    for limit, device in ((50, "small"), (None, "large")):
        with runtime_of(bundle, device=["large", "small"], memory_mb=limit) as runtime:
            found = runtime.run(images(1)).selection
            assert (found.submodel, found.device) == (largest, device)


def test_with_profiles_of_other_devices_only_the_error_lists_them(bundle_path: Path, tmp_path: Path) -> None:
    path = unmeasured(bundle_path, tmp_path, devices=("phone", "watch"))
    with pytest.raises(BudgetError, match="phone, watch"):
        Runtime(path)
    assert Runtime(path, device="watch").run(images(1)).selection.device == "watch"
    with pytest.raises(BundleError, match=r"'tablet'.*phone, watch"):
        Runtime(path, device="tablet")


def test_two_profiles_of_one_name_are_refused_and_the_same_one_twice_counts_once(ranked: Path, tmp_path: Path) -> None:
    bundle = Bundle(ranked)
    profile, copy, other = bundle.profile(DEVICE), tmp_path / "copy.json", tmp_path / "other.json"
    threads = profile.device.model_copy(update={"threads": profile.device.threads + 1})
    write_profile(profile, copy)
    write_profile(profile.model_copy(update={"device": threads}), other)
    assert find_profiles(bundle, [DEVICE, copy, str(copy)]) == [profile]
    for devices in ([DEVICE, other], [other, DEVICE]):
        with pytest.raises(BudgetError, match="two profiles of the name") as refused:
            Runtime(bundle, device=devices)
        assert all(repr(str(one)) in str(refused.value) for one in devices)
    with pytest.raises(BudgetError, match="allowed is one of each name"):
        Selector([profile, profile], bundle.qualities)


def test_a_profile_of_this_machine_is_preferred_to_others(bundle_path: Path, tmp_path: Path) -> None:
    """However many threads it was measured with: `profile --threads 1` names it so."""
    mine = default_device_name(1)
    path = unmeasured(bundle_path, tmp_path, devices=("phone", mine, "watch"))
    assert Runtime(path).run(images(1)).selection.device == mine


def test_a_machine_of_many_cores_finds_its_profile_without_counting_them_over_and_over(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 128 if logical else 2)
    path = unmeasured(bundle_path, tmp_path, devices=("phone", default_device_name(1), default_device_name(96), "watch"))
    monkeypatch.setattr(
        "selector.choose.profiles.default_device_name", lambda *given: asked.append(given) or default_device_name(*given)
    )
    assert find_profile(Bundle(path)).device.name == default_device_name(96)
    assert len(asked) == 1


def state(percent: Any, power_plugged: bool | None) -> SimpleNamespace:
    return SimpleNamespace(percent=percent, secsleft=-2, power_plugged=power_plugged)


@pytest.mark.parametrize(
    ("sensor", "expected"),
    [
        (None, None),
        (RuntimeError("no driver"), None),
        (state(float("nan"), False), None),
        (state(-5, False), None),
        (state(None, False), None),
        (state(130, False), Battery(percent=100, discharging=True)),
        (state(42, None), Battery(percent=42, discharging=False)),
        (state(42.5, True), Battery(percent=42.5, discharging=False)),
        (state(7, False), Battery(percent=7, discharging=True)),
    ],
)
def test_a_battery_that_talks_nonsense_is_no_battery(
    monkeypatch: pytest.MonkeyPatch, sensor: Any, expected: Battery | None
) -> None:
    def sensors_battery() -> Any:
        if isinstance(sensor, Exception):
            raise sensor
        return sensor

    monkeypatch.setattr(psutil, "sensors_battery", sensors_battery, raising=False)
    assert read_battery() == expected


def test_a_device_without_battery_sensors_runs(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil leaves the function out on systems that it knows no battery of."""
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    outputs: Mapping[str, NDArray[Any]] = Runtime(bundle_path).run(images(1)).outputs
    assert np.isfinite(outputs[OUTPUT]).all()


def test_with_feedback_a_percentile_is_the_median_and_what_is_typical_of_the_device(bundle_path: Path) -> None:
    """The 99th percentile of one sub-model's some hundred runs is little more than the slowest of them."""
    bundle, budget = Bundle(bundle_path), Budget(percentile=99)
    measured = bundle.profile(DEVICE).submodels
    latencies = [one.latency_ms for one in measured.values()]
    tail = fitted([one.p50 for one in latencies], [one.p99 - one.p50 for one in latencies])
    for feedback in (True, False):
        with closing(Runtime(bundle, device=DEVICE, feedback=feedback)) as runtime:
            chosen = runtime.select(budget)
        latency = measured[chosen.submodel].latency_ms
        assert chosen.latency_ms == pytest.approx(latency.p50 * (1 + tail.careful) + tail.stall_ms if feedback else latency.p99)
