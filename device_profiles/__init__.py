"""What a device measured: the schema of a profile, the measuring harness, and profiles of devices that we measured.

Knows nothing of torch, onnx or ONNX Runtime: the harness times what it is given. It comes with the first use of `measure` or
one of its like, because it needs numpy, whose import takes longer than choosing a sub-model.
"""

from typing import TYPE_CHECKING, Any

from device_profiles.host import default_device_name, describe_device
from device_profiles.schema import (
    PERCENTILES,
    Decoding,
    DeviceInfo,
    LatencyMs,
    Measurement,
    Profile,
    ProfileError,
    profile_document,
    read_profile,
    write_profile,
)

if TYPE_CHECKING:
    from device_profiles.harness import measure, measure_decoding, measure_lengths

__all__ = [
    "PERCENTILES",
    "Decoding",
    "DeviceInfo",
    "LatencyMs",
    "Measurement",
    "Profile",
    "ProfileError",
    "default_device_name",
    "describe_device",
    "measure",
    "measure_decoding",
    "measure_lengths",
    "profile_document",
    "read_profile",
    "write_profile",
]


def __getattr__(name: str) -> Any:
    if name in ("measure", "measure_decoding", "measure_lengths"):
        from device_profiles import harness

        return getattr(harness, name)
    raise AttributeError(f"module 'device_profiles' has no attribute {name!r}")
