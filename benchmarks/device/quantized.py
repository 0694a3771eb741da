"""int8 against fp32: bytes, latency at the full size here and without VNNI, accuracy of a trained bundle."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.device import avx2
from benchmarks.device.bundles import made
from benchmarks.device.sessions import ONE_THREAD, Figures, fp32, one_input
from exporter.bundle.session import open_session

NAMES = ("resnet", "mobilenetv2", "encoder")


def measure() -> Figures:
    found: Figures = {}
    ratios = []
    for name in NAMES:
        bundle = made(name)
        files, manifest = bundle.manifest.files, bundle.manifest
        assert manifest.int8_weights is not None
        ratios.append(files[manifest.int8_weights].bytes / files[manifest.weights].bytes)
        found[f"int8_bundle_ratio.{name}"] = bundle.bytes_total / (
            bundle.bytes_total - sum(f.bytes for path, f in files.items() if "int8" in path)
        )
    found["int8_bytes_ratio"] = max(ratios)
    found |= latencies()
    if avx2.available():
        ran = avx2.run(["-m", "benchmarks.device.quantized"], capture_output=True, check=True)
        found |= {f"{key}.avx2": value for key, value in json.loads(ran.stdout).items()}
    trained = made("trained")
    accuracies = trained.accuracies
    losses = np.array([100 * ((accuracies[n] or 0) - (accuracies[f"{n}-int8"] or 0)) for n in fp32(trained)])
    found["int8_within_half_point"] = float((losses <= 0.5).mean())
    found["int8_worst_loss_points"] = float(losses.max())
    found["int8_mean_loss_points"] = float(losses.mean())
    found["int8_worst_error"] = max(entry.int8_error or 0.0 for entry in trained.manifest.submodels)
    return found


def latencies(rounds: int = 200) -> Figures:
    """Of the largest size: int8 over fp32, medians of the processor time of one thread, the two taking turns."""
    found: Figures = {}
    for name in NAMES:
        bundle = made(name)
        largest, feed = fp32(bundle)[-1], one_input(bundle)
        sessions = [open_session(bundle.graph_path(sub), ONE_THREAD) for sub in (largest, f"{largest}-int8")]
        taken = np.array([[_timed(lambda s=s, f=feed: s.run(None, f)) for s in sessions] for _ in range(rounds)])  # type: ignore[misc]
        full, integers = np.median(taken[rounds // 10 :], axis=0)
        found[f"int8_latency_ratio.{name}"] = float(integers / full)
    return found


def _timed(do: Callable[[], object]) -> float:
    begun = time.thread_time()
    do()
    return time.thread_time() - begun


if __name__ == "__main__":
    json.dump(latencies(), sys.stdout)
