"""The batteries that this device runs on, as Linux's power_supply class shows them: not a mouse's or a pen's, and all of them
where there are two."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

POWER_SUPPLY = Path("/sys/class/power_supply")


class Charge(NamedTuple):
    """Of all batteries together."""

    percent: float
    discharging: bool


def system_batteries(root: Path = POWER_SUPPLY) -> list[Path]:
    """Their folders. `scope` says of a peripheral's battery that it is of a "Device"; a bay may be empty."""
    found = []
    with suppress(OSError):
        for supply in sorted(root.iterdir()):
            if _word(supply / "type") == "Battery" and _word(supply / "scope") != "Device" and _word(supply / "present") != "0":
                found.append(supply)
    return found


def peripherals_alone(root: Path = POWER_SUPPLY) -> bool:
    """There are batteries, and none of them is the device's."""
    with suppress(OSError):
        return not system_batteries(root) and any(_word(supply / "type") == "Battery" for supply in root.iterdir())
    return False


def charge(root: Path = POWER_SUPPLY) -> Charge | None:
    """None where there is no battery, or none says what it holds. Of several, each counts by what it holds when it is full."""
    batteries = system_batteries(root)
    discharging = any(_word(battery / "status") == "Discharging" for battery in batteries)
    for unit in ("energy", "charge"):
        held = [(_number(battery / f"{unit}_now"), _number(battery / f"{unit}_full")) for battery in batteries]
        now, full = (
            ([value for value in values if value is not None] for values in zip(*held, strict=True)) if held else ([], [])
        )
        if len(now) == len(full) == len(batteries) and sum(full) > 0:
            return Charge(min(100.0, 100.0 * sum(now) / sum(full)), discharging)
    shares = [share for battery in batteries if (share := _number(battery / "capacity")) is not None and share <= 100]
    return Charge(sum(shares) / len(shares), discharging) if shares else None


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    """None where there is none, or one below 0."""
    try:
        value = float(path.read_text())
    except (OSError, ValueError):
        return None
    return value if 0 <= value < float("inf") else None
