"""`make bench-service`: measures the service and writes `results/`. `python -m benchmarks.service PART…` for some."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from benchmarks.summary import run_parts

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "load": "load.measure",
    "soak": "load.soak",
    "fuzz": "fuzz.measure",
    "files": "files.measure",
    "pull": "pull.measure",
    "put": "put.measure",
    "replicas": "replicas.measure",
    "stores": "stores.measure",
    "slow": "slow.measure",
    "predict": "predict.measure",
    "page": "page.measure",
}
"""Each is imported when it is asked for: it may need a browser, a database or a load generator."""


def main() -> None:
    summary = RESULTS / "summary.json"
    notes: dict[str, str] = json.loads(summary.read_text(encoding="utf-8"))["notes"] if summary.exists() else {}

    def measured(place: str) -> dict[str, float]:
        module_name, function = place.split(".")
        module = import_module(f"benchmarks.service.{module_name}")
        notes.update(module.NOTES)
        found: dict[str, float] = getattr(module, function)()
        return found

    parts = {name: partial(measured, place) for name, place in PARTS.items()}
    run_parts(RESULTS, "make bench-service", parts, notes, sys.argv[1:])


if __name__ == "__main__":
    main()
