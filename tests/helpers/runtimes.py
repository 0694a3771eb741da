"""Runtimes on bundles whose profiles are written down."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from device_profiles import LatencyMs, write_profile
from exporter.bundle import Bundle
from selector import Runtime
from tests.conftest import DEVICE

INPUT, OUTPUT, SHAPE = "input", "logits", (1, 8, 8)


def images(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((batch, *SHAPE), dtype=np.float32)


def text_bundle(path: Path) -> Bundle:
    from exporter import export
    from tests.helpers.user_families import TextEncoder
    from trainer import NestedModel

    return export(NestedModel(TextEncoder()), path, show_progress=False)


def stock(bundle: Bundle, submodel: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """What ONNX Runtime says by itself, with its defaults."""
    session = ort.InferenceSession(str(bundle.graph_path(submodel)), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: inputs})[0]


@pytest.fixture
def ranked(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle: from the least to the most accurate, the n-th takes n ms at every percentile."""
    path = tmp_path / "ranked"
    shutil.copytree(bundle_path, path)
    bundle = Bundle(path)
    profile = bundle.profile(DEVICE)
    by_accuracy = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].accuracy)
    measured = {
        name: profile.submodels[name].model_copy(update={"latency_ms": LatencyMs(p50=ms, p90=ms, p99=ms, mean=ms, n=10)})
        for ms, name in enumerate(by_accuracy, start=1)
    }
    write_profile(profile.model_copy(update={"submodels": measured}), path / "profiles" / f"{DEVICE}.json")
    return path


def runtime_of(path: Path, **options: Any) -> Runtime:
    """Every run takes the best of all sub-models by the profile, open or not."""
    quiet = {"battery": lambda: None, "load_ahead": False, "feedback": False, "sensors": False}  # whatever else runs here
    return Runtime(path, **{**quiet, **options})


def unmeasured(bundle_path: Path, tmp_path: Path, devices: tuple[str, ...] = ()) -> Path:
    """A copy of the bundle with profiles of other devices only."""
    path = tmp_path / "unmeasured"
    shutil.copytree(bundle_path, path)
    profile = Bundle(path).profile(DEVICE)
    (path / "profiles" / f"{DEVICE}.json").unlink()
    for name in devices:
        device = profile.device.model_copy(update={"name": name})
        write_profile(profile.model_copy(update={"device": device}), path / "profiles" / f"{name}.json")
    return path


def submodels_of(path: Path) -> list[str]:
    """From the least to the most accurate: the n-th takes n ms."""
    bundle = Bundle(path)
    return sorted(bundle.submodels, key=lambda name: bundle.submodels[name].accuracy)


def quiet_runtime(path: Path, **options: Any) -> Runtime:
    """Chooses by the profile alone, whatever else runs here."""
    return Runtime(path, feedback=False, battery=lambda: None, sensors=False, **options)


def opened_by(runtime: Runtime) -> set[str]:
    return {submodel for submodel, _ in runtime.pool.loaded}


def with_memory(path: Path, memory_mb: dict[str, float | None]) -> None:
    """Makes the profile say this."""
    from device_profiles import write_profile
    from tests.conftest import DEVICE

    profile = Bundle(path).profile(DEVICE)
    measured = {}
    for name, value in memory_mb.items():
        document = profile.submodels[name].model_dump() | {"memory_mb": value}
        document["source"] = {k: v for k, v in document["source"].items() if k != "memory_mb" or value is not None}
        measured[name] = type(profile.submodels[name]).model_validate(document)
    write_profile(profile.model_copy(update={"submodels": measured}), path / "profiles" / f"{DEVICE}.json")
