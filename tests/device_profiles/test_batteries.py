"""What counts as this device's battery, on trees of files as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiles.batteries import Charge, charge
from device_profiles.energy import DischargingBattery
from selector.adapt import battery_reader
from selector.choose.battery import Battery

LAPTOP = {
    "type": "Battery",
    "status": "Discharging",
    "energy_now": "30000000",
    "energy_full": "60000000",
    "power_now": "4000000",
}
SECOND = LAPTOP | {"status": "Not charging", "energy_now": "20000000", "energy_full": "20000000", "power_now": "0"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "5", "power_now": "1000000"}
MAINS = {"type": "Mains", "online": "0"}
PHONE = {"type": "Battery", "status": "Charging", "capacity": "81", "charge_now": "3000000"}


def supplies(root: Path, **given: dict[str, str]) -> Path:
    for name, files in given.items():
        (root / name).mkdir(parents=True)
        for file, text in files.items():
            (root / name / file).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"BAT0": LAPTOP, "AC": MAINS}, Charge(50.0, True)),
        ({"BAT0": LAPTOP, "hidpp_battery_0": MOUSE}, Charge(50.0, True)),
        ({"BAT0": LAPTOP, "BAT1": SECOND}, Charge(62.5, True)),  # the first is used up before the second
        ({"BAT0": LAPTOP, "BAT1": SECOND | {"present": "0"}}, Charge(50.0, True)),
        ({"max170xx": PHONE}, Charge(81.0, False)),  # whatever it is called
        ({"BAT0": LAPTOP | {"energy_full": "0"} | {"capacity": "40"}}, Charge(40.0, True)),
        ({"hidpp_battery_0": MOUSE}, None),
        ({"BAT0": {"type": "Battery", "status": "Unknown"}}, None),
        ({"AC": MAINS}, None),
    ],
)
def test_the_battery_of_this_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, dict[str, str]], expected: Charge | None
) -> None:
    root = supplies(tmp_path / "power_supply", **given)
    assert charge(root) == expected
    monkeypatch.setattr(battery_reader, "POWER_SUPPLY", root)
    monkeypatch.setattr("psutil.sensors_battery", lambda: None, raising=False)
    found = battery_reader.read_battery()
    assert found == (None if expected is None else Battery(percent=expected.percent, discharging=expected.discharging))


def test_a_mouse_is_not_asked_through_psutil_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil takes whatever has `battery` in its name."""
    monkeypatch.setattr(battery_reader, "POWER_SUPPLY", supplies(tmp_path / "power_supply", hidpp_battery_0=MOUSE))
    monkeypatch.setattr("psutil.sensors_battery", lambda: pytest.fail("asked"), raising=False)
    assert battery_reader.read_battery() is None


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_device_that_is_plugged_in_meanwhile_has_no_energy(tmp_path: Path, status: str) -> None:
    root = supplies(tmp_path / "power_supply", BAT0=LAPTOP, BAT1=SECOND)
    meter = DischargingBattery.find(root)
    assert meter is not None
    meter.joules()
    (root / "BAT0" / "status").write_text(status)
    (root / "BAT0" / "power_now").write_text("45000000")
    with pytest.raises(OSError, match="does not run on its battery any more"):
        meter.joules()


def test_batteries_that_give_in_turn_are_counted_as_they_do(tmp_path: Path) -> None:
    root = supplies(tmp_path / "power_supply", BAT0=LAPTOP, BAT1=SECOND)
    meter = DischargingBattery.find(root)
    assert meter is not None
    assert meter.watts() == 4.0
    for name, status, power in (("BAT0", "Not charging", "0"), ("BAT1", "Discharging", "6000000")):
        (root / name / "status").write_text(status)
        (root / name / "power_now").write_text(power)
    assert meter.watts() == 6.0


def test_the_energy_is_of_all_that_discharge_but_no_mouse(tmp_path: Path) -> None:
    both = supplies(tmp_path / "power_supply", BAT0=LAPTOP, BAT1=LAPTOP | {"power_now": "-1500000"}, hidpp_battery_0=MOUSE)
    meter = DischargingBattery.find(both)
    assert meter is not None
    assert (meter.watts(), meter.name) == (5.5, "discharge of BAT0, BAT1")
