"""`make bench-adapt`: compares policies on recorded traces, live, with batteries and cascades, and writes `results/`.

`python -m benchmarks.adapt PART…` for some parts; `record [SCENARIO…]` records the traces anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.adapt import battery, cascade, compare, decide, learner, live, sensors
from benchmarks.summary import run_parts

RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "compare": lambda: compare.measure(RESULTS),
    "learner": learner.measure,
    "battery": battery.measure,
    "cascade": cascade.measure,
    "sensors": sensors.measure,
    "decide": decide.measure,
    "live": lambda: live.measure(RESULTS / "live.csv"),
}
NOTES = compare.NOTES | learner.NOTES | battery.NOTES | cascade.NOTES | sensors.NOTES | decide.NOTES | live.NOTES


def main() -> None:
    if sys.argv[1:2] == ["record"]:
        from benchmarks.adapt.record import record

        record(sys.argv[2:])
        return
    RESULTS.mkdir(exist_ok=True)
    run_parts(RESULTS, "make bench-adapt", PARTS, NOTES, sys.argv[1:])


if __name__ == "__main__":
    main()
