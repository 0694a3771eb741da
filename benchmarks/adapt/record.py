"""Records traces: what every size would take at each moment of a scenario, on this machine, under real load.

    python -m benchmarks.adapt record [SCENARIO…]

`traces/profile.json` is what the profile says of the same sizes on the quiet machine, `traces/accuracies.csv` how accurate
they are on the test split, `traces/<scenario>-<seed>.csv` has a row
per moment: seconds, number of the phase, and one latency (ms) per size.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime as ort

from benchmarks.adapt.bundles import trained
from benchmarks.adapt.scenarios import SCENARIOS, world
from device_profiles import Profile, describe_device, measure, read_profile, write_profile
from exporter.bundle import Bundle
from exporter.bundle.session import CPU, SessionOptions
from selector import Selector
from selector.run.program import Program, program_opener

TRACES = Path(__file__).parent / "traces"
BATCH = 8
"""Images per run: some 0.5 to 10 ms on one thread, as larger models take for one image; less would measure the scheduler."""
SIZES = 10
SEEDS = range(4)


def record(scenarios: Sequence[str] = ()) -> None:
    """All scenarios or the named ones, every seed. The profile is measured where there is none, or with all."""
    bundle = trained()
    TRACES.mkdir(exist_ok=True)
    runs = {}
    path = TRACES / "profile.json"
    if not scenarios or not path.exists():
        found = measured_frontier(bundle)
        write_profile(found, path)
        with (TRACES / "accuracies.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["submodel", "accuracy"])
            writer.writerows((name, bundle.accuracies[name]) for name in found.submodels)
    profile = read_profile(path)
    open_program = program_opener(bundle, SessionOptions(1, CPU, True), True)
    for name in profile.submodels:
        runs[name] = runner(bundle, open_program(name))
        runs[name]()
    for scenario in scenarios or SCENARIOS:
        for seed in SEEDS:
            rows = _recorded(scenario, seed, runs)
            with (TRACES / f"{scenario.replace(' ', '-')}-{seed}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["seconds", "phase", *runs])
                writer.writerows(rows)
            print(f"{scenario} {seed}: {len(rows)} moments", flush=True)


def measured_frontier(bundle: Bundle) -> Profile:
    """All sub-models once, then again a few that are spread over the frontier of accuracy over latency."""
    open_program = program_opener(bundle, SessionOptions(1, CPU, True), True)

    def load(name: str) -> Callable[[], object]:
        return runner(bundle, open_program(name))

    info = describe_device(name="bench", threads=1, onnxruntime=ort.__version__, execution_provider=CPU)

    def profile(names: Sequence[str], repeats: int | None) -> Profile:
        found = measure(load, names, repeats=repeats)
        moment = datetime.now(UTC).replace(microsecond=0)
        return Profile(device=info, bundle=bundle.fingerprint, measured_at=moment, submodels=found)

    costs, candidates = Selector(profile(list(bundle.submodels), 15), bundle.accuracies).afforded_by("latency_ms")
    wanted = np.geomspace(costs[0], costs[-1], SIZES)
    places = dict.fromkeys(int(np.abs(np.log(np.array(costs) / cost)).argmin()) for cost in wanted)
    return profile([candidates[place].submodel for place in places], 400)


def runner(bundle: Bundle, program: Program) -> Callable[[], object]:
    inputs = {name: np.resize(array, (BATCH, *array.shape[1:])) for name, array in bundle.selftest_inputs.items()}
    return lambda: program.run(inputs)


def _recorded(scenario: str, seed: int, runs: dict[str, Callable[[], object]]) -> list[list[str]]:
    random = Random(f"{scenario} {seed}")
    phases = SCENARIOS[scenario](random)
    names = list(runs)
    rows = []
    with world() as device:
        begun = time.perf_counter()
        ends = 0.0
        for number, phase in enumerate(phases):
            device.enter(phase)
            ends += phase.seconds
            while (now := time.perf_counter() - begun) < ends:
                taken = {}
                for name in random.sample(names, len(names)):  # in no order, so that none always follows the same
                    if phase.pause_seconds:
                        time.sleep(phase.pause_seconds)
                    before = time.perf_counter()
                    runs[name]()
                    taken[name] = (time.perf_counter() - before) * 1e3
                rows.append([f"{now:.4f}", str(number), *(f"{taken[name]:.4g}" for name in names)])
    return rows
