"""The battery planner against a world that we did not write: cells of PyBaMM, and drive cycles as what is drawn besides.

Cells are PyBaMM's (Sulzer et al. 2021, Journal of Open Research Software 9), by three published sets of parameters: Chen 2020
(LG M50, a cylinder), Ai 2020 (Enertech, a telephone's pouch) and Marquis 2019 (Kokam, a pouch). The loads besides are the drive
cycles US06 and UDDS of the United States' Environmental Protection Agency and the WLTC of the United Nations' Economic
Commission for Europe, as PyBaMM's package has them up to version 24: without what brakes give back, repeated until the end, at
a mean of what `benchmarks.adapt` lets the device draw. All of it costs 30 % more, or less, than the plan says. Or the device
gets hot: inferences cost as many times more as runs took longer in `benchmarks/adapt/traces/heat-*.csv`, recordings of this
project under a quota that falls and rises (thermal curves of others, with a licence, were not at hand). The plan is told the
capacity that the cell's data sheet says, and the reading is the cell's state of charge in whole per cent.

`python -m benchmarks.ship planner` measures this part alone, in `build/ship`: PyBaMM in an environment of its own.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.adapt.battery_world import TICK, TICKS, TOLD
from benchmarks.environments import environment

WORK, RESULTS = Path("build/ship"), Path(__file__).parent / "results"
PACKAGE, PACKAGE_WITH_TRACES = "pybamm==26.10.1.1", "pybamm==24.1"
CELLS = ("Chen2020", "Ai2020", "Marquis2019")
TRACES = ("US06", "UDDS", "WLTC")
ERROR = 0.3
RECORDED = Path(__file__).parents[1] / "adapt" / "traces"
HOT, WINDOWS = (0, 1), 12
"""Recordings, and stretches of one within which the mean is taken."""
NOTES = {
    "planner_third_party_time_error": "|time at which the cell of PyBaMM reaches the plan's reserve - the plan's end| / the "
    "plan's duration, charge that is left counts as the time that it would last at the last hour's drain; mean over the cases",
    "planner_third_party_time_error_worst": "the same, the worst of the cases",
    "planner_third_party_planned_once": "the same mean where the plan's mix is never corrected",
    "planner_third_party_cases": f"{len(CELLS)} cells, {len(TRACES)} drive cycles, all costs {ERROR:.0%} more and less than "
    f"told, and {len(HOT)} recordings of a hot device with one drive cycle each",
    "planner_third_party_hot_time_error": "the same mean over the cases of a hot device alone",
}


def measure() -> dict[str, float]:
    """Writes `cells.csv`."""
    given = list(cases(traces()))
    ours, once = ran(given), ran([{**case, "policy": "once"} for case in given])
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", "trace", "costs", "signed_error", "planned_once", "joules_given", "joules_told"])
        for one, other in zip(ours, once, strict=True):
            figures = one["signed_error"], other["signed_error"], one["joules"], one["told_joules"]
            writer.writerow([one["cell"], one["trace"], one["costs"], *(f"{value:.5f}" for value in figures)])
    errors = [abs(row["signed_error"]) for row in ours]
    return {
        "planner_third_party_time_error": mean(errors),
        "planner_third_party_time_error_worst": max(errors),
        "planner_third_party_planned_once": mean(abs(row["signed_error"]) for row in once),
        "planner_third_party_cases": len(given),
        "planner_third_party_hot_time_error": mean(abs(r["signed_error"]) for r in ours if r["costs"].startswith("heat")),
    }


def cases(loads: dict[str, NDArray[np.float64]]) -> Iterator[dict[str, Any]]:
    """What `cell.run` takes. `loads`: by trace, of mean 1."""
    place, names = 0, list(loads)
    for cell in CELLS:
        costs = [(trace, f"x{scale:g}", np.full(TICKS, scale), scale) for trace in names for scale in (1 - ERROR, 1 + ERROR)]
        costs += [(names[seed % len(names)], f"heat-{seed}", heat(seed), 1.0) for seed in HOT]
        for trace, costing, scale, other in costs:
            place += 1
            yield {
                "cell": cell,
                "trace": trace,
                "costs": costing,
                "scale": scale.tolist(),
                "start": (100.0, 94.0, 88.0)[place % 3],
                "mean_mj": (7.0, 10.0, 13.0)[place // 3 % 3],
                "other": (loads[trace] * TOLD * other).tolist(),
                "told_watts": TOLD,
            }


def heat(seed: int) -> NDArray[np.float64]:
    """How many times longer runs took in a recording than at its beginning, stretched over the plan; of shape (TICKS,)."""
    with (RECORDED / f"heat-{seed}.csv").open(encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    recorded = np.array(rows, dtype=float)
    seconds, took = recorded[:, 0], recorded[:, 2:]
    slower = (took / np.median(took, axis=0)).mean(axis=1)
    window = np.minimum((seconds / seconds[-1] * WINDOWS).astype(int), WINDOWS - 1)
    means = np.array([slower[window == one].mean() for one in range(WINDOWS)])
    middle = (np.arange(WINDOWS) + 0.5) / WINDOWS
    found: NDArray[np.float64] = np.interp(np.arange(TICKS) / TICKS, middle, means / means[0])
    return found


def ran(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of these cases, in PyBaMM's environment."""
    python = environment(WORK / "pybamm", [PACKAGE])
    command = [str(python), "-m", "benchmarks.ship.cell"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.ship.cell: {done.stderr[-2000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def traces() -> dict[str, NDArray[np.float64]]:
    """By name, of shape (TICKS,): the mean draw in each tick over the mean of the whole, never below 0."""
    folder = WORK / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("pybamm-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--python-version", "3.11", "--dest", folder, PACKAGE_WITH_TRACES], check=True)
    (wheel,) = folder.glob("pybamm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: _in_ticks(archive.read(f"pybamm/input/drive_cycles/{name}.csv").decode()) for name in TRACES}


def _in_ticks(text: str) -> NDArray[np.float64]:
    """A drive cycle's columns are time and current or power, in either order."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = np.array([line.split(",") for line in lines if line[0] in "-0123456789"], dtype=float)
    header = next((line for line in reversed(lines) if line[0] not in "-0123456789"), "")
    seconds, drawn = rows.T if header.strip("# ").lower().startswith("time") else rows.T[::-1]
    moments = np.arange(TICKS * TICK) % seconds[-1]
    each = np.maximum(np.interp(moments, seconds, drawn), 0).reshape(TICKS, -1).mean(axis=1)
    found: NDArray[np.float64] = each / each.mean()
    return found
