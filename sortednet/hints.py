"""What was asked for and changes nothing, in words: an option that does nothing is told, not passed over."""

from __future__ import annotations

from selector.choose.battery import Battery, BatteryPolicy


def without_effect(policy: BatteryPolicy, battery: Battery | None, *, given: str, missing: str) -> str | None:
    """Why the policy saves nothing at this charge, or None where it does. `given`: the options that are without effect;
    `missing`: what to say where there is no battery."""
    if policy.level(battery) is not None:
        return None
    if battery is None:
        return f"note: {given} changes nothing: {missing}"
    begins = max((level.below_percent for level in policy.levels), default=0.0)
    if battery.percent >= begins:
        where = f"below {begins:g} %" if begins else "at no charge"
        return f"note: {given} changes nothing: the battery is at {battery.percent:g} %, and the policy saves {where}"
    return f"note: {given} changes nothing: the battery at {battery.percent:g} % is taken to be on the mains, not discharging"


def plan_without_effect(battery: Battery | None) -> str | None:
    """Why a battery plan changes nothing on this device now, or None where it does."""
    if battery is None:
        return "note: --plan changes nothing: no battery was found on this device"
    if not battery.discharging:
        return f"note: --plan changes nothing now: the battery, at {battery.percent:g} %, is not discharging"
    return None
