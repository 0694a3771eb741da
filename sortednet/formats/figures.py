"""What a bundle's sub-models cost and how good they are, in the order in which one would choose them."""

from __future__ import annotations

from dataclasses import dataclass

from device_profiles import Profile
from exporter.bundle import Bundle
from exporter.bundle.manifest import SubModelEntry
from sortednet.bundles import _own_profile


@dataclass(frozen=True)
class Line:
    """One sub-model. `cost`: milliseconds (p50) on the device, or multiply-accumulates where nothing was measured."""

    entry: SubModelEntry
    cost: float | None
    bytes: int  # of its graph
    chosen: bool  # whether it is on the frontier: nothing that costs as little is as good


@dataclass(frozen=True)
class Figures:
    """Of a bundle. `device` is empty where nothing was measured."""

    lines: tuple[Line, ...]  # from the cheapest
    device: str

    @property
    def unit(self) -> str:
        return "ms" if self.device else "MACs"


def figures_of(bundle: Bundle) -> Figures:
    """By this machine's profile, or the first that the bundle has."""
    profile = _own_profile(bundle) or _first(bundle)
    costs: dict[str, float | None] = {}
    for name, entry in bundle.submodels.items():
        if profile is None:
            costs[name] = float(entry.macs)
        else:
            measured = profile.submodels.get(name)
            costs[name] = None if measured is None or measured.latency_ms is None else measured.latency_ms.p50
    chosen, best = set(), -1.0
    known = [name for name, cost in costs.items() if cost is not None]
    for name in sorted(known, key=lambda name: (costs[name], -(bundle.qualities[name] or 0.0))):
        quality = bundle.qualities[name]
        if quality is not None and quality > best:
            best = quality
            chosen.add(name)
    ordered = sorted(costs, key=lambda name: (costs[name] is None, costs[name] or 0.0, name))
    lines = tuple(_line(bundle, name, costs[name], name in chosen) for name in ordered)
    return Figures(lines, profile.device.name if profile else "")


def _line(bundle: Bundle, name: str, cost: float | None, chosen: bool) -> Line:
    entry = bundle.submodel(name)
    return Line(entry, cost, bundle.manifest.files[entry.graph].bytes, chosen)


def _first(bundle: Bundle) -> Profile | None:
    devices = bundle.devices()
    return bundle.profile(devices[0]) if devices else None


def largest(bundle: Bundle) -> SubModelEntry:
    """The sub-model that all others are prefixes of: of the most parameters, in the precision that weights are kept in."""
    fp32 = [entry for entry in bundle.manifest.submodels if entry.precision == "fp32"]
    return max(fp32 or bundle.manifest.submodels, key=lambda entry: entry.params)
