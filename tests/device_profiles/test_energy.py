"""Energy meters on folders with the layout of real machines, and what a profile says about where its energy comes from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import device_profiles.energy
import selector.run.profiling
from device_profiles import ProfileError, measure
from device_profiles.energy import DeclaredPower, DischargingBattery, RaplCounters, find_meter
from exporter.bundle import Bundle
from selector import Budget, profile_bundle
from selector.choose.selector import Selector


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """Two packages, one with a part of its own, the whole platform, and what is no RAPL zone."""
    root = tmp_path / "powercap"
    limit = 262143328850
    write(root / "intel-rapl", enabled=1)
    write(root / "intel-rapl:0", name="package-0", energy_uj=1_000_000, max_energy_range_uj=limit)
    write(root / "intel-rapl:0:0", name="core", energy_uj=500_000, max_energy_range_uj=limit)
    write(root / "intel-rapl:1", name="package-1", energy_uj=2_000_000, max_energy_range_uj=limit)
    write(root / "intel-rapl:2", name="psys", energy_uj=9_000_000, max_energy_range_uj=limit)
    write(root / "dtpm", name="whatever")
    return root


def test_the_packages_are_summed_up_and_wrap(laptop: Path) -> None:
    meter = RaplCounters.find(laptop)
    assert meter is not None
    assert meter.name == "RAPL counters of intel-rapl:0 package-0, intel-rapl:1 package-1"
    begun = meter.joules()
    write(laptop / "intel-rapl:0", energy_uj=1_500_000)
    write(laptop / "intel-rapl:1", energy_uj=2_250_000)
    write(laptop / "intel-rapl:2", energy_uj=99_000_000)
    assert meter.joules() - begun == pytest.approx(0.75)
    write(laptop / "intel-rapl:0", energy_uj=100_000)  # wrapped after 262143328850 - 1500000
    assert meter.joules() - begun == pytest.approx(0.75 + (262143328850 - 1_500_000 + 100_000) / 1e6)


def test_the_platform_counts_where_it_is_alone(tmp_path: Path) -> None:
    write(tmp_path / "intel-rapl:0", name="psys", energy_uj=1, max_energy_range_uj=10**9)
    meter = RaplCounters.find(tmp_path)
    assert meter is not None
    assert "psys" in meter.name


@pytest.mark.parametrize("content", ["", "no number"])
def test_counters_that_cannot_be_read_are_none(laptop: Path, content: str) -> None:
    for zone in laptop.glob("intel-rapl:*"):
        (zone / "energy_uj").write_text(content)
    assert RaplCounters.find(laptop) is None
    assert RaplCounters.find(laptop / "absent") is None


def test_a_battery_s_power_is_summed_up_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(device_profiles.energy.time, "monotonic", lambda: clock[0])
    write(tmp_path / "AC", type="Mains", online=0)
    battery = write(tmp_path / "BAT0", type="Battery", status="Discharging", power_now=5_000_000)
    meter = DischargingBattery.find(tmp_path)
    assert meter is not None
    assert meter.name == "discharge of BAT0"
    begun = meter.joules()
    clock[0] += 2
    write(battery, power_now=7_000_000)
    assert meter.joules() - begun == pytest.approx(12)


def test_power_from_voltage_and_current(tmp_path: Path) -> None:
    write(tmp_path / "battery", type="Battery", status="Discharging", voltage_now=3_850_000, current_now=-400_000)
    meter = DischargingBattery.find(tmp_path)
    assert meter is not None
    assert meter.watts() == pytest.approx(1.54)


@pytest.mark.parametrize(
    "files",
    [
        {"type": "Battery", "status": "Charging", "power_now": 1},
        {"type": "Battery", "status": "Discharging", "power_now": 0},
        {"type": "Battery", "status": "Discharging"},
        {"type": "Battery", "status": "Discharging", "power_now": "?"},
        {"type": "UPS", "status": "Discharging", "power_now": 5},
        {},
    ],
    ids=["charging", "no power", "no files", "no number", "no battery", "empty"],
)
def test_what_is_no_discharging_battery(files: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path / "BAT0", **files)
    assert DischargingBattery.find(tmp_path) is None


def test_counters_come_before_the_battery_and_that_before_a_declaration(laptop: Path, tmp_path: Path) -> None:
    supply, nothing = tmp_path / "supply", tmp_path / "nothing"
    write(supply / "BAT0", type="Battery", status="Discharging", power_now=5_000_000)
    found = [
        find_meter(watts, powercap=powercap, power_supply=power)
        for watts, powercap, power in (
            (3, laptop, supply),
            (3, nothing, supply),
            (3, nothing, nothing),
            (None, nothing, nothing),
        )
    ]
    assert [type(meter) for meter in found] == [RaplCounters, DischargingBattery, DeclaredPower, type(None)]
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ProfileError, match="watts = "):
            find_meter(wrong)


def test_a_declared_wattage_times_the_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0.0]
    monkeypatch.setattr(device_profiles.energy, "time", SimpleNamespace(process_time=lambda: used[0]))

    def busy() -> None:
        used[0] += 0.002

    found = measure(lambda name: busy, ["a"], repeats=5, meter=DeclaredPower(4.0), show_progress=False)["a"]
    assert found.source["energy_mj"] == "declared"
    assert found.energy_mj == pytest.approx(4.0 * 2)  # W times ms


def test_a_meter_that_goes_away_leaves_the_energy_unknown(laptop: Path) -> None:
    meter = RaplCounters.find(laptop)
    assert meter is not None
    for zone in laptop.glob("intel-rapl:*"):
        (zone / "energy_uj").unlink()
    found = measure(lambda name: lambda: None, ["a"], repeats=2, meter=meter, show_progress=False)["a"]
    assert found.energy_mj is None
    assert "energy_mj" not in found.source


def test_a_profile_says_where_its_energy_comes_from(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selector.run.profiling, "find_meter", DeclaredPower)  # whatever this machine has
    profile = profile_bundle(bundle, device="d", threads=1, repeats=3, watts=2.5, show_progress=False)
    assert "declared: 2.5 W per busy core" in profile.device.energy
    energies = {name: m.energy_mj for name, m in profile.submodels.items()}
    assert all(m.source["energy_mj"] == "declared" for m in profile.submodels.values())
    limit = sorted(e for e in energies.values() if e)[2]
    selection = Selector(profile, bundle.accuracies).select(Budget(energy_mj=limit))
    assert selection.feasible
    assert energies[selection.submodel] == selection.energy_mj <= limit
    few = profile_bundle(bundle, device="d", threads=1, repeats=3, watts=2.5, predict_from=3, show_progress=False)
    assert sorted({m.source["energy_mj"] for m in few.submodels.values()}) == ["declared", "predicted"]
