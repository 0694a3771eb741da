"""Figures that fixtures write down instead of training or measuring: what a test chooses by is then the same on every machine.

Without torch: the runtime's tests use it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from device_profiles import DeviceInfo, LatencyMs, Measurement, Profile, write_profile
from exporter.bundle import MANIFEST_FILE, Bundle
from exporter.bundle.manifest import sealed

DEVICE = "test-device"
LEAST, MOST = 0.80, 0.95
"""The accuracies that are written down lie above the one and up to the other."""


def ranks(bundle: Bundle) -> dict[str, float]:
    """Of each sub-model its place by multiply-accumulates, from 1 for the smallest in fp32 on; half a place less in int8."""
    entries = bundle.manifest.submodels
    sizes = sorted({entry.macs for entry in entries})
    return {entry.id: sizes.index(entry.macs) + (1.0 if entry.precision == "fp32" else 0.5) for entry in entries}


def accuracies_of(bundle: Bundle) -> dict[str, float]:
    """The larger, the more accurate; of one size fp32 is the more accurate."""
    places = ranks(bundle)
    largest = max(places.values())
    return {name: round(LEAST + (MOST - LEAST) * place / largest, 6) for name, place in places.items()}


def profile_of(bundle: Bundle, device: str = DEVICE) -> Profile:
    """Whatever is more accurate takes longer, at every percentile, and more memory: all sub-models are on the frontier.

    The n-th smallest takes n ms and n MB. The larger, the longer its tail. Its energy nobody knows, as on most machines.
    """
    info = DeviceInfo(
        name=device,
        cpu="made up",
        cores=2,
        threads=1,
        ram_mb=4096,
        os="Linux",
        onnxruntime="1",
        execution_provider="CPUExecutionProvider",
    )
    source = dict.fromkeys(("latency_ms", "load_ms", "memory_mb"), "measured")
    submodels = {}
    for name, n in ranks(bundle).items():
        latency = LatencyMs(p50=n, p90=1.1 * n, p99=(1.2 + 0.02 * n) * n, mean=1.02 * n, n=100)
        submodels[name] = Measurement.model_validate(
            {"latency_ms": latency, "load_ms": 5 * n, "memory_mb": n, "source": source}
        )
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Profile(device=info, bundle=bundle.fingerprint, measured_at=moment, submodels=submodels)


def write_accuracies(path: Path, accuracies: Mapping[str, float | None]) -> None:
    """Replaces those in the bundle's manifest; `accuracies`: by sub-model, of all."""
    document = json.loads((path / MANIFEST_FILE).read_bytes())
    for entry in document["submodels"]:
        accuracy = accuracies[entry["id"]]
        entry |= {"quality": accuracy, "metrics": {} if accuracy is None else {"accuracy": accuracy}}
    (path / MANIFEST_FILE).write_text(json.dumps(sealed(document), indent=1) + "\n", encoding="utf-8")


def profiled(path: Path) -> Path:
    """The bundle, with `profile_of` in it."""
    write_profile(profile_of(Bundle(path)), path / "profiles" / f"{DEVICE}.json")
    return path


def written_down(path: Path) -> Path:
    """The bundle, with `accuracies_of` and `profile_of` in it."""
    write_accuracies(path, accuracies_of(Bundle(path)))
    return profiled(path)
