"""What a device measured: the schema of a profile, the measuring harness, and profiles of devices that we measured.

Knows nothing of torch, onnx or ONNX Runtime: the harness times what it is given.
"""

from device_profiles.host import default_device_name, describe_device
from device_profiles.measure import measure
from device_profiles.schema import (
    DeviceInfo,
    LatencyMs,
    Measurement,
    Profile,
    ProfileError,
    read_profile,
    write_profile,
)

__all__ = [
    "DeviceInfo",
    "LatencyMs",
    "Measurement",
    "Profile",
    "ProfileError",
    "default_device_name",
    "describe_device",
    "measure",
    "read_profile",
    "write_profile",
]
