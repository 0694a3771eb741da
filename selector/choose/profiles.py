"""Which of a bundle's profiles a device goes by, and the selector for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from device_profiles import Profile, default_device_name
from exporter.bundle import Bundle
from selector.choose.battery import BatteryPolicy
from selector.choose.budget import BudgetError
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade
from selector.choose.selector import Selector

Device = str | Path | Sequence[str | Path] | None
"""A profile's name or file, several of them, or whatever there is of this machine."""


def selector_for(
    bundle: Bundle,
    device: Device = None,
    *,
    policy: BatteryPolicy | None = None,
    cascades: Sequence[Cascade] = (),
) -> Selector:
    """A selector for a bundle and a device's profile or several of them (see `find_profiles`); with these cascades of the
    bundle (see `read_cascades`) among the candidates where a profile knows both sub-models."""
    return Selector(Candidates.of(bundle, find_profiles(bundle, device), cascades), policy=policy)


def find_profiles(bundle: Bundle, device: Device = None) -> list[Profile]:
    """Several profiles by their names or files, or one as `find_profile` finds it. Raises BundleError and BudgetError as it
    does."""
    if isinstance(device, str | Path | None):
        return [find_profile(bundle, device)]
    if not isinstance(device, Sequence) or not all(isinstance(name, str | Path) for name in device):
        raise BudgetError(f"device = {device!r}: allowed are a profile's name or file, and several of them")
    return [bundle.profile(name) for name in dict.fromkeys(device)] or [find_profile(bundle)]


def find_profile(bundle: Bundle, device: str | Path | None = None) -> Profile:
    """The named device's profile, else this machine's (of several, the one with the most threads), else the only one.

    Raises BundleError for an unknown device, BudgetError when it is not clear which profile is meant.
    """
    if device is not None:
        return bundle.profile(device)
    devices = bundle.devices()
    machine = default_device_name(1).removesuffix("1t")  # asking for each name would count the cores as often as there are some
    for threads in range(psutil.cpu_count() or 1, 0, -1):
        if f"{machine}{threads}t" in devices:
            return bundle.profile(f"{machine}{threads}t")
    if len(devices) == 1:
        return bundle.profile(devices[0])
    if not devices:
        raise BudgetError(f"device: no profile in this bundle yet; measure this device with `sortednet profile {bundle.path}`")
    raise BudgetError(f"device: which one? There are profiles of {', '.join(devices)}")
