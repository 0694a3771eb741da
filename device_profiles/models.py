"""Which devices are of one kind."""

from __future__ import annotations

import re
from hashlib import sha256

from device_profiles.schema import DeviceInfo

_LONGEST = 56


def model_of(device: DeviceInfo) -> str:
    """Such as `arm-cortex-a76-4t-cpu`: what the latency depends on: the processor, the threads, the execution provider.

    A valid device name. Processors whose names differ in punctuation or case only are one model.
    """
    cpu = device.cpu.lower()
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", cpu)).strip("-")
    if len(slug) > _LONGEST or not cpu.isascii() or not slug:  # what the slug leaves out must not make two models one
        slug = f"{slug[: _LONGEST - 9]}-{sha256(cpu.encode(errors='replace')).hexdigest()[:8]}".strip("-")
    provider = re.sub(r"[^a-z0-9]+", "-", device.execution_provider.removesuffix("ExecutionProvider").lower()).strip("-")
    return f"{slug}-{min(device.threads, 99999)}t-{provider[:24] or 'cpu'}"
