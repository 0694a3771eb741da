"""Selectors for devices that the service has no profile of: from one that comes with the query, or from a few measured
sub-models, from which the others are predicted (`device_profiles.estimate`)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from threading import Lock

from cachetools import LRUCache, cached

from device_profiles import DeviceInfo, Measurement, Profile
from exporter.bundle import Bundle
from selector.choose.budget import BudgetError
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade
from selector.choose.selector import Selector
from selector.service.web.problems import Problem, wrong_field

REMEMBERED = 64
"""Selectors: a device asks again and again with the same figures."""

UNKNOWN = DeviceInfo(name="measured", cpu="", cores=1, threads=1, ram_mb=1, os="", onnxruntime="", execution_provider="")
"""What an answer calls a device of which only measurements are known."""


def selector_of(bundle: Bundle, profile: Profile, cascades: Sequence[Cascade] = ()) -> Selector:
    """Raises Problem 422 where the profile is of another bundle or of sub-models that are not in it."""
    if profile.bundle != bundle.fingerprint:
        raise wrong_field("profile.bundle", profile.bundle, f"allowed is this bundle's fingerprint, {bundle.fingerprint}")
    _check_names(bundle, "profile.submodels", profile.submodels)
    return _selector(bundle, profile.submodels, cascades, profile.device)


def predicted_selector(bundle: Bundle, measured: Mapping[str, Measurement], cascades: Sequence[Cascade] = ()) -> Selector:
    """Of all sub-models, the others predicted. Raises Problem 422 where a name is not in the bundle or nothing follows."""
    _check_names(bundle, "measured", measured)
    return _predicted(bundle, measured, cascades)


def _key(
    bundle: Bundle, measured: Mapping[str, Measurement], cascades: Sequence[Cascade], device: DeviceInfo = UNKNOWN
) -> tuple[object, ...]:
    text = "".join(f"{name}\0{costs.model_dump_json()}" for name, costs in measured.items())
    return bundle.manifest.sha256, device.name, tuple(cascades), hashlib.sha256(text.encode()).digest()


@cached(LRUCache(REMEMBERED), key=_key, lock=Lock())
def _selector(bundle: Bundle, measured: Mapping[str, Measurement], cascades: Sequence[Cascade], device: DeviceInfo) -> Selector:
    now = datetime.now(UTC)
    profile = Profile(device=device, bundle=bundle.fingerprint, measured_at=now, submodels=dict(measured))
    try:
        return Selector(Candidates.of(bundle, [profile], cascades))
    except BudgetError as error:
        raise Problem(422, str(error)) from None


@cached(LRUCache(REMEMBERED), key=_key, lock=Lock())
def _predicted(bundle: Bundle, measured: Mapping[str, Measurement], cascades: Sequence[Cascade]) -> Selector:
    import numpy as np

    from device_profiles.estimate import predict

    counts = {name: dict(entry.layers) for name, entry in bundle.submodels.items()}
    try:
        with np.errstate(all="ignore"):
            found, _ = predict(bundle.manifest.layers, counts, measured)
    except (ValueError, np.linalg.LinAlgError) as error:  # also pydantic's, of a figure that is no number
        raise wrong_field("measured", None, f"nothing can be predicted from these figures: {error}") from None
    return _selector(bundle, found, cascades, UNKNOWN)


def _check_names(bundle: Bundle, field: str, names: Collection[str]) -> None:
    for name in names:
        if name not in bundle.submodels:
            raise wrong_field(field, name, f"not in the bundle; it holds {', '.join(list(bundle.submodels)[:8])}, …")
