"""A profile of one bundle made one of another that holds some of the same networks. Needs neither torch nor onnx."""

from __future__ import annotations

from device_profiles import Profile
from exporter.bundle.manifest import Manifest, SubModelEntry


def refit(profile: Profile, old: Manifest, new: Manifest) -> Profile | None:
    """What a profile of the bundle `old` says of `new`: the measurements of the networks that both hold.

    None when the profile is not of `old`, or none of what it measured is in `new`.
    """
    if profile.bundle != old.fingerprint:
        return None
    names = same_networks(old, new)
    submodels = {name: measured for name, measured in profile.submodels.items() if name in names}
    if not submodels:
        return None
    return profile.model_copy(update={"bundle": new.fingerprint, "submodels": submodels})


def same_networks(old: Manifest, new: Manifest) -> set[str]:
    """Ids of the sub-models that are the same networks in both, whatever their weights."""
    same = {_network(entry) for entry in old.submodels} & {_network(entry) for entry in new.submodels}
    return {name for name, *_ in same}


def _network(entry: SubModelEntry) -> tuple[str, int, int, str, str]:
    """As in the fingerprint: what latency depends on."""
    return entry.id, entry.params, entry.macs, entry.topology, entry.precision
