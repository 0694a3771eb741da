"""Sensors on directory trees of real machines, and what fails, lies, is slow or absent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selector.adapt.sensors import Sensor, Sensors, default_sensors


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    pressure = tmp_path / "pressure"
    pressure.write_text(
        "some avg10=12.50 avg60=3.11 avg300=0.92 total=5023482\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    for core, now in ((0, 1500000), (1, 900000)):
        frequency = tmp_path / "cpu" / f"cpu{core}" / "cpufreq"
        frequency.mkdir(parents=True)
        (frequency / "cpuinfo_max_freq").write_text("1800000\n")
        (frequency / "scaling_cur_freq").write_text(f"{now}\n")
        throttle = tmp_path / "cpu" / f"cpu{core}" / "thermal_throttle"
        throttle.mkdir()
        (throttle / "core_throttle_count").write_text(f"{core + 1}\n")
    (tmp_path / "cpu" / "cpufreq").mkdir()  # beside the cores there are others
    return pressure, tmp_path / "cpu"


def read(sensors: Sensors, at: float = 0.0) -> dict[str, float | None]:
    sensors.read_due(at)
    return {name: sensors.value(name, at) for name in sensors.sensors}


def test_what_a_linux_machine_tells(machine: tuple[Path, Path]) -> None:
    pressure, cpus = machine
    found = read(Sensors(default_sensors(pressure=pressure, cpus=cpus)))
    assert found["cpu_pressure"] == 0.125
    assert found["cpu_frequency"] == pytest.approx((1500 + 900) / 2 / 1800)
    assert found["throttled"] == 3.0
    assert found["memory_available"] is not None


def test_a_machine_without_any_of_it_reads_none(tmp_path: Path) -> None:
    found = read(Sensors(default_sensors(pressure=tmp_path / "none", cpus=tmp_path / "none")))
    assert (found["cpu_pressure"], found["cpu_frequency"], found["throttled"]) == (None, None, None)


def broken() -> float:
    raise OSError("no such device")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -5.0, 101.0, 1e300, "hot", [3.0], 1 + 2j])
def test_what_cannot_be_is_none(value: Any) -> None:
    sensors = Sensors([Sensor("level", lambda: value, least=0, most=100)])
    assert read(sensors) == {"level": None}


def test_a_sensor_that_fails_stops_nothing_and_is_asked_less_often() -> None:
    asked = []
    sensors = Sensors([Sensor("broken", lambda: asked.append(1) or broken()), Sensor("good", lambda: 1.0)])  # type: ignore[func-returns-value]
    for second in range(100):
        sensors.read_due(float(second))
        assert sensors.value("broken", float(second)) is None
        assert sensors.value("good", float(second)) == 1.0
    assert len(asked) < 10


def test_a_value_grows_old() -> None:
    sensors = Sensors([Sensor("level", lambda: 1.0, every_seconds=2.0)])
    sensors.read_due(0.0)
    assert sensors.value("level", 6.0) == 1.0
    assert sensors.value("level", 8.0) is None
    assert sensors.value("unknown-to-all") is None


def test_a_slow_sensor_is_asked_so_rarely_that_all_stay_within_their_share() -> None:
    def slow() -> float:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return 1.0

    sensors = Sensors([Sensor("slow", slow, every_seconds=0.01)], share=0.01)
    now, end = 0.0, 60.0
    while now < end:
        now += max(sensors.read_due(now), 0.01)
    assert sensors.cpu_seconds <= 0.012 * end
    assert sensors.value("slow", now) == 1.0


@pytest.fixture
def reading() -> Callable[[], int]:
    """How many threads that were started since then read sensors."""
    before = set(threading.enumerate())
    return lambda: sum(thread.name == "sortednet-sensors" for thread in set(threading.enumerate()) - before)


def until(comes_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not comes_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_reads_by_itself_and_stops(reading: Callable[[], int]) -> None:
    sensors = Sensors([Sensor("level", lambda: 3.0, every_seconds=0.01)], share=1.0)
    sensors.start()
    sensors.start()
    until(lambda: sensors.values() == {"level": 3.0})
    assert reading() == 1
    sensors.stop()
    until(lambda: reading() == 0)


def test_it_reads_on_where_it_is_started_at_once_after_a_stop(reading: Callable[[], int]) -> None:
    read: list[float] = []
    sensors = Sensors([Sensor("level", lambda: read.append(1.0) or 3.0, every_seconds=0.01)], share=1.0)
    for _ in range(20):
        sensors.start()
        sensors.stop()
    sensors.start()
    until(lambda: reading() == 1)
    read.clear()
    until(lambda: len(read) > 3)
    sensors.stop()
    until(lambda: reading() == 0)
    read.clear()
    time.sleep(0.1)
    assert read == []


def test_several_threads_that_start_it_start_one_thread(reading: Callable[[], int]) -> None:
    sensors = Sensors([Sensor("level", lambda: 3.0)])
    read_by: set[int] = set()
    sensors.after.append(lambda now: read_by.add(threading.get_ident()))
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        sensors.start()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reading() == 1
    until(lambda: bool(read_by))
    sensors.stop()
    until(lambda: reading() == 0)
    assert len(read_by) == 1


def test_without_sensors_there_is_nothing_to_come_back_for() -> None:
    assert Sensors([]).read_due(5.0) > 0


@pytest.mark.parametrize(
    ("state", "files", "expected"),
    [
        (None, {}, (None, None, None)),
        ((57.0, False), {"power_now": "8500000"}, (57.0, 0.0, 8.5)),
        ((57.0, False), {"voltage_now": "12000000", "current_now": "-500000"}, (57.0, 0.0, 6.0)),
        ((57.0, False), {}, (57.0, 0.0, None)),  # a driver that does not tell
        ((104.0, True), {"status": "Charging", "power_now": "20000000"}, (100.0, 1.0, 0.0)),
        ((57.0, None), {"power_now": "8500000"}, (57.0, None, 8.5)),
        ((float("nan"), None), {"status": "Unknown"}, (None, None, None)),
    ],
)
def test_what_a_battery_tells(
    state: Any, files: dict[str, str], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = None if state is None else SimpleNamespace(percent=state[0], power_plugged=state[1])
    monkeypatch.setattr("psutil.sensors_battery", lambda: found, raising=False)
    if state is not None:
        (tmp_path / "BAT0").mkdir()
        for name, text in ({"type": "Battery", "status": "Discharging"} | files).items():
            (tmp_path / "BAT0" / name).write_text(text + "\n")
    values = read(Sensors(default_sensors(power_supply=tmp_path)))
    assert (values["battery"], values["plugged"], values["discharge"]) == expected


def test_the_load_is_not_known_before_some_time_has_passed() -> None:
    """psutil's first answer is 0, whatever the load."""
    sensors = Sensors(default_sensors())
    assert read(sensors)["cpu_load"] is None
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    found = read(sensors, at=100.0)["cpu_load"]
    assert found is not None
    assert 0.0 <= found <= 1.0


def test_two_of_a_name_and_a_share_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Sensors([Sensor("a", lambda: 1.0), Sensor("a", lambda: 2.0)])
    assert set(Sensors(iter([Sensor("a", lambda: 1.0), Sensor("b", lambda: 2.0)])).sensors) == {"a", "b"}
    with pytest.raises(ValueError, match="share = 0"):
        Sensors([], share=0)


def test_a_sensor_that_waits_for_its_driver_leaves_the_thread_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second of waiting and no processor time; the clock is the test's."""
    clock = [0.0]
    monkeypatch.setattr("selector.adapt.sensors.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("selector.adapt.sensors.seconds", lambda: clock[0])

    def wait() -> float:
        clock[0] += 1.0
        return 7.0

    sensors = Sensors([Sensor("slow", wait), Sensor("good", lambda: clock[0])])
    good, waited = 0, 0.0
    while clock[0] < 300:
        before = clock[0]
        pause = sensors.read_due(clock[0])
        waited += clock[0] - before
        good += (sensors.value("good", clock[0]) or -9.0) >= clock[0] - 2.5
        assert sensors.value("slow", clock[0]) == 7.0
        clock[0] += pause
    assert waited <= 0.11 * 300
    assert good > 250


def test_a_sensor_that_disappears_and_comes_back() -> None:
    there = True

    def read_it() -> float:
        if not there:
            raise FileNotFoundError("unplugged")
        return 40.0

    sensors, seen = Sensors([Sensor("level", read_it)]), []
    for second in range(400):
        there = not 100 <= second < 200
        sensors.read_due(float(second))
        seen.append(sensors.value("level", float(second)))
    assert seen[:100] == [40.0] * 100
    assert seen[100:200] == [None] * 100
    assert seen[300:] == [40.0] * 100  # it is asked at least once a minute


def test_what_follows_from_readings_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    sensors, told = Sensors([Sensor("level", lambda: 1.0)]), []
    sensors.after += [lambda now: 1 / 0, told.append]  # type: ignore[list-item]
    sensors.read_due(5.0)
    assert told == [5.0]
    assert sensors.value("level", 5.0) == 1.0
    assert "ZeroDivisionError" in caplog.text


def test_it_reads_again_after_a_stop() -> None:
    sensors = Sensors([Sensor("level", lambda: 3.0, every_seconds=0.01)], share=1.0)
    for _ in range(2):
        sensors.start()
        thread = sensors._thread
        assert thread is not None
        assert thread.is_alive()
        sensors.stop()
        thread.join(30)
        assert not thread.is_alive()
