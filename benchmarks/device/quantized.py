"""int8 against fp32: bytes, latency at the full size, accuracy of a trained bundle."""

from __future__ import annotations

import numpy as np

from benchmarks.device.bundles import made
from benchmarks.device.sessions import ONE_THREAD, Figures, fp32, one_input, timed
from exporter.bundle.session import open_session

NAMES = ("resnet", "mobilenetv2", "encoder")


def measure(rounds: int = 200) -> Figures:
    found: Figures = {}
    ratios = []
    for name in NAMES:
        bundle = made(name)
        files, manifest = bundle.manifest.files, bundle.manifest
        assert manifest.int8_weights is not None
        ratios.append(files[manifest.int8_weights].bytes / files[manifest.weights].bytes)
        largest = fp32(bundle)[-1]
        sessions = [open_session(bundle.graph_path(sub), ONE_THREAD) for sub in (largest, f"{largest}-int8")]
        feed = one_input(bundle)
        taken = np.array([[timed(lambda s=s, f=feed: s.run(None, f)) for s in sessions] for _ in range(rounds)])  # type: ignore[misc]
        full, integers = np.median(taken[rounds // 10 :], axis=0)
        found[f"int8_latency_ratio.{name}"] = float(integers / full)
        found[f"int8_bundle_ratio.{name}"] = bundle.bytes_total / (
            bundle.bytes_total - sum(f.bytes for path, f in files.items() if "int8" in path)
        )
    found["int8_bytes_ratio"] = max(ratios)
    accuracies = made("trained").accuracies
    losses = np.array([100 * ((accuracies[n] or 0) - (accuracies[f"{n}-int8"] or 0)) for n in fp32(made("trained"))])
    found["int8_within_half_point"] = float((losses <= 0.5).mean())
    found["int8_worst_loss_points"] = float(losses.max())
    found["int8_mean_loss_points"] = float(losses.mean())
    return found
