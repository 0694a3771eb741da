"""The device's own memory bounds the sessions: closed when it gets short, opened again when it is back, runs undisturbed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from device_profiles import write_profile
from exporter.bundle import Bundle
from selector import Budget, BudgetError, Runtime
from selector.adapt.memory import MemoryGuard, default_reserve_mb
from selector.adapt.sensors import Sensor, Sensors
from selector.run.pool import SessionPool
from tests.conftest import DEVICE
from tests.helpers.pools import MEMORY
from tests.helpers.runtimes import images, stock, submodels_of, with_memory


class Device:
    """A device whose memory is what it is set to; `tick` lets time pass, the sensors reading once a second."""

    def __init__(self, available_mb: float | None = 1000.0) -> None:
        self.available: float | None = available_mb
        self.pressure: float | None = None
        self.now = 0.0
        self.sensors = Sensors(
            [
                Sensor("memory_available", lambda: self.available, "MB", 1.0, 0.0),
                Sensor("memory_pressure", lambda: self.pressure, "share", 1.0, 0.0, 1.0),
            ]
        )
        self.sensors.start = lambda: None  # type: ignore[method-assign]  # the test reads

    def tick(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.sensors.read_due(self.now)


def runtime_on(device: Device, path: Path, **options: object) -> Runtime:
    given = {"battery": lambda: None, "feedback": False, "load_ahead": False, "cache": False, "memory_reserve_mb": 100}
    return Runtime(path, sensors=device.sensors, **{**given, **options})  # type: ignore[arg-type]


@pytest.fixture
def tens(ranked: Path) -> Path:
    """The n-th most accurate takes n ms and 10 n MB."""
    with_memory(ranked, {name: 10.0 * n for n, name in enumerate(submodels_of(ranked), start=1)})
    return ranked


def chosen(runtime: Runtime) -> float | None:
    """How accurate the chosen one is by the bundle: two may be equally accurate, and then either is right."""
    result = runtime.run(images(1), Budget(latency_ms=6))
    assert result.outputs["logits"].shape == (1, 10)
    return result.selection.accuracy


def accuracies(path: Path) -> list[float]:
    return sorted(accuracy for accuracy in Bundle(path).accuracies.values() if accuracy is not None)


def test_sessions_are_closed_when_memory_gets_short_and_opened_again_when_it_is_back(tens: Path) -> None:
    names, device = submodels_of(tens), Device()
    runtime = runtime_on(device, tens)
    for name in (names[0], names[1], names[2], names[5]):
        runtime.program(name)
    device.tick()
    assert runtime.pool.memory_used_mb == 120

    device.available = 15.0  # 85 less than is to stay free
    device.tick()
    assert runtime.pool.memory_used_mb <= 35
    result = runtime.run(images(1), Budget(latency_ms=6))
    assert result.selection.accuracy == accuracies(tens)[2]  # the best that fits into 35 MB
    assert "short of memory: at most 35 MB" in result.selection.reason
    assert runtime.pool.memory_used_mb <= 35

    device.available = 110.0  # enough, but with nothing to spare
    device.tick(60)
    assert chosen(runtime) == accuracies(tens)[2]
    device.available = 1000.0
    device.tick(5)
    assert chosen(runtime) == accuracies(tens)[2]  # not yet: it may be short again at once
    device.tick(10)
    assert chosen(runtime) == accuracies(tens)[5]
    assert "memory" not in runtime.run(images(1), Budget(latency_ms=6)).selection.reason
    runtime.close()


def test_a_choice_that_was_being_made_while_memory_got_short_is_not_kept(tens: Path) -> None:
    device = Device()
    runtime = runtime_on(device, tens, feedback=True)
    assert runtime.controller is not None
    real = runtime.controller.selector.select

    def select(*given: object, **options: object) -> object:
        found = real(*given, **options)  # type: ignore[arg-type]
        device.available = 0.0
        device.tick()
        return found

    runtime.controller.selector.select = select  # type: ignore[method-assign, assignment]
    budget = Budget(latency_ms=1000)
    runtime.select(budget)
    assert runtime.select(budget).accuracy == accuracies(tens)[0]
    runtime.close()


def test_with_no_room_at_all_the_least_runs_and_nothing_is_raised(tens: Path) -> None:
    names, device = submodels_of(tens), Device(available_mb=0.0)
    runtime = runtime_on(device, tens, memory_mb=45)
    device.tick(5)
    for budget in (Budget(), Budget(latency_ms=6), Budget(min_accuracy=0.999), Budget(memory_mb=1), Budget(energy_mj=1)):
        assert runtime.run(images(1), budget).selection.submodel == names[0]
    device.available = 1000.0
    device.tick(700)
    assert chosen(runtime) == accuracies(tens)[3]  # what was allowed from the start, and no more
    assert runtime.pool.memory_mb == 45
    runtime.close()


def test_it_is_bounded_without_a_profile_too(tens: Path) -> None:
    import shutil

    shutil.rmtree(tens / "profiles")
    device = Device()
    runtime = runtime_on(device, tens, memory_reserve_mb=1)
    best = runtime.run(images(1)).selection.submodel
    device.available = 0.0
    device.tick(3)
    least = runtime.run(images(1)).selection.submodel
    assert runtime.bundle.submodels[least].params < runtime.bundle.submodels[best].params
    runtime.close()


def test_the_least_that_was_measured_may_always_be_opened(tens: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The smallest are not in the profile, so that they are never chosen."""
    names = submodels_of(tens)
    profile = Bundle(tens).profile(DEVICE)
    measured = {name: profile.submodels[name] for name in names[2:]}
    write_profile(profile.model_copy(update={"submodels": measured}), tens / "profiles" / f"{DEVICE}.json")
    device = Device()
    runtime = runtime_on(device, tens)
    device.available = 0.0
    device.tick(3)
    assert runtime.pool.memory_mb == 30
    assert chosen(runtime) == accuracies(tens)[2]
    device.available = 1000.0
    device.tick(700)
    assert chosen(runtime) == accuracies(tens)[5]
    runtime.close()
    assert caplog.records == []
    with pytest.raises(BudgetError, match="memory_mb = 15: no sub-model fits; the smallest takes 30 MB"):
        runtime_on(device, tens, memory_mb=15)


def test_a_run_in_flight_is_finished_by_its_own_session(tens: Path) -> None:
    device = Device()
    runtime = runtime_on(device, tens)
    inputs = images(3)
    best = runtime.select(Budget(latency_ms=6)).submodel
    program = runtime.program(best)
    running, go_on = threading.Event(), threading.Event()

    class Slow:
        def run(self, *given: object) -> object:
            running.set()
            assert go_on.wait(30)
            return program.run(*given)  # type: ignore[arg-type]

    key = next(key for key in runtime.pool.loaded if key[0] == best)
    runtime.pool._sessions = {key: Slow()}
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(runtime.run(inputs, Budget(latency_ms=6))))
    thread.start()
    assert running.wait(30)
    device.available = 0.0
    device.tick(3)
    runtime.pool.settle()
    assert not runtime.pool.loaded
    go_on.set()
    thread.join()
    assert found[0].selection.submodel == best  # type: ignore[attr-defined]
    expected = stock(runtime.bundle, best, inputs)
    np.testing.assert_allclose(found[0].outputs["logits"], expected, rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]
    runtime.close()


def test_the_pools_limit_is_kept_while_many_threads_open_sessions() -> None:
    pool: SessionPool[str] = SessionPool(str.upper, MEMORY.__getitem__)

    def switch(names: str) -> None:
        for _ in range(200):
            for name in names:
                assert pool.load(name) == name.upper()

    threads = [threading.Thread(target=switch, args=(names,)) for names in ("abcd", "dcba")]
    for thread in threads:
        thread.start()
    for limit in (60.0, 40.0, 100.0, 45.0) * 20:
        pool.limit(limit)
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert pool.memory_used_mb <= 45
    pool.limit(20.0)
    assert pool.memory_used_mb <= 20
    pool.close()


def test_a_limit_that_falls_while_a_session_is_opened_leaves_that_one_alone() -> None:
    gate, opening = threading.Event(), threading.Event()

    def opened(name: str) -> str:
        if name == "d":
            opening.set()
            assert gate.wait(30)
        return name.upper()

    pool: SessionPool[str] = SessionPool(opened, MEMORY.__getitem__)
    for name in "ab":
        pool.load(name)
    pool.load_ahead(["d"])
    assert opening.wait(30)
    pool.limit(35.0)
    assert not pool.loaded
    gate.set()
    pool.settle()
    assert set(pool.loaded) == {"d"}  # which takes 40: more than the limit, but somebody has asked for it
    pool.close()


def test_memory_that_comes_and_goes_does_not_make_the_limit_flutter() -> None:
    """A neighbour takes 300 MB for five seconds of every half minute, for two hours."""
    guard = MemoryGuard(400.0, 100.0)
    limits = []
    for second in range(7200):
        busy = second % 30 < 5
        used = min(guard.limit_mb, 200.0)
        limits.append(guard.update(used, 300.0 - used - (250.0 if busy else 0.0) + 50.0, None, float(second)))
    raised = sum(b > a for a, b in pairwise(limits))
    assert raised <= 12
    assert min(limits) >= 0.0


def test_the_pressure_of_a_control_group_that_is_full_by_itself_closes_nothing() -> None:
    guard = MemoryGuard(400.0, 100.0)
    assert guard.update(200.0, 5000.0, 0.9, 0.0) == 400.0
    assert guard.update(200.0, 300.0, 0.9, 1.0) == 150.0  # a quarter of what is used
    assert guard.update(150.0, 300.0, 0.9, 2.0) == 150.0  # a mean over ten seconds, still of before
    assert guard.update(150.0, 300.0, 0.9, 12.0) == 112.5


@pytest.mark.parametrize("available", [None, float("nan"), -1.0, float("inf")])
def test_a_reading_that_is_none_changes_nothing(available: float | None, tens: Path) -> None:
    device = Device()
    runtime = runtime_on(device, tens)
    device.available = available
    device.tick(3)
    assert chosen(runtime) == accuracies(tens)[5]
    runtime.close()


def test_a_sensor_that_disappears_leaves_the_limit_as_it_was(tens: Path) -> None:
    device = Device(available_mb=0.0)
    runtime = runtime_on(device, tens)
    device.tick(3)
    device.available = None
    device.tick(300)
    assert chosen(runtime) == accuracies(tens)[0]
    runtime.close()


def test_no_run_waits_for_a_sensor_that_blocks(tens: Path) -> None:
    released, blocked = threading.Event(), threading.Event()

    def block() -> float:
        blocked.set()
        released.wait(30)
        return 1.0

    sensors = Sensors([Sensor("stuck", block), Sensor("memory_available", lambda: 1000.0)])
    runtime = Runtime(tens, sensors=sensors, battery=lambda: None, cache=False)
    assert blocked.wait(30)
    assert chosen(runtime) == accuracies(tens)[5]  # with the sensor still waiting
    assert not released.is_set()
    assert runtime.sensors.values() == {"stuck": None, "memory_available": None}
    released.set()
    sensors.stop()
    runtime.close()


def test_the_default_sensors_are_shared_and_can_be_switched_off(tens: Path) -> None:
    first, second = (Runtime(tens, battery=lambda: None, cache=False) for _ in range(2))
    assert first.sensors is second.sensors
    for _ in range(1000):
        if first.sensors.value("memory_available") is not None:
            break
        time.sleep(0.01)
    assert (first.sensors.values()["memory_available"] or 0.0) > 0
    off = Runtime(tens, battery=lambda: None, cache=False, sensors=False)
    assert off.sensors.values() == {}
    for runtime in (first, second, off):
        runtime.close()


def test_sensors_do_not_keep_a_runtime_alive(tens: Path) -> None:
    device = Device()
    runtime = runtime_on(device, tens)
    assert len(device.sensors.after) == 1
    gone = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert gone() is None
    assert device.sensors.after == []
    closed = runtime_on(device, tens)
    closed.close()
    assert device.sensors.after == []


def test_a_reserve_that_is_none_is_refused(tens: Path) -> None:
    for reserve in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BudgetError, match=r"memory_reserve_mb = .*: allowed are finite values from 0"):
            Runtime(tens, memory_reserve_mb=reserve)
    assert 0 < default_reserve_mb() <= 512
