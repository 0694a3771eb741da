"""What the runtime takes of a device between its runs: processor time, and connections."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.device.bundles import made
from benchmarks.device.sessions import Figures
from exporter.bundle import Bundle
from exporter.bundle.session import CPU, SessionOptions, open_session
from tests.helpers.offline import SIGNAL, available, offline

RATE, TURNS, TURN_SECONDS = 27, 6, 10.0


def measure() -> Figures:
    """Of the demo's largest fp32 size on two threads."""
    bundle = made("demo")
    full = max((entry for entry in bundle.manifest.submodels if entry.precision == "fp32"), key=lambda entry: entry.macs)
    endless = ort.SessionOptions()
    endless.intra_op_num_threads = 2
    graph = bundle.graph_path(full.id)
    # Each in turn is alone in the process: the other's threads would wait actively beside it.
    openers: dict[str, Callable[[], ort.InferenceSession]] = {
        "ours": lambda: open_session(graph, SessionOptions(threads=2)),
        "endless": lambda: ort.InferenceSession(str(graph), endless, providers=[CPU]),
    }
    inputs = {name: array[:1] for name, array in bundle.selftest_inputs.items()}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in openers}
    for _ in range(TURNS):
        for name, opener in openers.items():
            session = opener()
            turns[name].append(_at_the_rate(lambda session=session: session.run(None, inputs)))  # type: ignore[misc]
            del session
    (share, p50), (endless_share, endless_p50) = (np.median(turns[name], axis=0) for name in ("ours", "endless"))
    found = {"idle_cpu_share": share, "idle_cpu_share_endless": endless_share, "idle_p50_ratio": p50 / endless_p50}
    return {**{name: float(value) for name, value in found.items()}, **_connections(bundle)}


def _at_the_rate(run: Callable[[], object]) -> tuple[float, float]:
    """The share of a core, and the median latency (ms)."""
    for _ in range(20):
        run()
    latencies = []
    begun, busy = time.perf_counter(), time.process_time()
    due = begun
    while time.perf_counter() - begun < TURN_SECONDS:
        before = time.perf_counter()
        run()
        latencies.append((time.perf_counter() - before) * 1e3)
        due += 1 / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
    return (time.process_time() - busy) / (time.perf_counter() - begun), float(np.median(latencies))


def _connections(bundle: Bundle) -> Figures:
    if not available():
        print("connections: left out, this kernel has no seccomp")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        home, one = Path(folder), Path(folder) / "one.npz"
        np.savez(one, **{name: array[:1] for name, array in bundle.selftest_inputs.items()})  # type: ignore[arg-type]
        path, few = shutil.copytree(bundle.path, Path(folder) / "bundle"), ",".join(list(bundle.submodels)[:2])
        commands: tuple[list[str | Path], ...] = (
            ["verify", path],
            ["profile", path, "--device", "offline", "--submodels", few, "--repeats", "3"],
            ["select", path, "--device", "offline", "--objective", "latency"],
            ["run", path, "--device", "offline", "--input", one],
        )
        ended = 0
        for command in commands:
            code = offline(home, *command).returncode
            if code not in (0, -SIGNAL):
                raise RuntimeError(f"{command[0]}: ended with {code}")
            ended += code != 0
        ours = (home / ".cache" / "sortednet", path)
        ended += sum(file.is_file() and file != one and not {*ours} & {*file.parents} for file in home.rglob("*"))
    return {"connections": float(ended)}
