"""`POST /v1/select` under load: beside a constant under the same server, and a million times."""

from __future__ import annotations

import os
import statistics
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.service.running import Load, running, wrk
from device_profiles import DeviceInfo, LatencyMs, Measurement, Profile, write_profile
from exporter.bundle import Bundle

BUNDLE_VARIABLE = "SORTEDNET_BENCH_BUNDLE"
ROUNDS, ROUND_S, WARM_UP_S = 8, 6.0, 2.0
THREADS = 4
SOAK_REQUESTS, SOAK_ROUND_S = 1_000_000, 20.0
BODIES = [
    *({"budget": {"latency_ms": round(0.05 * 1.2**step, 4), "percentile": 90}} for step in range(24)),
    *({"budget": {"min_accuracy": step / 100, "objective": "latency"}} for step in range(10, 100, 10)),
    *({"budget": {"memory_mb": step, "latency_ms": 1.0}} for step in range(1, 9)),
    *({"battery": {"percent": step, "discharging": True}} for step in range(5, 100, 10)),
]
"""Budgets as devices send them: of one limit, of two, of an accuracy, with a battery."""

NOTES = {
    "select_rps_ratio": "requests per second of POST /v1/select, its log and headers included, over those of a bare flask "
    f"endpoint that returns a constant dict; same server settings (1 worker, {THREADS} threads), wrk with 8 connections, "
    "taking turns; median of the rounds' ratios",
    "select_p99_ratio": "p99 of the same rounds, likewise",
    "select_rps": "requests per second, median of the rounds; depends on the machine",
    "soak_requests": "answered in one go by a server of 1 worker",
    "soak_errors": "of these: a status of 400 and above, or no answer",
    "soak_memory_growth_mb": "RSS of the workers at the end less that after the first twentieth of the requests",
}


def measure(bundle: Path | None = None, rounds: int = ROUNDS, round_s: float = ROUND_S) -> dict[str, float]:
    """Ratios to the constant, side by side."""
    path = bundle or bench_bundle()
    ours: list[Load] = []
    plain: list[Load] = []
    threads = ("--threads", str(THREADS))
    with (
        running("sortednet", "serve", path, *threads) as service,
        running("benchmarks.service.constant", *threads) as constant,
    ):
        turns = [(service, ours), (constant, plain)]
        for server, _ in turns:
            wrk(f"{server.url}/v1/select", BODIES, seconds=WARM_UP_S)
        for turn in range(rounds):
            for server, loads in turns if turn % 2 == 0 else reversed(turns):
                loads.append(wrk(f"{server.url}/v1/select", BODIES, seconds=round_s))
    if errors := sum(load.errors for load in [*ours, *plain]):
        raise SystemExit(f"{errors} requests were not answered with 200")
    pairs = list(zip(ours, plain, strict=True))
    return {
        "select_rps_ratio": statistics.median(a.rps / b.rps for a, b in pairs),
        "select_p99_ratio": statistics.median(a.p99_ms / b.p99_ms for a, b in pairs),
        "select_rps": statistics.median(a.rps for a in ours),
    }


def soak(bundle: Path | None = None, requests: int = SOAK_REQUESTS, round_s: float = SOAK_ROUND_S) -> dict[str, float]:
    """So many requests, or some more: rounds are not cut short."""
    answered = errors = 0
    warm_mb: float | None = None
    with running("sortednet", "serve", bundle or bench_bundle()) as service:
        while answered < requests:
            load = wrk(f"{service.url}/v1/select", BODIES, seconds=round_s)
            answered, errors = answered + load.requests, errors + load.errors
            if warm_mb is None and answered >= requests / 20:
                warm_mb = service.rss_mb()
            print(f"{answered} of {requests}, {errors} errors, {service.rss_mb():.1f} MB", flush=True)
        growth = service.rss_mb() - (warm_mb or 0.0)
    return {"soak_requests": answered, "soak_errors": errors, "soak_memory_growth_mb": growth}


def bench_bundle() -> Path:
    """A bundle with accuracies and a profile: that of the variable, else the trained ResNet of 160 sub-models, whose costs
    are declared in proportion to their multiply-accumulates where none were measured: here only the service is."""
    if given := os.environ.get(BUNDLE_VARIABLE):
        return Path(given)
    from benchmarks.adapt.bundles import trained  # needs torch

    bundle = trained()
    if not bundle.devices():
        _declare(bundle)
    return bundle.path


def _declare(bundle: Bundle) -> None:
    costs = {}
    for name, entry in bundle.submodels.items():
        ms, mb = max(entry.macs / 1e7, 1e-3), max(entry.params * 4 / 2**20, 1e-3)
        latency = LatencyMs(p50=ms, p90=1.1 * ms, p99=1.3 * ms, mean=ms, n=0)
        costs[name] = Measurement(latency_ms=latency, memory_mb=mb, source={"latency_ms": "declared", "memory_mb": "declared"})
    device = DeviceInfo(name="declared", cpu="", cores=1, threads=1, ram_mb=1, os="", onnxruntime="", execution_provider="")
    profile = Profile(device=device, bundle=bundle.fingerprint, measured_at=datetime.now(UTC), submodels=costs)
    write_profile(profile, bundle.path / "profiles" / "declared.json")
