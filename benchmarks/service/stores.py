"""50 Stores on one SQLite file, ten in each of 5 processes, opened, written and closed at once, ten times: is anything lost?

Each Store is of a thread that opens it, sends a profile, closes it and opens the next: the hardest case, because a process
loses its locks on a file with any handle on it that is closed beside SQLite's own.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from device_profiles import DeviceInfo, LatencyMs, Measurement, Profile
from selector.service.fleet.store import Store

ROUNDS, PROCESSES, STORES, OPENED = 10, 5, 10, 5
NOTES = {
    "store_rounds_lost": f"of {ROUNDS} rounds, each on a new SQLite file, {STORES} Stores in each of {PROCESSES} processes, "
    f"each opened and written {OPENED} times: rounds with errors, a missing row or a damaged file",
    "store_rounds_rows": "profiles that were found, all rounds together",
}


def measure() -> dict[str, float]:
    """A minute or two."""
    lost = rows = 0
    for _ in range(ROUNDS):
        with TemporaryDirectory() as folder:
            found, whole = _round(Path(folder) / "store.db")
            rows += found
            lost += found != PROCESSES * STORES * OPENED or not whole
    return {"store_rounds_lost": lost, "store_rounds_rows": rows}


def _round(file: Path) -> tuple[int, bool]:
    """The rows that are there, and whether every process was content and the file is whole."""
    command = [sys.executable, "-m", "benchmarks.service.stores", str(file)]
    processes = [subprocess.Popen([*command, str(place)]) for place in range(PROCESSES)]
    content = [process.wait() == 0 for process in processes]
    with sqlite3.connect(file) as connection:
        (rows,) = connection.execute("SELECT count(DISTINCT device) FROM profiles").fetchone()
        (checked,) = connection.execute("PRAGMA integrity_check").fetchone()
    return rows, all(content) and checked == "ok"


def _write(url: str, process: int) -> None:
    """Of one process. Raises what a Store raises."""

    def write(place: int) -> None:
        for turn in range(OPENED):
            with Store(url) as store:
                store.put("bundle", _profile(f"device-{process}-{place}-{turn}"))

    with ThreadPoolExecutor(STORES) as pool:
        list(pool.map(write, range(STORES)))


def _profile(device: str) -> Profile:
    info = DeviceInfo(
        name=device,
        cpu="cpu",
        cores=1,
        threads=1,
        ram_mb=1,
        os="os",
        onnxruntime="1",
        execution_provider="CPUExecutionProvider",
    )
    cost = Measurement(latency_ms=LatencyMs(p50=1, p90=1, p99=1, mean=1, n=1), source={"latency_ms": "measured"})
    return Profile(device=info, bundle="f" * 64, measured_at=datetime.now(UTC), submodels={"w1.00": cost})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _write(f"sqlite:///{sys.argv[1]}", int(sys.argv[2]))
    else:
        json.dump(measure(), sys.stdout, indent=1)
