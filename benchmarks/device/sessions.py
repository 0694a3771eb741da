"""What it costs to change the size, to go through `Runtime`, and to keep many sub-models open."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.device.bundles import made
from device_profiles import write_profile
from device_profiles.host import private_memory_mb
from exporter.bundle import Bundle
from exporter.bundle.session import SessionOptions, open_session
from selector import Budget, Runtime, profile_bundle
from selector.run.cache import ModelCache

Figures = dict[str, float]
ONE_THREAD = SessionOptions(threads=1)
COLD = ("resnet", "mobilenetv2", "encoder")


def measure() -> Figures:
    """Each part in a process of its own, because memory that was freed is not given back in full."""
    found: Figures = {}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in COLD:
            found[f"cold_switch_ratio.{name}"] = pool.submit(cold_switch, name).result()
        found |= pool.submit(through_runtime).result()
        plain, pooled = (pool.submit(private_memory, *how).result() for how in ((False, 1), (True, 40)))
        found["pool_private_ratio"] = pooled / plain
        found |= pool.submit(random_switching).result()
        found |= pool.submit(while_loading).result()
    return found


def fp32(bundle: Bundle) -> list[str]:
    return [entry.id for entry in bundle.manifest.submodels if entry.precision == "fp32"]


def one_input(bundle: Bundle) -> dict[str, Any]:
    return {name: array[:1] for name, array in bundle.selftest_inputs.items()}


def timed(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def cold_switch(name: str, rounds: int = 15) -> float:
    """Opening and the first run, less a usual run, from the cache and from the bundle: the ratio of the medians, of eight
    sizes together."""
    bundle, feed = made(name), one_input(made(name))
    names = fp32(bundle)
    chosen = [names[round(i * (len(names) - 1) / 7)] for i in range(8)]
    totals = {"cached": 0.0, "plain": 0.0}
    with TemporaryDirectory() as folder:
        cache = ModelCache(folder)
        ways: dict[str, Callable[[str], ort.InferenceSession]] = {
            "cached": lambda sub: cache.open_session(bundle, sub, ONE_THREAD),
            "plain": lambda sub: open_session(bundle.graph_path(sub), ONE_THREAD),
        }
        for sub in chosen:
            taken: dict[str, list[float]] = {way: [] for way in ways}
            ways["cached"](sub)
            for _ in range(rounds):
                for way, opened in ways.items():
                    begun = time.perf_counter()
                    session = opened(sub)
                    session.run(None, feed)
                    first = time.perf_counter() - begun
                    usual = float(np.median([timed(lambda s=session: s.run(None, feed)) for _ in range(5)]))  # type: ignore[misc]
                    taken[way].append(first - usual)
                    del session
            for way, seconds in taken.items():
                totals[way] += float(np.median(seconds))
    return totals["cached"] / totals["plain"]


def profiled(name: str, cache: ModelCache | bool, count: int | None = None) -> Path:
    """The bundle's profile for this machine, in the bundle, as `Runtime` finds it."""
    bundle = made(name)
    names = fp32(bundle)
    chosen = names if count is None else [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
    profile = profile_bundle(bundle, device="bench", threads=1, submodels=chosen, repeats=20, cache=cache, show_progress=False)
    path = bundle.path / "profiles" / "bench.json"
    write_profile(profile, path)
    return path


def through_runtime(runs: int = 3000) -> Figures:
    """Microseconds that `Runtime.run` adds to `session.run`, and of a change between two open sub-models."""
    with TemporaryDirectory() as folder:
        profiled("resnet", ModelCache(folder), 20)
        bundle = made("resnet")
        accuracies = np.linspace(0.8, 0.9, len(bundle.submodels))
        _pretend_accuracies(bundle, accuracies)
        runtime = Runtime(bundle, device="bench", battery=lambda: None, cache=ModelCache(folder), load_ahead=False)
        feed = one_input(bundle)
        limits = sorted(m.latency_ms.p50 for m in bundle.profile("bench").submodels.values())
        budgets = [Budget(latency_ms=limits[i] * 1.001) for i in (0, 2)]
        names = [runtime.run(feed, budget).selection.submodel for budget in budgets]
        assert names[0] != names[1]
        outputs = [output.name for output in bundle.manifest.outputs]
        sessions = [runtime.program(name).session for name in names]  # type: ignore[attr-defined]
        direct, ours, switching = [], [], []
        for i in range(runs):
            for which in (0, 0, 1, 1):  # the second of each pair does not change the size
                direct.append(timed(lambda s=sessions[which]: s.run(outputs, feed)))  # type: ignore[misc]
                ours.append(timed(lambda b=budgets[which]: runtime.run(feed, b)))  # type: ignore[misc]
            chosen = budgets[i % 2]
            switching.append(timed(lambda b=chosen: runtime.choose(b)))  # type: ignore[misc]
        same = slice(0, None)
        overhead = np.median(np.array(ours[same]).reshape(-1, 4)[:, ::2] - np.array(direct[same]).reshape(-1, 4)[:, ::2])
        runtime.close()
    return {"run_overhead_us": 1e6 * float(overhead), "warm_switch_us": 1e6 * float(np.median(switching))}


def private_memory(cached: bool, count: int) -> float:
    """Private MB of so many open sessions of the 17 MB CNN that have run; of one: the largest, opened from the bundle."""
    bundle, feed = made("cnn"), one_input(made("cnn"))
    names = fp32(bundle)[-count:]
    with TemporaryDirectory() as folder:
        cache = ModelCache(folder)
        if cached:
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_fill, args=(folder, names))
            process.start()
            process.join()
        warm = open_session(bundle.graph_path(fp32(bundle)[0]), ONE_THREAD)  # what ONNX Runtime takes for itself
        warm.run(None, feed)
        before = private_memory_mb() or 0.0
        sessions = [
            cache.open_session(bundle, name, ONE_THREAD) if cached else open_session(bundle.graph_path(name), ONE_THREAD)
            for name in names
        ]
        for session in sessions:
            session.run(None, feed)
        return (private_memory_mb() or 0.0) - before


def _fill(folder: str, names: list[str]) -> None:
    cache, bundle = ModelCache(folder), made("cnn")
    for name in names:
        cache.open_session(bundle, name, ONE_THREAD)


def random_switching(runs: int = 10_000) -> Figures:
    """The most private memory that a pool took, relative to its budget, while the size changed at random. Without cached
    copies, so that every session holds its weights itself."""
    profiled("cnn", cache=False)
    bundle = made("cnn")
    _pretend_accuracies(bundle, np.linspace(0.8, 0.9, len(bundle.submodels)))
    profile = bundle.profile("bench")
    limit = sum(m.memory_mb or 0.0 for m in profile.submodels.values()) / 4
    feed, order = one_input(bundle), random.Random(0)
    limits = [m.latency_ms.p50 * 1.001 for m in profile.submodels.values()]
    before = private_memory_mb() or 0.0
    runtime = Runtime(bundle, device="bench", battery=lambda: None, cache=False, memory_mb=limit)
    most_counted = most_measured = 0.0
    opened = set()
    for i in range(runs):
        opened.add(runtime.run(feed, Budget(latency_ms=order.choice(limits))).selection.submodel)
        most_counted = max(most_counted, runtime.pool.memory_used_mb)
        if i % 200 == 199:
            most_measured = max(most_measured, (private_memory_mb() or 0.0) - before)
    runtime.close()
    return {
        "pool_runs": runs,
        "pool_submodels_used": len(opened),
        "pool_budget_mb": limit,
        "pool_counted_ratio": most_counted / limit,
        "pool_measured_ratio": most_measured / limit,
    }


def while_loading(seconds: float = 8.0) -> Figures:
    """p99 of runs of one sub-model while others are opened in the background all the time, relative to p99 without."""
    with TemporaryDirectory() as folder:
        profiled("cnn", ModelCache(folder), 20)
        bundle = made("cnn")
        _pretend_accuracies(bundle, np.linspace(0.8, 0.9, len(bundle.submodels)))
        runtime = Runtime(bundle, device="bench", battery=lambda: None, cache=ModelCache(folder), load_ahead=False)
        feed = one_input(bundle)
        limit = sorted(m.latency_ms.p50 for m in bundle.profile("bench").submodels.values())[10] * 1.001
        budget = Budget(latency_ms=limit)
        selection = runtime.run(feed, budget).selection
        kept = (selection.submodel, selection.device)
        others = [(name, selection.device) for name in bundle.profile("bench").submodels if name != selection.submodel]
        loads = 0
        taken: dict[bool, list[float]] = {False: [], True: []}
        order = random.Random(0)
        for turn in range(20):
            loading = turn % 2 == 1
            end = time.perf_counter() + seconds / 20
            while time.perf_counter() < end:
                if loading and not runtime.pool._asked:
                    with runtime.pool._changed:
                        runtime.pool._sessions = {kept: runtime.pool._sessions[kept]}
                    runtime.pool.load_ahead([order.choice(others)])
                    loads += 1
                taken[loading].append(timed(lambda: runtime.run(feed, budget)))
            runtime.pool.settle()
        runtime.close()
    p99 = {loading: float(np.percentile(seconds, 99)) for loading, seconds in taken.items()}
    return {"p99_ratio_while_loading": p99[True] / p99[False], "loads_while_running": loads}


def _pretend_accuracies(bundle: Bundle, accuracies: np.ndarray[Any, Any]) -> None:
    """The larger the more accurate: the bundles here are not trained, and a selector wants to know."""
    order = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].macs)
    changed = dict(bundle.submodels)
    for name, accuracy in zip(order, accuracies, strict=True):
        changed[name] = changed[name].model_copy(update={"quality": float(accuracy), "metrics": {"accuracy": float(accuracy)}})
    bundle.submodels = changed
