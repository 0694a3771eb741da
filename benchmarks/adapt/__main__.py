"""`make bench-adapt`: compares policies on recorded traces, live, with batteries and cascades, and writes `results/`.

`python -m benchmarks.adapt PART…` for some parts; `record [SCENARIO…]` records the traces anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.adapt import battery, cascade, compare, decide, live, sensors
from benchmarks.summary import write_summary

RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "compare": lambda: compare.measure(RESULTS),
    "battery": battery.measure,
    "cascade": cascade.measure,
    "sensors": sensors.measure,
    "decide": decide.measure,
    "live": lambda: live.measure(RESULTS / "live.csv"),
}
NOTES = compare.NOTES | battery.NOTES | cascade.NOTES | sensors.NOTES | decide.NOTES | live.NOTES


def main() -> None:
    if sys.argv[1:2] == ["record"]:
        from benchmarks.adapt.record import record

        record(sys.argv[2:])
        return
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        raise SystemExit(f"part {unknown[0]!r}: allowed are {', '.join(PARTS)}, and record")
    RESULTS.mkdir(exist_ok=True)
    summary = RESULTS / "summary.json"
    figures = json.loads(summary.read_text(encoding="utf-8"))["figures"] if summary.exists() else {}
    for name in wanted:
        found = PARTS[name]()
        figures |= found
        for key, value in found.items():
            print(f"{key:45} {value:.4g}", flush=True)
        write_summary(RESULTS, "make bench-adapt", figures, NOTES)


if __name__ == "__main__":
    main()
