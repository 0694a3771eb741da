"""Which of a bundle's profiles a device goes by, and the selector for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from device_profiles import Profile, default_device_name
from device_profiles.host import physical_cores
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
    does, BudgetError also where two that differ are of one name: what is learnt and chosen goes by it."""
    if isinstance(device, str | Path | None):
        return [find_profile(bundle, device)]
    if not isinstance(device, Sequence) or not all(isinstance(name, str | Path) for name in device):
        raise BudgetError(f"device = {device!r}: allowed are a profile's name or file, and several of them")
    found: dict[str, tuple[str | Path, Profile]] = {}
    for given in dict.fromkeys(device):
        profile = bundle.profile(given)
        before, same = found.setdefault(profile.device.name, (given, profile))
        if same != profile:
            raise BudgetError(
                f"device = {str(before)!r} and {str(given)!r}: two profiles of the name {profile.device.name!r}; allowed is "
                "one of each name: measure the other as another one (sortednet profile --device NAME)"
            )
    return [profile for _, profile in found.values()] or [find_profile(bundle)]


def find_profile(bundle: Bundle, device: str | Path | None = None) -> Profile:
    """The named device's profile, else this machine's, else the only one. Of several of this machine it is the one with the
    most threads, or, where this process may use fewer cores than the machine has, with the most that these cores can run.

    Raises BundleError for an unknown device, BudgetError when it is not clear which profile is meant.
    """
    if device is not None:
        return bundle.profile(device)
    devices = bundle.devices()
    mine = _of_this_machine(devices)
    if mine is not None:
        return bundle.profile(mine)
    if len(devices) == 1:
        return bundle.profile(devices[0])
    if not devices:
        raise BudgetError(f"device: no profile in this bundle yet; measure this device with `sortednet profile {bundle.path}`")
    raise BudgetError(f"device: which one? There are profiles of {', '.join(devices)}")


def _of_this_machine(devices: Sequence[str]) -> str | None:
    """By the names that `sortednet profile` gives: this machine's with the cores that this process may use, or with all."""
    begins, usable = default_device_name(1).removesuffix("1t"), physical_cores()
    cpu = begins.removesuffix(f"{usable}c-")
    for cores in dict.fromkeys((usable, psutil.cpu_count(logical=False) or usable)):
        names = ((name, re.fullmatch(rf"{re.escape(cpu)}{cores}c-(\d+)t", name)) for name in devices)
        threads = {int(found[1]): name for name, found in names if found}
        if threads and cores == usable:
            return threads[max(threads)]
        if threads:
            return threads[max((count for count in threads if count <= usable), default=min(threads))]
    return None
