"""Twelve measured of 160: how far the others are off, and how much faster that is than measuring all."""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.device.bundles import made
from benchmarks.device.sessions import Figures, fp32
from selector import profile_bundle
from selector.cache import ModelCache

MEASURED = 12


def measure() -> Figures:
    found: Figures = {}
    speedups = []
    for name in ("resnet", "mobilenetv2"):
        bundle = made(name)
        names = fp32(bundle)
        with TemporaryDirectory() as folder:
            cache = ModelCache(folder, max_bytes=2**31)
            profile_bundle(bundle, submodels=names, repeats=1, cache=cache, show_progress=False)  # makes the copies
            for threads in (1, 2):
                profiles, seconds = [], []
                for count in (None, MEASURED):
                    begun = time.perf_counter()
                    profiles.append(
                        profile_bundle(
                            bundle, threads=threads, submodels=names, predict_from=count, cache=cache, show_progress=False
                        )
                    )
                    seconds.append(time.perf_counter() - begun)
                whole, some = profiles
                errors = np.array(
                    [
                        some.submodels[n].latency_ms.p50 / whole.submodels[n].latency_ms.p50 - 1
                        for n in names
                        if some.submodels[n].source["latency_ms"] == "predicted"
                    ]
                )
                found[f"predict_within_10pct.{name}.{threads}"] = float((np.abs(errors) <= 0.10).mean())
                found[f"predict_p95_error.{name}.{threads}"] = float(np.percentile(np.abs(errors), 95))
                found[f"predict_promised_p95.{name}.{threads}"] = some.prediction["latency_ms"].p95
                speedups.append(seconds[0] / seconds[1])
    found["profile_speedup"] = min(speedups)
    return found
