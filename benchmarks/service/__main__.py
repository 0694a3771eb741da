"""`make bench-service`: measures the service and writes `results/`. `python -m benchmarks.service PART…` for some."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.summary import write_summary

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "load": "load.measure",
    "soak": "load.soak",
    "fuzz": "fuzz.measure",
    "files": "files.measure",
    "pull": "pull.measure",
    "put": "put.measure",
    "replicas": "replicas.measure",
    "predict": "predict.measure",
    "page": "page.measure",
}
"""Each is imported when it is asked for: it may need a browser, a database or a load generator."""


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        raise SystemExit(f"part {unknown[0]!r}: allowed are {', '.join(PARTS)}")
    summary = RESULTS / "summary.json"
    written = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    figures: dict[str, float] = written.get("figures", {})
    notes: dict[str, str] = written.get("notes", {})
    for name in wanted:
        module_name, function = PARTS[name].split(".")
        module = import_module(f"benchmarks.service.{module_name}")
        found: dict[str, float] = getattr(module, function)()
        figures |= found
        notes |= module.NOTES
        for key, value in found.items():
            print(f"{key:45} {value:.4g}", flush=True)
        write_summary(RESULTS, "make bench-service", figures, {key: notes[key] for key in figures if key in notes})


if __name__ == "__main__":
    main()
