"""Bad versions, and after how many runs on them they are taken back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.ship.bundles import Shipped, shipped
from exporter.bundle import Bundle
from selector.run import canary
from selector.run.runtime import Runtime
from selector.ship.state import read_state
from selector.ship.trial import WorseError
from selector.ship.versions import signed_version
from sortednet.signing import sign
from tests.helpers.shelf import broken, other_weights

NOTES = {
    "rollback_runs": "runs on the worst of three bad versions until it was taken back: one whose runs take 1.5 times as long "
    "(what they take, and half of that waited actively), one that gets at least 10 points less of the labelled examples right, "
    "one with an operator that there is not; where a version is refused before it is put in place this counts as 0",
    "rollback_runs_slow": "of the slow one, on a tenth of the runs",
    "rollback_good_taken_back": "a good version, 50 runs on it: 1 where it was taken back",
}


def measure() -> dict[str, float]:
    with shipped() as bundles:
        slow = _tried(bundles, 1.5)
        good = _tried(bundles, 1.0)
        refused = [_refused(bundles, make) for make in (_less_accurate, broken)]
        return {
            "rollback_runs": max(slow if slow is not None else float("inf"), *refused),
            "rollback_runs_slow": slow if slow is not None else float("inf"),
            "rollback_good_taken_back": float(good is not None),
        }


def _tried(bundles: Shipped, times: float) -> int | None:
    """Runs until it was taken back; None where it stayed."""
    out = bundles.scratch / f"device-{times}" / "digits"
    bundles.fetch(bundles.first, out)
    bundles.fetch(bundles.second, out, trial=True)
    assert read_state(out).trial is not None

    class Slower(Runtime):
        def _compute(self, *given: Any) -> Any:
            outputs, elapsed, *more = super()._compute(*given)
            if self.bundle.path == out and times > 1:
                until = time.perf_counter() + (times - 1) * elapsed / 1000
                while time.perf_counter() < until:
                    pass
                elapsed *= times
            return outputs, elapsed, *more

    with mock.patch.object(canary, "Runtime", Slower), canary.CanaryRuntime(out, sensors=False, threads=1) as runtime:
        (spec,) = runtime.bundle.manifest.inputs
        example = np.random.default_rng(0).normal(size=(1, *spec.shape[1:])).astype(spec.dtype)
        while runtime.trying:
            runtime.run(example)
        assert signed_version(out) == (2 if runtime.reason is None else 1)
        print(f"{times}: {runtime.reason}")
        return None if runtime.reason is None else runtime.canary_runs


def _refused(bundles: Shipped, make: Callable[[Path], object]) -> float:
    bad = bundles.scratch / make.__name__ / "digits"
    shutil.copytree(bundles.first, bad)
    make(bad)
    sign(Bundle(bad), key=bundles.keys.private, version=3)
    out = bundles.scratch / f"device-{make.__name__}" / "digits"
    bundles.fetch(bundles.first, out)
    try:
        bundles.fetch(bad, out, trial=True)
    except WorseError as error:
        print(error)
        return 0.0 if signed_version(out) == 1 else float("inf")
    return float("inf")


def _less_accurate(bundle: Path) -> None:
    """Its last parameters, the classifier's, a little shuffled, until about ten examples of a hundred get another class."""

    def change(weights: Any) -> None:
        noise = np.random.default_rng(0)
        tail = weights[-330:]
        tail += noise.normal(size=len(tail)).astype(np.float32) * 0.7 * np.abs(tail).mean()

    other_weights(bundle, change)
